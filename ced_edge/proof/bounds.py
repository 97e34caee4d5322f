"""What a model file may lose, take and weigh before `ced-edge check` fails: one set of bounds per kind of file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from ced_edge.runtime.bundle import KINDS

NONE = math.inf


def _bound(default: float, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Bounds:
    """Bounds of one kind of file; `inf` is none.

    Clips that a file's window cuts or fills up otherwise than the checkpoint heard them are a case of their own: a
    .tflite file has one fixed input, and a shorter clip is repeated to fill it. What that changes (0.05 and more in
    single probabilities) is no fault of the conversion, so such clips are not held to the reference's probabilities,
    and the mAP may fall by `max_window_drop` more. They are held to the fp32 .onnx of the bundle instead, which is
    given the same to hear. Over clips of exactly a window, or in a file with a free time axis, nothing is let off.
    """

    max_drop: float = _bound(NONE, "Largest loss of mAP.")
    max_class_drop: float = _bound(NONE, "Largest loss of average precision of any class.")
    max_error: float = _bound(NONE, "Largest difference of any probability.")
    max_noise: float = _bound(
        NONE, "Largest RMS error of probabilities, as a share of how far they vary between clips."
    )
    min_top1: float = _bound(0.0, "Smallest share of clips whose likeliest class is the same.")
    max_window_drop: float = _bound(0.01, "Loss of mAP allowed besides where a fixed window repeats or cuts clips.")
    max_latency_ms: float = _bound(NONE, "Longest median time for a full window.")
    max_size_mb: float = _bound(NONE, "Largest model file, in 1e6 bytes.")
    max_memory_mb: float = _bound(NONE, "Most memory of a process that tags, in 1e6 bytes.")

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


DEFAULTS: dict[str, Bounds] = {
    "fp32": Bounds(max_drop=1e-3, max_class_drop=0.01, max_error=1e-4, max_noise=1e-3, min_top1=0.99),
    "int8": Bounds(max_drop=2e-3, max_class_drop=0.05, max_noise=0.05, min_top1=0.9),
    "int8-static": Bounds(max_drop=0.01, max_class_drop=0.1, max_noise=0.1, min_top1=0.9),
}


def bounds(table: Mapping[str, Any], flags: Mapping[str, float | None], origin: str = "bounds") -> dict[str, Bounds]:
    """Kind -> bounds: `flags` that are not None over the table of a kind over the table itself over the defaults.

    Raises InputError naming all unknown keys, wrong types and bad values.
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
    found: dict[str, Bounds] = {}
    for kind, part in kinds.items():
        try:
            found[kind] = dataclasses.replace(DEFAULTS[kind], **{**general, **part, **given})
        except InputError as e:
            problems += [p for p in str(e).split("; ") if p not in problems]
    if problems:
        raise InputError(f"{origin}: " + "; ".join(problems))
    return found


def read_bounds(folder: Path, flags: Mapping[str, float | None]) -> dict[str, Bounds]:
    """Bounds from `[tool.ced-edge.check]` of the pyproject.toml in `folder`, where there is one, below `flags`."""
    path, section = folder / "pyproject.toml", "[tool.ced-edge.check]"
    table: Any = read_toml(path) if path.exists() else {}
    for key in ("tool", "ced-edge", "check"):
        if key == "check" and (others := sorted(set(table) - {key})):
            raise InputError(f"{path}: unknown table [tool.ced-edge.{others[0]}]; there is {section}")
        table = table.get(key, {})
        if not isinstance(table, Mapping):
            raise InputError(f"{path}: {section} must be a table")
    return bounds(table, flags, f"{path} {section}" if table else "bounds")
