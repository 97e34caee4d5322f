"""Which model file runs on which package: what check and bench measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.errors import InputError
from ced_edge.runtime.backends import installed
from ced_edge.runtime.bundle import Bundle, ModelFile


def window(bundle: Bundle) -> Float32:
    """A full window of noise, always the same: (window_samples,)."""
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal(bundle.window_samples)).astype(np.float32)


@dataclass(frozen=True)
class Target:
    """A model file of a bundle, and the package that is to run it."""

    bundle: Bundle
    file: ModelFile
    runtime: str

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.bundle.path(self.file)} on {self.runtime}"


def targets(bundle: Bundle, runtime: str | None = None, **wanted: str | None) -> list[Target]:
    """Every model file that fits (see `Bundle.fitting`), on every runtime that is installed, or on `runtime` alone.

    A file that nothing here runs comes with the runtime "". Raises InputError when no file is left.
    """
    files = bundle.fitting(**wanted)
    if runtime is None:
        return [Target(bundle, f, package) for f in files for package in installed(f.format) or [""]]
    found = [Target(bundle, f, runtime) for f in files if runtime in installed(f.format)]
    if not found:
        there = sorted({package for f in files for package in installed(f.format)})
        raise InputError(f"no file of {bundle.folder} runs on {runtime!r} here: there is {', '.join(there) or 'none'}")
    return found


def fp32_target(target: Target) -> Target | None:
    """The fp32 file that can hear whatever `target` hears: the .onnx beside it, else the one of its own format."""
    for format in dict.fromkeys(("onnx", target.file.format)):
        runtimes = [target.runtime] if format == target.file.format else installed(format)
        fp32 = [f for f in target.bundle.files if (f.kind, f.format) == ("fp32", format) and f != target.file]
        if runtimes and fp32:
            return Target(target.bundle, fp32[0], runtimes[0])
    return None
