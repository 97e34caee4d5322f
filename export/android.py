"""An APK of the demonstration app around a bundle, built by android_demo/build_apk.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import sha256_file
from ced_edge.runtime.bundle import read_bundle

DEMO = Path(__file__).resolve().parents[1] / "android_demo"
ABIS = ("arm64-v8a", "armeabi-v7a", "x86_64")
"""Kinds of processors, the one of almost every phone first."""


@dataclass(frozen=True)
class Apk:
    """An APK that was built."""

    path: Path
    abi: str
    model: str
    """Name of the model file in it."""
    bytes: int
    sha256: str


def demo_folder() -> Path:
    """The app's source: beside this package, else in the current folder. Raises InputError where it is in neither."""
    for folder in (DEMO, Path("android_demo").absolute()):
        if (folder / "build_apk.sh").is_file():
            return folder
    raise InputError("the app's source, android_demo, is not here: run this in the folder of a clone of the repository")


def check_build(out: Path) -> None:
    """Raise InputError when this machine cannot build an APK, or `out` is no name for one."""
    if out.suffix != ".apk":
        raise InputError(f"{out}: give the APK a name that ends in .apk")
    fetch = demo_folder() / "fetch" / "fetch.py"
    done = subprocess.run([sys.executable, fetch, "--missing"], capture_output=True, text=True)
    if done.returncode:
        raise InputError(done.stderr.strip())
    if missing := done.stdout.strip():
        raise InputError(f"the Android build needs more programs: apt-get install {missing}")


def build_apk(bundle: Path, out: Path, abi: str = ABIS[0]) -> Apk:
    """Build an APK with the bundle's int8 .onnx file (else its best .onnx file) and write it to `out`.

    The build's own output goes to stderr. Raises InputError where the bundle or a program is missing, CedEdgeError
    where the build fails.
    """
    model = read_bundle(bundle).file(format="onnx").name
    check_build(out)
    # With STORED the script would build another kind of APK, under another name.
    environment = {name: value for name, value in os.environ.items() if name != "STORED"}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        script = demo_folder() / "build_apk.sh"
        done = subprocess.run([script, bundle, folder, abi], stdout=sys.stderr, env=environment)
        if done.returncode:
            raise CedEdgeError(f"{script.name} failed with exit code {done.returncode}; its messages are above")
        shutil.move(Path(folder) / f"ced-edge-{abi}.apk", out)
    return Apk(out, abi, model, out.stat().st_size, sha256_file(out))
