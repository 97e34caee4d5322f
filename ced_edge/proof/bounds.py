"""The bounds that a model file must keep, one set per kind of file. `check` and `export` read the same table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from ced_edge.proof.compare import Comparison
from ced_edge.runtime.bundle import KINDS

NONE = math.inf


def _bound(default: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Bounds:
    """Bounds for one kind of file. `inf` means no bound.

    Clips that the file cuts or pads differently than the checkpoint did are treated separately. A .tflite file has
    one fixed input length, so a shorter clip is repeated to fill it. That changes single probabilities by 0.05 and
    more, and the conversion is not to blame. Such clips are not compared with the reference's probabilities, and the
    mAP may fall by `max_window_drop` more. Instead they are compared with the fp32 .onnx file of the bundle, which
    is given the same padded input. Files with a free time axis, and clips of exactly one window, get no such
    allowance.
    """

    max_drop: float = _bound(NONE, "Largest loss of mAP.")
    max_class_drop: float = _bound(NONE, "Largest loss of average precision of any class.")
    max_error: float = _bound(NONE, "Largest difference of any probability.")
    max_noise: float = _bound(NONE, "Largest RMS error of probabilities, divided by how far they vary between clips.")
    min_top1: float = _bound(0.0, "Smallest share of clips with the same likeliest class.")
    max_window_drop: float = _bound(0.01, "Further loss of mAP allowed where a fixed window repeats or cuts clips.")
    max_latency_ms: float = _bound(NONE, "Longest median time for a full window.")
    max_size_mb: float = _bound(NONE, "Largest model file, in 1e6 bytes.")
    max_memory_mb: float = _bound(NONE, "Largest memory of a process that tags, in 1e6 bytes.")

    def __post_init__(self) -> None:
        problems = [
            f"{f.name} must be a number of at least 0, not {value}"
            for f in dataclasses.fields(self)
            if not (value := getattr(self, f.name)) >= 0
        ]
        if self.min_top1 > 1:
            problems.append(f"min_top1 must be at most 1, not {self.min_top1}")
        if problems:
            raise InputError("; ".join(problems))

    def only(self, *names: str) -> Bounds:
        """The bounds of these names alone; the others are no bound."""
        return Bounds(**{name: getattr(self, name) for name in names})


# Measured on a trained student and on models with random weights:
#   noise: fp32 below 2e-4, int8 0.007 to 0.028, int8-static 0.011 to 0.056; with 4-bit weights 0.104 to 0.45.
#   largest error over 968 real clips: int8 at most 0.023, int8-static 0.053.
# The noise is what catches weights of 4 bits: their largest error may be below 0.1, and on few clips their mAP may
# not fall at all. `max_error` of the int8 kinds is there for files that are plainly broken.
DEFAULTS: dict[str, Bounds] = {
    "fp32": Bounds(max_drop=1e-3, max_class_drop=0.01, max_error=1e-4, max_noise=1e-3, min_top1=0.99),
    "int8": Bounds(max_drop=2e-3, max_class_drop=0.05, max_error=0.1, max_noise=0.05, min_top1=0.9),
    "int8-static": Bounds(max_drop=0.01, max_class_drop=0.1, max_error=0.15, max_noise=0.1, min_top1=0.9),
}


def accuracy_problems(comparison: Comparison, bounds: Bounds, against: str = "") -> list[str]:
    """The bounds on accuracy that `comparison` breaks, in words; `against` names the expected predictions.

    A figure that is NaN breaks its bound. Probabilities are skipped where no clip had the same input.
    """
    c = comparison
    problems = over(f"mAP drop{against}", c.drop, bounds.max_drop)
    if over("", c.class_drop, bounds.max_class_drop):
        worst = "".join(name for name, _ in c.worst(1)) or "every class"
        problems += over(f"drop{against} of {worst}", c.class_drop, bounds.max_class_drop)
    if c.clips:
        problems += over(f"probability error{against}", c.max_error, bounds.max_error)
        problems += over(f"noise{against}", c.noise, bounds.max_noise)
        if not c.top1 >= bounds.min_top1:
            problems.append(f"top-1 agreement{against} {c.top1:.3f} is below {bounds.min_top1:g}")
    return problems


def over(what: str, value: float, limit: float) -> list[str]:
    """One problem where `value` is over `limit` or NaN, else none. A limit of `inf` is no limit."""
    return [] if limit == NONE or value <= limit else [f"{what} {value:.2g} is over {limit:g}"]


def bounds(table: Mapping[str, Any], flags: Mapping[str, float | None], origin: str = "bounds") -> dict[str, Bounds]:
    """Bounds per kind. In falling precedence: `flags` that are not None, the kind's own table, `table`, DEFAULTS.

    Raises InputError that names all unknown keys, wrong types and bad values. `origin` is where they were read.
    """
    known = [f.name for f in dataclasses.fields(Bounds)]
    kinds = {kind: table.get(kind, {}) for kind in KINDS}
    problems = [f"{kind} must be a table, not {t!r}" for kind, t in kinds.items() if not isinstance(t, Mapping)]
    general = {k: v for k, v in table.items() if k not in KINDS}
    for where, part in [("", general), *((f"{k}.", t) for k, t in kinds.items() if isinstance(t, Mapping))]:
        for key, value in part.items():
            if key not in known:
                problems.append(f"unknown key {where}{key}; there are {', '.join(known)} and tables {', '.join(KINDS)}")
            elif isinstance(value, bool) or not isinstance(value, int | float):
                problems.append(f"{where}{key} must be a number, not {value!r}")
    if problems:
        raise InputError(f"{origin}: " + "; ".join(problems))
    given = {k: v for k, v in flags.items() if v is not None}
    merged: dict[str, Bounds] = {}
    for kind, part in kinds.items():
        try:
            merged[kind] = dataclasses.replace(DEFAULTS[kind], **{**general, **part, **given})
        except InputError as e:
            problems += [p for p in str(e).split("; ") if p not in problems]
    if problems:
        raise InputError(f"{origin}: " + "; ".join(problems))
    return merged


def read_bounds(folder: Path, flags: Mapping[str, float | None]) -> dict[str, Bounds]:
    """Bounds from `flags`, then from `[tool.ced-edge.check]` of the pyproject.toml in `folder` if there is one.

    Raises InputError as `bounds` does, and where the file is not readable TOML.
    """
    path, section = folder / "pyproject.toml", "[tool.ced-edge.check]"
    table: Any = read_toml(path) if path.exists() else {}
    for key in ("tool", "ced-edge", "check"):
        if key == "check" and (others := sorted(set(table) - {key})):
            raise InputError(f"{path}: unknown table [tool.ced-edge.{others[0]}]; there is {section}")
        table = table.get(key, {})
        if not isinstance(table, Mapping):
            raise InputError(f"{path}: {section} must be a table")
    return bounds(table, flags, f"{path} {section}" if table else "bounds")
