"""The model files that `check` and `bench` measure, each with the package that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.errors import InputError
from ced_edge.runtime.backends import installed, packages
from ced_edge.runtime.bundle import Bundle, ModelFile


def window(bundle: Bundle) -> Float32:
    """A full window of noise, always the same: (window_samples,)."""
    rng = np.random.default_rng(0)
    # Noise at -20 dB, and not silence: denormal numbers change how fast arithmetic runs.
    return (0.1 * rng.standard_normal(bundle.window_samples)).astype(np.float32)


@dataclass(frozen=True)
class Target:
    """A model file of a bundle, and the package that runs it."""

    bundle: Bundle
    file: ModelFile
    runtime: str
    """Name of the package; empty where none that runs this file is installed."""

    @property
    def name(self) -> str:
        """File and runtime, for messages."""
        return f"{self.bundle.path(self.file)} on {self.runtime}"


def targets(bundle: Bundle, runtime: str | None = None, **wanted: str | None) -> list[Target]:
    """Every model file that fits (see `Bundle.fitting`), once per installed runtime, or on `runtime` alone.

    A file that no installed package runs gets the runtime "". Raises InputError when `runtime` runs none of them.
    """
    files = bundle.fitting(**wanted)
    if runtime is None:
        return [Target(bundle, f, package) for f in files for package in installed(f.format) or [""]]
    on_runtime = [Target(bundle, f, runtime) for f in files if runtime in installed(f.format)]
    if not on_runtime:
        there = sorted({package for f in files for package in installed(f.format)})
        raise InputError(f"no file of {bundle.folder} runs on {runtime!r} here: there is {', '.join(there) or 'none'}")
    return on_runtime


def install_advice(targets: Sequence[Target]) -> str:
    """The message for targets without a runtime: which files they are, and which packages run their formats."""
    files = ", ".join(target.file.name for target in targets)
    wanted = " ".join(dict.fromkeys(packages(target.file.format)[0] for target in targets))
    return f"nothing here runs {files}: pip install {wanted}"


def fp32_target(target: Target) -> Target | None:
    """The fp32 file that can take whatever input `target` takes: the .onnx beside it, else one of its own format.

    None where the bundle has no such file, or nothing runs it.
    """
    # .onnx files have a free time axis, so they take the padded input of any other file.
    for format in dict.fromkeys(("onnx", target.file.format)):
        runtimes = [target.runtime] if format == target.file.format else installed(format)
        fp32 = [f for f in target.bundle.files if (f.kind, f.format) == ("fp32", format) and f != target.file]
        if runtimes and fp32:
            return Target(target.bundle, fp32[0], runtimes[0])
    return None
