"""How a student is trained: one dataclass, checked as a whole, read from TOML or from flags."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ced_edge.errors import InputError
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
    lr: float = _option(7e-4, "Highest learning rate, of AdamW.")
    weight_decay: float = _option(0.05, "Of matrices only.")
    warmup: float = _option(0.05, "Share of the steps over which the learning rate rises.")
    clip: float = _option(1.0, "Largest norm of the gradient.")
    ema: float = _option(0.998, "Decay per step of the averaged weights, which are what is saved; 0: none.")
    bce: float = _option(1.0, "Weight of the binary cross-entropy, mean over classes.")
    kl: float = _option(0.2, "Weight of the top-K softmax term (see `losses.top_k_kl`).")
    fill: str = _option("tail", "Rule for the classes outside the top K: tail, smallest (published) or zero.")
    optimizer: str = _option("adamw", "adamw; or muon (matrices of the blocks by Muon, the rest by AdamW).")
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
        at_least = {"steps": 0, "batch": 1, "repeats": 1, "workers": 0, "log_every": 1, "checkpoint_minutes": 0}
        above_zero = ("lr", "clip")
        shares = ("warmup", "ema")
        chosen = {
            "size": tuple(SIZES),
            "fill": ("tail", "smallest", "zero"),
            "optimizer": ("adamw", "muon"),
            "precision": ("auto", "fp32", "bf16"),
        }

        def get(name: str) -> Any:
            return getattr(self, name)

        problems = [f"{flag(n)} must be at least {low}, not {get(n)}" for n, low in at_least.items() if get(n) < low]
        problems += [f"{flag(n)} must be above 0, not {get(n)}" for n in above_zero if not get(n) > 0]
        problems += [f"{flag(n)} must be from 0 to below 1, not {get(n)}" for n in shares if not 0 <= get(n) < 1]
        problems += [
            f"unknown {flag(n)} {get(n)!r}: choose one of {', '.join(v)}" for n, v in chosen.items() if get(n) not in v
        ]
        if min(self.bce, self.kl) < 0 or self.bce + self.kl == 0:
            problems.append("--bce and --kl must not be negative, nor both 0")
        if problems:
            raise InputError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any], origin: str = "config") -> TrainConfig:
        """The inverse of `to_dict`. Raises InputError on unknown keys and wrong types."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise InputError(f"{origin}: unknown key {', '.join(unknown)}; there are {', '.join(known)}")
        for name, value in fields.items():
            kind = type(known[name].default)
            kinds = (int, float) if kind is float else (kind,)
            if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
                raise InputError(f"{origin}: {name} must be a {kind.__name__}, not {value!r}")
        return cls(**fields)

    @classmethod
    def read(cls, path: Path) -> TrainConfig:
        """Read a TOML file whose keys are the fields of this class."""
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            return cls.from_dict(tomllib.loads(path.read_text()), str(path))
        except FileNotFoundError as e:
            raise InputError(f"no such file: {path}") from e
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
            raise InputError(f"{path} is not readable TOML: {e}") from e


def flag(name: str) -> str:
    """A field's name as the flag that sets it."""
    return "--" + name.replace("_", "-")
