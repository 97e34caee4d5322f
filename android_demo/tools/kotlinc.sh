#!/usr/bin/env bash
# kotlinc.sh OUTPUT CLASSPATH TARGET SOURCE...: compile Kotlin with the fetched compiler.
# -Xjdk-release=8 keeps calls to what Android has: with 17, FloatBuffer would bind to signatures of Java 9.
set -euo pipefail
K=$(cd "$(dirname "$0")/../.." && pwd)/.venv/android/kotlin
out=$1 class_path=$2 target=$3
shift 3
exec java -Xmx1200m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$K/*" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler -no-reflect -no-stdlib \
  $([ "$target" = 1.8 ] && echo -Xjdk-release=8) -Xnullability-annotations=@android.annotation:ignore -Werror \
  -jvm-target "$target" -cp "$class_path" -d "$out" "$@"
