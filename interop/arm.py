"""Run the model files of a bundle on emulated ARM, and compare the predictions with those on this machine.

`arm.py BUNDLE` tests numerics, not speed: an emulator shows nothing about the speed of a phone. The first run fills
.venv/arm with a Debian for arm64 that has Python 3.11 (unpacked by mmdebstrap, not set up), qemu 10 from Debian trixie,
and aarch64 wheels of the same runtime versions as on this machine. It needs Linux on x86-64 and
`apt-get install mmdebstrap`. The exit code is 1 if the predictions of a file differ by more than MAX_ERROR.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.frontend import log_mel
from ced_edge.runtime.bundle import Bundle, read_bundle
from distill.demo.synth import synthesise

ROOT = Path(__file__).resolve().parents[1]
ARM = ROOT / ".venv" / "arm"
RUNTIMES = ("onnxruntime", "ai-edge-litert", "numpy")
MAX_ERROR = {"fp32": 1e-5, "int8": 5e-3, "int8-static": 5e-3}
"""Largest difference of a probability. int8 kernels of different processors round differently."""
MIN_TOP5 = 0.95
"""Least share of the five highest classes that must be the same, over all clips; see `compare`."""


def unpack(suite: str, architecture: str, *packages: str) -> Callable[[Path], None]:
    """A function that unpacks Debian packages and their dependencies into a folder, without setting them up."""
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={architecture}"]
    if not shutil.which(command[0]):
        raise InputError("mmdebstrap fetches Debian's files: apt-get install mmdebstrap")
    return lambda folder: _run([*command, f"--include={','.join(packages)}", suite, str(folder)])


def emulator(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=ARM) as folder:
        unpack("trixie", "amd64", "qemu-user")(Path(folder) / "x")
        shutil.copy(Path(folder) / "x/usr/bin/qemu-aarch64", path)  # static, so 450 MB can go


def debian(folder: Path) -> None:
    unpack("bookworm", "arm64", "python3-minimal", "libpython3.11-stdlib", "libstdc++6")(folder)
    # onnxruntime counts the processors in this folder. Without it, onnxruntime would count those of the real machine.
    cpu = folder / "sys/devices/system/cpu"
    cpu.mkdir(parents=True)
    for name in ("possible", "present"):
        (cpu / name).write_text("0\n")


def wheels(folder: Path) -> None:
    platforms = [f"--platform=manylinux_2_{n}_aarch64" for n in (28, 27, 26, 24, 17)] + [
        "--platform=manylinux2014_aarch64"
    ]
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in RUNTIMES]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-warn-conflicts", f"--target={folder}"]
    _run([*pip, "--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms, *pinned])


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder `name` in .venv/arm; `make` makes it if it is missing. An interrupted one is made again."""
    path = ARM / name
    if not path.exists():
        print(f"fetching {path}", file=sys.stderr)
        ARM.mkdir(parents=True, exist_ok=True)
        part = ARM / f"{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        make(part)
        part.rename(path)
    return path


def inputs(bundle: Bundle, clips: int) -> NDArray[np.float32]:
    """Synthesised sounds as input for the bundle's files: (N, samples) or (N, n_mels, frames)."""
    waves = [synthesise(i, 1, bundle.window_s)[0] for i in range(clips)]
    return np.stack([log_mel(w, bundle.spec.frontend) if bundle.input == "mel" else w for w in waves])


def compare(here: NDArray[np.float32], arm: NDArray[np.float32], tie: float) -> tuple[float, float]:
    """Two arrays of probabilities (N, C) -> largest difference, and share of ARM's top five that are top five here.

    A class less than `tie` below the fifth counts as top five, because rounding decides which of such classes is fifth.
    """
    fifth = np.sort(here, axis=1)[:, -5, None]
    chosen = np.take_along_axis(here, np.argsort(-arm, axis=1)[:, :5], axis=1)
    return float(np.abs(here - arm).max()), float(np.mean(chosen >= fifth - tie))


def _run(command: list[str], **environment: str) -> None:
    done = subprocess.run(command, env=os.environ | environment)
    if done.returncode:
        raise CedEdgeError(f"{Path(command[0]).name} failed (exit code {done.returncode})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=4)
    args = parser.parse_args()
    bundle = read_bundle(args.bundle)
    qemu, root = once("qemu-aarch64", emulator), once("rootfs", debian)
    site = once("-".join(["site", *(importlib.metadata.version(r) for r in RUNTIMES)]), wheels)
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/inputs.npy", inputs(bundle, args.clips))
        task = [f"{folder}/inputs.npy", *(str(bundle.path(f)) for f in bundle.files)]
        script = str(ROOT / "interop/answer.py")
        _run([sys.executable, script, f"{folder}/here.npz", *task], PYTHONPATH=str(ROOT))
        # qemu's default processor has features that no phone has, and is slow.
        emulated = [str(qemu), "-cpu", "cortex-a76", "-L", str(root), f"{root}/usr/bin/python3.11", script]
        _run([*emulated, f"{folder}/arm.npz", *task], PYTHONPATH=f"{site}:{ROOT}")
        here, arm = np.load(f"{folder}/here.npz"), np.load(f"{folder}/arm.npz")
    failed = 0
    print(f"{'file':24} {'max error':>9} {'top-5':>6}")
    for f in bundle.files:
        error, top5 = compare(here[f.name], arm[f.name], MAX_ERROR[f.kind])
        bad = not error <= MAX_ERROR[f.kind] or top5 < MIN_TOP5  # NaN is bad as well
        failed += bad
        print(f"{f.name:24} {error:9.1e} {top5:6.1%}{'  FAILED' if bad else ''}")
    return int(failed > 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CedEdgeError as e:
        sys.exit(f"arm.py: {e}")
