"""How a student is trained: one dataclass, checked as a whole, read from TOML or from flags."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from ced_edge.spec import SIZES


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """Training of a student. The learning rate rises linearly over `warmup` and falls as a cosine to 0."""

    size: str = _option("tiny", "tiny, mini, small or base.")
    steps: int = _option(0, "Optimiser steps; 0: every stored epoch `repeats` times.")
    batch: int = _option(64, "Views per step, over all processes.")
    repeats: int = _option(1, "How often each stored epoch is heard before the next.")
    lr: float = _option(2e-3, "Highest learning rate; 7e-4 suits --optimizer adamw.")
    weight_decay: float = _option(0.05, "Of matrices only.")
    warmup: float = _option(0.05, "Share of the steps over which the learning rate rises.")
    clip: float = _option(1.0, "Largest norm of the gradient.")
    ema: float = _option(0.998, "Decay per step of the averaged weights, which are what is saved; 0: none.")
    bce: float = _option(1.0, "Weight of the binary cross-entropy, mean over classes.")
    kl: float = _option(0.2, "Weight of the top-K softmax term (see `losses.top_k_kl`).")
    fill: str = _option("tail", "Rule for the classes outside the top K: tail, smallest (published) or zero.")
    optimizer: str = _option("muon", "muon (the matrices of the blocks by Muon, the rest by AdamW), or adamw for all.")
    prior_bias: bool = _option(True, "Start the head's bias at the classes' mean probability.")
    random_offset: bool = _option(
        True, "Place windows anywhere in the time embedding, so that short ones train all of it."
    )
    compile: bool = _option(False, "torch.compile the student.")
    precision: str = _option("auto", "fp32, bf16, or auto: bf16 where the hardware multiplies in it.")
    seed: int = _option(0, "Of the initial weights and the offsets.")
    workers: int = _option(1, "Processes that render views, per training process.")
    checkpoint_minutes: float = _option(5.0, "Minutes between two checkpoints.")
    log_every: int = _option(10, "Steps between two lines of the log.")

    def __post_init__(self) -> None:
        at_least = {"steps": 0, "batch": 1, "repeats": 1, "weight_decay": 0, "bce": 0, "kl": 0}
        at_least |= {"seed": 0, "workers": 0, "checkpoint_minutes": 0, "log_every": 1}
        above_zero = ("lr", "clip")
        shares = ("warmup", "ema")
        chosen = {
            "size": tuple(SIZES),
            "fill": ("tail", "smallest", "zero"),
            "optimizer": ("adamw", "muon"),
            "precision": ("auto", "fp32", "bf16"),
        }
        get = self.to_dict().__getitem__
        # The comparisons are written so that NaN is a problem too.
        problems = [
            f"{flag(n)} must be at least {low}, not {get(n)}"
            for n, low in at_least.items()
            if not low <= get(n) < math.inf
        ]
        problems += [f"{flag(n)} must be above 0, not {get(n)}" for n in above_zero if not 0 < get(n) < math.inf]
        problems += [f"{flag(n)} must be from 0 to below 1, not {get(n)}" for n in shares if not 0 <= get(n) < 1]
        problems += [
            f"unknown {flag(n)} {get(n)!r}: choose one of {', '.join(v)}" for n, v in chosen.items() if get(n) not in v
        ]
        if self.bce == self.kl == 0:
            problems.append("--bce and --kl must not both be 0")
        if self.seed >= 2**63:
            problems.append(f"--seed must be below 2^63, not {self.seed}")
        if problems:
            raise InputError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], origin: str = "config") -> TrainConfig:
        """The inverse of `to_dict`. Raises InputError naming all unknown keys and wrong types."""
        known = {f.name: type(f.default) for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        problems = [f"unknown key {', '.join(unknown)}; there are {', '.join(known)}"] if unknown else []
        for name, value in fields.items():
            kind = known.get(name, type(value))
            # A whole number is a float as well, but True is no number.
            if type(value) is not kind and not (kind is float and type(value) is int):
                problems.append(f"{name} must be of type {kind.__name__}, not {value!r}")
        if problems:
            raise InputError(f"{origin}: " + "; ".join(problems))
        return cls(**fields)

    @classmethod
    def read(cls, path: Path, **defaults: Any) -> TrainConfig:
        """Read a TOML file whose keys are fields of this class; `defaults` go before the class's own."""
        return cls.from_dict({**defaults, **read_toml(path)}, str(path))


def flag(name: str) -> str:
    """A field's name as the flag that sets it."""
    return "--" + name.replace("_", "-")
