"""Writes an APK: aapt2's archive, the dex, the libraries of one ABI and the bundle.

`pack.py OUT BASE.apk DEX JNI_FOLDER ABI BUNDLE [--stored-libraries]`. Standard library alone.

Libraries are compressed, so that a download is small; Android unpacks them at installation (extractNativeLibs). With
`--stored-libraries` they are stored at multiples of 16 KB, and a phone of any page size maps them from the APK itself.
The model is stored: it hardly gets smaller, and is read faster. All time stamps are the same, so two builds are equal.
"""

from __future__ import annotations

import argparse
import json
import struct
import zipfile
from pathlib import Path

PAGE = 16_384
EXTRA_ALIGNMENT = 0xD935
"""The extra field by which signing tools learn the alignment of an entry, and keep it."""


def add(out: zipfile.ZipFile, name: str, data: bytes, stored: bool) -> None:
    info = zipfile.ZipInfo(name, (1981, 1, 1, 1, 1, 2))
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    if stored:
        alignment = PAGE if name.endswith(".so") else 4
        # 30 bytes of header, the name, and 6 bytes before the padding of this field.
        padding = -(out.start_dir + 30 + len(name.encode()) + 6) % alignment
        info.extra = struct.pack("<HHH", EXTRA_ALIGNMENT, 2 + padding, alignment) + bytes(padding)
    out.writestr(info, data, compresslevel=9)


def app_files(bundle: Path) -> list[Path]:
    """What the app needs of a bundle: the int8 .onnx (else the best there is), the labels and bundle.json."""
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    kinds = ["int8", "int8-static", "fp32"]
    onnx = sorted((kinds.index(f["kind"]), f["name"]) for f in files if f["name"].endswith(".onnx"))
    if not onnx:
        raise SystemExit(f"pack.py: {bundle} has no .onnx file: export it with --format onnx --int8")
    return [bundle / "bundle.json", bundle / "labels.txt", bundle / onnx[0][1]]


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("out", "base", "dex", "jni", "abi", "bundle"):
        parser.add_argument(name, type=str if name == "abi" else Path)
    parser.add_argument("--stored-libraries", action="store_true")
    a = parser.parse_args()
    with zipfile.ZipFile(a.out, "w") as out:
        with zipfile.ZipFile(a.base) as base:
            for i in base.infolist():
                add(out, i.filename, base.read(i), i.compress_type == zipfile.ZIP_STORED)
        add(out, "classes.dex", a.dex.read_bytes(), False)
        for library in sorted((a.jni / a.abi).glob("*.so")):
            add(out, f"lib/{a.abi}/{library.name}", library.read_bytes(), a.stored_libraries)
        for file in app_files(a.bundle):
            add(out, f"assets/bundle/{file.name}", file.read_bytes(), file.suffix == ".onnx")


if __name__ == "__main__":
    main()
