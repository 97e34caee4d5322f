#!/usr/bin/env bash
# test.sh BUNDLE [TEST_CLASS...]: the JVM tests: core, ONNX Runtime of this machine, and the app on Robolectric.
# SCREENS=write writes the golden pictures anew.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
bundle=$(realpath "$1")
shift
T=$here/../.venv/android
B=$T/build
apk=$T/apk/ced-edge-arm64-v8a.apk
[ -f "$apk" ] || { echo "test.sh: run build_apk.sh $bundle .venv/android/apk first" >&2; exit 1; }
mkdir -p "$T/test/conf/com/android/tools"
cat >"$T/test/conf/com/android/tools/test_config.properties" <<P
android_merged_manifest=$B/AndroidManifest.xml
android_resource_apk=$apk
android_custom_package=org.cededge.demo
P
# Robolectric's own classes come before android-all.
class_path=$B/core:$B/app:$T/app/kotlin-stdlib-2.1.21.jar:$T/desktop/onnxruntime-1.26.0.jar
for jar in "$T"/robolectric/*.jar; do class_path=$class_path:$jar; done
class_path=$class_path:$T/android/android-all-15-robolectric-13954326.jar
now=$(find "$here/core/src/test" "$here/app/src/test" "$B/compiled" -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum)
if [ "$(cat "$T/test/compiled" 2>/dev/null)" != "$now" ]; then
  rm -rf "$T/test/classes"
  "$here/tools/kotlinc.sh" "$T/test/classes" "$class_path" 17 "$here/core/src/test" "$here/app/src/test"
  echo "$now" >"$T/test/compiled"
fi
classes=("$@")
[ $# -gt 0 ] || mapfile -t classes < <(cd "$T/test/classes" && find . -name '*Test.class' | sort | sed 's|^\./||; s|\.class$||; s|/|.|g')
mkdir -p "$T/test/tmp"
exec java -Xmx2500m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Drobolectric.offline=true "-Drobolectric.dependency.dir=$T/sdks" \
  "-Djava.io.tmpdir=$T/test/tmp" "-Dandroid_demo=$here" "-Dbundle=$bundle" "-Danswers=$T/test/answers" \
  --add-opens=java.base/java.lang=ALL-UNNAMED --add-opens=java.base/java.io=ALL-UNNAMED -cp "$T/test/conf:$T/test/classes:$class_path" org.junit.runner.JUnitCore "${classes[@]}"
