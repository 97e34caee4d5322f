#!/usr/bin/env bash
# build_apk.sh BUNDLE OUT_FOLDER [ABI...]: signed APKs that hold BUNDLE, one per ABI (default: arm64-v8a armeabi-v7a x86_64).
# Needs Linux on x86-64, JDK 17, Maven, npm, apt and Python 3.10; everything else is fetched, pinned in fetch/pinned.txt.
# STORED=1: libraries stored at 16 KB instead of compressed. KEYSTORE, KEYSTORE_PASS: your own key instead of a debug key.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,4p "$0" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
bundle=$(realpath "$1") out=$(realpath -m "$2")
shift 2
abis=("$@")
[ $# -gt 0 ] || abis=(arm64-v8a armeabi-v7a x86_64)
[ -f "$bundle/bundle.json" ] || { echo "build_apk.sh: $bundle is no bundle: write one with \`ced-edge export --int8 --out $bundle\`" >&2; exit 1; }
"$here/tools/compile.sh"
T=$here/../.venv/android B=$here/../.venv/android/build
mkdir -p "$out"
# A debug key is made once per machine; phones take an update only with the same key.
key=${KEYSTORE:-$T/debug.p12} pass=${KEYSTORE_PASS:-android}
[ -f "$key" ] || keytool -genkeypair -keystore "$key" -storetype PKCS12 -storepass "$pass" -alias demo -keyalg RSA -keysize 2048 -validity 10000 -dname CN=ced-edge >&2
signer() { java -cp "$T/sign/usr/share/java/*" com.android.apksigner.ApkSignerTool "$@"; }
for abi in "${abis[@]}"; do
  [ -d "$T/ort/jni/$abi" ] || { echo "build_apk.sh: no libraries for $abi: choose arm64-v8a, armeabi-v7a or x86_64" >&2; exit 1; }
  python3 "$here/tools/pack.py" "$B/unsigned.apk" "$B/$([ -n "${STORED:-}" ] && echo stored || echo base).apk" "$B/dex/classes.dex" "$T/ort/jni" "$abi" "$bundle" ${STORED:+--stored-libraries}
  apk=$out/ced-edge-$abi${STORED:+-stored}.apk
  signer sign --ks "$key" --ks-pass "pass:$pass" --min-sdk-version 26 --v1-signing-enabled false --v4-signing-enabled false --out "$apk" "$B/unsigned.apk"
  echo "$apk"
done
