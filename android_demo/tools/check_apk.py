"""Checks a finished APK: `check_apk.py APK...`. Prints a line per APK; exits with 1 and every fault otherwise.

Checked: the signature; package, SDKs, permissions (the list below and no other) and the launcher's activity; that every
class of the manifest is in the dex; that no telemetry is in; that every library's segments, and its place in the zip,
fit pages of 16 KB; that the bundle's files have the hashes of bundle.json; the size.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / ".venv" / "android"
PAGE = 16_384
MAX_ARM64_BYTES = 24_000_000
"""With the int8 model of the smallest size and compressed libraries."""
PERMISSIONS = {
    "RECORD_AUDIO",
    "MODIFY_AUDIO_SETTINGS",
    "FOREGROUND_SERVICE",
    "FOREGROUND_SERVICE_MICROPHONE",
    "POST_NOTIFICATIONS",
}
TELEMETRY = (b"events.data.microsoft", b"OneCollector", b"TelemetryInitializer", b"onnxruntime/telemetry")
"""Found in ONNX Runtime 1.29 for Android, and in no version before."""


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"check_apk.py: `{' '.join(command)}` failed: {done.stdout}{done.stderr}")
    return done.stdout


def dex_classes(dex: bytes) -> set[str]:
    """The classes that a dex file defines, as `a.b.C`."""

    def table(at: int, size: int) -> list[int]:
        count, offset = struct.unpack_from("<II", dex, at)
        return [offset + size * i for i in range(count)]

    def string(index: int) -> str:
        at = struct.unpack_from("<I", dex, strings[index])[0]
        while dex[at] & 0x80:  # the length, 7 bits a byte
            at += 1
        return dex[at + 1 : dex.index(b"\0", at + 1)].decode(errors="replace")

    strings, types, classes = table(0x38, 4), table(0x40, 4), table(0x60, 32)
    descriptors = (
        string(struct.unpack_from("<I", dex, types[struct.unpack_from("<I", dex, c)[0]])[0]) for c in classes
    )
    return {d[1:-1].replace("/", ".") for d in descriptors}


def elf_alignment(so: bytes) -> int:
    """The smallest alignment of an ELF file's loaded segments."""
    wide = so[4] == 2
    offset = struct.unpack_from("<Q", so, 32)[0] if wide else struct.unpack_from("<I", so, 28)[0]
    size, count = struct.unpack_from("<HH", so, 54 if wide else 42)
    headers = [so[offset + i * size : offset + (i + 1) * size] for i in range(count)]
    at = 48 if wide else 28
    return min(struct.unpack_from("<Q" if wide else "<I", h, at)[0] for h in headers if h[:4] == b"\x01\0\0\0")


def data_offset(apk: bytes, entry: zipfile.ZipInfo) -> int:
    name, extra = struct.unpack_from("<HH", apk, entry.header_offset + 26)
    return entry.header_offset + 30 + name + extra


def shared_library_faults(path: Path, unpacked_at_installation: bool) -> list[str]:
    faults, apk = [], path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        libraries = [i for i in archive.infolist() if i.filename.endswith(".so")]
        for i in libraries:
            if (alignment := elf_alignment(archive.read(i))) < PAGE:
                faults.append(f"{i.filename}: segments at multiples of {alignment}, not of 16 KB")
            stored = i.compress_type == zipfile.ZIP_STORED
            if stored and data_offset(apk, i) % PAGE:
                faults.append(f"{i.filename}: stored at {data_offset(apk, i)}, which is no multiple of 16 KB")
            if not stored and not unpacked_at_installation:
                faults.append(f"{i.filename}: compressed, and yet extractNativeLibs is false")
        if not libraries:
            faults.append("no library")
    return faults


def content_faults(path: Path) -> list[str]:
    """Telemetry and the bundle."""
    faults = []
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            if name.endswith((".so", ".dex", "AndroidManifest.xml")):
                data = archive.read(name)
                faults += [f"{name}: telemetry ({w.decode()})" for w in TELEMETRY if w in data]
        bundle = json.loads(archive.read("assets/bundle/bundle.json"))
        hashes = {f["name"]: f["sha256"] for f in bundle["files"]} | {"labels.txt": bundle["labels_sha256"]}
        assets = [n for n in names if n.startswith("assets/bundle/") and not n.endswith("bundle.json")]
        for name in assets:
            if hashlib.sha256(archive.read(name)).hexdigest() != hashes.get(name.rpartition("/")[2]):
                faults.append(f"{name}: another hash than in bundle.json")
        if sum(n.endswith(".onnx") for n in assets) != 1 or len(assets) != 2:
            faults.append(f"the bundle holds {assets}, not one .onnx file and labels.txt")
    return faults


def manifest_faults(path: Path) -> tuple[list[str], bool]:
    """Faults, and whether libraries are unpacked at installation."""
    aapt2 = str(TOOLS / "aapt" / "aapt2")
    badging = run(aapt2, "dump", "badging", str(path))
    tree = run(aapt2, "dump", "xmltree", "--file", "AndroidManifest.xml", str(path))
    faults = []
    for words in (
        "package: name='org.cededge.demo'",
        "minSdkVersion:'26'",
        "targetSdkVersion:'35'",
        "launchable-activity: name='org.cededge.demo.ui.MainActivity'",
    ):
        if words not in badging:
            faults.append(f"the manifest lacks {words}")
    permissions = set(re.findall(r"uses-permission[\w-]*: name='([\w.]+)'", badging))
    expected = {f"android.permission.{p}" for p in PERMISSIONS}
    faults += [f"permission {p}: not expected" for p in permissions - expected]
    faults += [f"permission {p}: missing" for p in expected - permissions]
    parts = re.findall(r"E: (application|activity|service|provider|receiver) .*?\n((?:\s+A: .*\n)*)", tree)
    named = [n for _, lines in parts for n in re.findall(r":name\(0x01010003\)=\"([\w.]+)\"", lines)]
    classes = {f"org.cededge.demo{n}" if n.startswith(".") else n for n in named}
    views = re.findall(r"class (org\.cededge\.demo\.ui\.\w+View)", (TOOLS / "build" / "manifest.pro").read_text())
    with zipfile.ZipFile(path) as archive:
        found = dex_classes(archive.read("classes.dex"))
    if len(classes) != 4 or len(views) != 3:
        faults.append(f"the manifest names {sorted(classes)} and the layouts {views}: 4 and 3 were expected")
    faults += [f"{name}: not in the dex" for name in sorted((classes | set(views)) - found)]
    faults += [f"{name}: telemetry" for name in sorted(found) if "telemetry" in name.lower()]
    return faults, "extractNativeLibs(0x010104ea)=true" in tree


def check(path: Path) -> list[str]:
    apksigner = ["java", "-cp", str(TOOLS / "sign/usr/share/java/*"), "com.android.apksigner.ApkSignerTool"]
    run(*apksigner, "verify", "--min-sdk-version", "26", str(path))
    faults, unpacked = manifest_faults(path)
    faults += shared_library_faults(path, unpacked) + content_faults(path)
    size = path.stat().st_size
    if "arm64" in path.name and unpacked and size > MAX_ARM64_BYTES:
        faults.append(f"{size} bytes: more than {MAX_ARM64_BYTES}")
    return faults


def main() -> None:
    bad = False
    for path in map(Path, sys.argv[1:]):
        faults = check(path)
        bad |= bool(faults)
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, {'ok' if not faults else 'FAULTS'}")
        print("".join(f"  {f}\n" for f in faults), end="")
    if bad or len(sys.argv) == 1:
        sys.exit(1)


if __name__ == "__main__":
    main()
