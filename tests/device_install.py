"""The device install is small, has no torch, shows --help fast, and tags a sound at once.

Run it in an environment that has nothing else:

    python -m venv device && device/bin/pip install . && device/bin/python tests/device_install.py

It prints one line of figures. The exit code is 1 if one of them is too high.
"""

from __future__ import annotations

import importlib.util
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import wave
from collections import Counter
from pathlib import Path

KINDS = ("purelib", "platlib")
MAX_MB = 160
MAX_HELP_S = 0.5
UNWANTED = ("torch", "torchaudio", "scipy", "sklearn", "pyarrow", "matplotlib", "transformers")
INSTALLERS = ("pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack")
"""Packages of every new environment. A device does not need them."""


def sizes_mb(folder: Path) -> Counter[str]:
    """Megabytes (10^6 bytes) of each thing in an environment's folder of packages, without the installers."""
    sizes: Counter[str] = Counter()
    for f in folder.rglob("*"):
        top = f.relative_to(folder).parts[0]
        if f.is_file() and not f.is_symlink() and top.partition("-")[0] not in INSTALLERS:
            sizes[top] += f.stat().st_size / 1e6
    return sizes


def help_seconds(times: int = 5) -> float:
    """Median wall time of `ced-edge --help`, after one run that warms the disk cache."""
    program = Path(sysconfig.get_path("scripts")) / "ced-edge"
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        done = subprocess.run([program, "--help"], capture_output=True, text=True, check=True)
        taken.append(time.perf_counter() - start)
        assert "Usage: " in done.stdout
    return statistics.median(taken[1:])


def tag() -> str:
    """The tags of a second of noise by the bundle of the package, as `ced-edge tag` prints them."""
    program = Path(sysconfig.get_path("scripts")) / "ced-edge"
    with tempfile.TemporaryDirectory() as folder:
        with wave.open(str(Path(folder) / "noise.wav"), "wb") as f:
            f.setparams((1, 2, 16_000, 0, "NONE", ""))
            f.writeframes(random.Random(0).randbytes(32_000))
        done = subprocess.run([program, "tag", "noise.wav"], cwd=folder, capture_output=True, text=True, check=True)
    assert "using the bundle of this package" in done.stderr
    return done.stdout


def main() -> int:
    assert "noise.wav" in tag()
    unwanted = [name for name in UNWANTED if importlib.util.find_spec(name)]
    sizes = sum((sizes_mb(Path(folder)) for folder in {sysconfig.get_path(kind) for kind in KINDS}), Counter())
    megabytes, seconds = sizes.total(), help_seconds()
    print(
        f"device install: {megabytes:.1f} MB (limit {MAX_MB}), ced-edge --help in {seconds:.3f} s (limit {MAX_HELP_S})"
    )
    if unwanted:
        print(f"not part of the device install, but installed: {', '.join(unwanted)}", file=sys.stderr)
    if megabytes >= MAX_MB:
        largest = ", ".join(f"{name} {mb:.0f} MB" for name, mb in sizes.most_common(5))
        print(f"the largest: {largest}", file=sys.stderr)
    return int(bool(unwanted) or megabytes >= MAX_MB or seconds >= MAX_HELP_S)


if __name__ == "__main__":
    sys.exit(main())
