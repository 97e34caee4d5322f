#!/usr/bin/env bash
# arm.sh APK: the arm64 library and the model out of APK, emulated, against Python's predictions on this machine.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
T=$here/../.venv/android
[ -f "$T/test/answers/0.probs" ] || { echo "arm.sh: run make android-test first: it writes the predictions" >&2; exit 1; }
python3 "$here/fetch/fetch.py" unidbg
class_path=$T/app/kotlin-stdlib-2.1.21.jar
for jar in "$T"/unidbg/*.jar; do class_path=$class_path:$jar; done
"$here/tools/kotlinc.sh" "$T/test/arm" "$class_path" 17 "$here/arm/src"
exec java -Xmx3g --add-opens=java.base/java.lang=ALL-UNNAMED -cp "$T/test/arm:$class_path" org.cededge.arm.ArmKt "$1" "$T/test/answers/0.f32" "$T/test/answers/0.probs"
