#!/usr/bin/env bash
# Compiles what does not depend on a bundle: resources, Kotlin, dex. Does nothing where its sources have not changed.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
python3 "$here/fetch/fetch.py" kotlin app r8 android aapt ort sign
T=$here/../.venv/android B=$here/../.venv/android/build
main=$here/app/src/main
now=$(cd "$here" && find app/src/main app/proguard.txt core/src/main tools/compile.sh tools/kotlinc.sh fetch/pinned.txt -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
[ "$(cat "$B/compiled" 2>/dev/null)" != "$now" ] || exit 0
rm -rf "$B" && mkdir -p "$B"/{gen,app,dex}
android=$T/android/android-all-15-robolectric-13954326.jar stdlib=$T/app/kotlin-stdlib-2.1.21.jar
# aapt2 wants these in the manifest; Gradle has them in app/build.gradle.kts.
manifest() { sed "s|<manifest |<manifest package=\"org.cededge.demo\" |; s|<application |<application android:extractNativeLibs=\"$1\" |" "$main/AndroidManifest.xml"; }
manifest true >"$B/AndroidManifest.xml" && manifest false >"$B/stored.xml"
"$T/aapt/aapt2" compile --dir "$main/res" -o "$B/res.zip"
link() { "$T/aapt/aapt2" link -o "$B/$1" -I "$android" --manifest "$B/$2" --min-sdk-version 26 --target-sdk-version 35 --version-code 1 --version-name 1.0 "${@:3}" "$B/res.zip"; }
link base.apk AndroidManifest.xml --java "$B/gen" --proguard "$B/manifest.pro"
link stored.apk stored.xml
"$here/tools/kotlinc.sh" "$B/core" "$stdlib" 1.8 "$here/core/src/main"
"$here/tools/kotlinc.sh" "$B/app" "$android:$B/core:$T/ort/classes.jar:$stdlib" 1.8 "$main/kotlin" "$B/gen"
javac -nowarn -Xlint:-options --release 8 -d "$B/app" "$B/gen/org/cededge/demo/R.java"
for part in core app; do jar --create --file "$B/$part.jar" -C "$B/$part" .; done
# R8's warnings are errors here: a class that is missing on the phone must not pass.
jdk=$(dirname "$(dirname "$(readlink -f "$(command -v javac)")")") # android-all leaves java.* to the JVM
java -Xmx1500m -cp "$T/r8/*" com.android.tools.r8.R8 --release --min-api 26 --lib "$android" --lib "$jdk" --pg-conf "$here/app/proguard.txt" \
  --pg-conf "$B/manifest.pro" --no-data-resources --output "$B/dex" "$B/core.jar" "$B/app.jar" "$stdlib" "$T/ort/classes.jar" >"$B/r8.txt" 2>&1 || failed=1
if [ -n "${failed:-}" ] || grep -qi warning "$B/r8.txt"; then head -20 "$B/r8.txt" >&2; echo "compile.sh: R8 fails or warns: $B/r8.txt" >&2; exit 1; fi
echo "$now" >"$B/compiled"
