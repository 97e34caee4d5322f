#!/usr/bin/env bash
# test.sh BUNDLE [TEST_CLASS...]: the JVM tests: core, ONNX Runtime of this machine, and the app on Robolectric.
# SCREENS=write writes the golden pictures anew. PYTHON is an interpreter that has ced_edge.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bundle=$(realpath "$1")
shift
T=$here/../.venv/android
B=$T/build
apk=$T/apk/ced-edge-arm64-v8a.apk
[ -f "$apk" ] || { echo "test.sh: run build_apk.sh $bundle .venv/android/apk first" >&2; exit 1; }
python3 "$here/fetch/fetch.py" desktop desktop28 robolectric sdks sniffer
mkdir -p "$T/test/conf/com/android/tools" "$T/test/tmp"
# Robolectric reads resources and assets out of the real APK.
cat >"$T/test/conf/com/android/tools/test_config.properties" <<P
android_merged_manifest=$B/AndroidManifest.xml
android_resource_apk=$apk
android_custom_package=org.cededge.demo
P
# Robolectric's own classes come before android-all.
ours=$B/core:$B/app:$T/app/kotlin-stdlib-2.1.21.jar
framework=
for jar in "$T"/robolectric/*.jar; do framework=$framework$jar:; done
framework=$framework$T/android/android-all-15-robolectric-13954326.jar
now=$(find "$here/core/src/test" "$here/app/src/test" "$B/compiled" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
if [ "$(cat "$T/test/compiled" 2>/dev/null)" != "$now" ]; then
  rm -rf "$T/test/classes"
  "$here/tools/kotlinc.sh" "$T/test/classes" "$ours:$T/desktop/onnxruntime-1.26.0.jar:$framework" 17 "$here/core/src/test" "$here/app/src/test"
  echo "$now" >"$T/test/compiled"
fi
junit() { # VERSION SAME_AS_PYTHON CLASS...
  java -Xmx2500m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m -Drobolectric.offline=true "-Drobolectric.dependency.dir=$T/sdks" \
    "-Djava.io.tmpdir=$T/test/tmp" "-Dandroid_demo=$here" "-Dbundle=$bundle" "-Danswers=$T/test/answers" "-Dsame_version=$2" \
    --add-opens=java.base/java.lang=ALL-UNNAMED --add-opens=java.base/java.io=ALL-UNNAMED \
    -cp "$T/test/conf:$T/test/classes:$ours:$T/desktop$([ "$1" = 1.28.0 ] && echo 28)/onnxruntime-$1.jar:$framework" org.junit.runner.JUnitCore "${@:3}"
}
if [ $# -gt 0 ]; then junit 1.26.0 false "$@"; exit; fi
PYTHONPATH=$here/.. "${PYTHON:-$here/../.venv/bin/python}" "$here/tools/answers.py" "$bundle" "$T/test/answers"
mapfile -t classes < <(cd "$T/test/classes" && find . -name '*Test.class' | sort | sed 's|^\./||; s|\.class$||; s|/|.|g')
junit 1.26.0 false "${classes[@]}"
junit 1.28.0 true org.cededge.demo.OrtTest
java -cp "$T/sniffer/*" "$here/tools/Sniff.java" "$T/sniffer/android-api-level-26-8.0.0_r2.signature" "$here/app/newer.txt" \
  "$B/core.jar" "$B/app.jar" "$T/ort/classes.jar" + "$T/app/kotlin-stdlib-2.1.21.jar"
