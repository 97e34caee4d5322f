"""How a student is trained and warmed up: dataclasses, checked as a whole, read from TOML or from flags."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ced_edge.errors import InputError
from ced_edge.files import read_toml
from ced_edge.spec import SIZES

C = TypeVar("C", bound="Config")


class Rule(NamedTuple):
    """What a value must be. NaN is nothing of all this."""

    text: str
    holds: Callable[[Any], bool]


ONE_OR_MORE = Rule("at least 1", lambda x: 1 <= x < math.inf)
NOT_NEGATIVE = Rule("at least 0", lambda x: 0 <= x < math.inf)
POSITIVE = Rule("above 0", lambda x: 0 < x < math.inf)
SHARE = Rule("from 0 to below 1", lambda x: 0 <= x < 1)
CHANCE = Rule("from 0 to 1", lambda x: 0 <= x <= 1)
SEED = Rule("from 0 to below 2^63", lambda x: 0 <= x < 2**63)
HEAD_WIDTH = 32
"""Channels per attention head of a warm-up's decoder."""


def one_of(values: Collection[str]) -> Rule:
    """One of a few words."""
    return Rule(f"one of {', '.join(values)}", values.__contains__)


def _option(default: Any, text: str, rule: Rule | None = None, later: bool = False) -> Any:
    """A field with its help text. `later`: runs exist that were begun before this field, with its default."""
    return field(default=default, metadata={"help": text, "rule": rule, "later": later})


@dataclass(frozen=True)
class Config:
    """What training and warm-up share. The learning rate rises linearly over `warmup` and falls as a cosine to 0."""

    size: str = _option("tiny", "tiny, mini, small or base.", one_of(SIZES))
    batch: int = _option(64, "Views per step, over all processes.", ONE_OR_MORE)
    optimizer: str = _option(
        "muon",
        "muon (the matrices of the blocks by Muon, the rest by AdamW), or adamw for all.",
        one_of(("adamw", "muon")),
    )
    lr: float = _option(2e-3, "Highest learning rate; 7e-4 suits --optimizer adamw.", POSITIVE)
    weight_decay: float = _option(0.05, "Weight decay, of matrices only.", NOT_NEGATIVE)
    warmup: float = _option(0.05, "Share of the steps over which the learning rate rises.", SHARE)
    clip: float = _option(1.0, "Largest norm of the gradient.", POSITIVE)
    precision: str = _option(
        "auto", "fp32, bf16, or auto: bf16 where the hardware is faster in it.", one_of(("auto", "fp32", "bf16"))
    )
    seed: int = _option(0, "Seed of the initial weights and of all random numbers in training.", SEED)
    workers: int = _option(1, "Processes that read and render audio, per training process.", NOT_NEGATIVE)
    checkpoint_minutes: float = _option(5.0, "Minutes between two checkpoints.", NOT_NEGATIVE)
    log_every: int = _option(10, "Steps between two lines of the log.", ONE_OR_MORE)

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise InputError("; ".join(problems))

    def problems(self) -> list[str]:
        """What is wrong with the values, by flag."""
        values = [(flag(f.name), f.metadata["rule"], getattr(self, f.name)) for f in dataclasses.fields(self)]
        return [f"{name} must be {rule.text}, not {x!r}" for name, rule, x in values if rule and not rule.holds(x)]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        # A `later` field is left out at its default, so that older runs continue and have the same bytes.
        fields = {f.name: f for f in dataclasses.fields(self)}
        values = dataclasses.asdict(self).items()
        return {k: v for k, v in values if not (fields[k].metadata["later"] and v == fields[k].default)}

    @classmethod
    def from_dict(cls: type[C], fields: dict[str, Any], origin: str = "config") -> C:
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
    def read(cls: type[C], path: Path, **defaults: Any) -> C:
        """Read a TOML file whose keys are fields of this class; `defaults` go before the class's own."""
        return cls.from_dict({**defaults, **read_toml(path)}, str(path))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Training of a student from a store."""

    steps: int = _option(0, "Optimiser steps; 0: every stored epoch `repeats` times.", NOT_NEGATIVE)
    repeats: int = _option(1, "Passes that use each stored epoch before the next one.", ONE_OR_MORE)
    ema: float = _option(0.998, "Decay per step of the averaged weights, which are what is saved; 0: none.", SHARE)
    bce: float = _option(1.0, "Weight of the binary cross-entropy, mean over classes.", NOT_NEGATIVE)
    kl: float = _option(0.2, "Weight of the top-K softmax term (see `losses.top_k_kl`).", NOT_NEGATIVE)
    fill: str = _option(
        "tail",
        "Rule for the classes outside the top K: tail, smallest (published) or zero.",
        one_of(("tail", "smallest", "zero")),
    )
    prior_bias: bool = _option(True, "Start the head's bias at the classes' mean probability.")
    random_offset: bool = _option(
        True, "Place windows anywhere in the time embedding, so that short ones train all of it."
    )
    compile: bool = _option(False, "torch.compile the student.")
    patchout: float = _option(0.0, "Share of each view's patches that is dropped in training.", SHARE, later=True)
    patchout_kind: str = _option(
        "unstructured",
        "Patches to drop: unstructured (any), or structured (whole rows and columns).",
        one_of(("unstructured", "structured")),
        later=True,
    )
    balance: float = _option(
        0.0, "Use clips with rare sounds more often: 0 all equally, 1 all classes equally.", CHANCE, later=True
    )
    gain: float = _option(0.0, "Chance that the student gets a view at another level, -40 to 6 dB.", CHANCE, later=True)
    noise: float = _option(
        0.0, "Chance that the student gets a view with noise, 5 to 40 dB below it.", CHANCE, later=True
    )
    band: float = _option(0.0, "Chance that the student gets a view in a small microphone's band.", CHANCE, later=True)
    reverb: float = _option(0.0, "Chance that the student gets a view with a room's reverberation.", CHANCE, later=True)

    def problems(self) -> list[str]:
        return super().problems() + ["--bce and --kl must not both be 0"] * (self.bce == self.kl == 0)


@dataclass(frozen=True)
class PretrainConfig(Config):
    """A masked-autoencoder warm-up."""

    steps: int = _option(2_000, "Optimiser steps.", ONE_OR_MORE)
    batch: int = _option(128, "Windows per step, over all processes.", ONE_OR_MORE)
    seconds: float = _option(2.0, "Length of a window.", Rule("within 0.5 and 10", lambda x: 0.5 <= x <= 10))
    mask: float = _option(
        0.75, "Share of the patches that is hidden from the student.", Rule("between 0 and 1", lambda x: 0 < x < 1)
    )
    decoder_width: int = _option(
        128,
        f"Channels of the decoder, a multiple of {HEAD_WIDTH}.",
        Rule(f"a multiple of {HEAD_WIDTH}", lambda x: x >= HEAD_WIDTH and x % HEAD_WIDTH == 0),
    )
    decoder_depth: int = _option(2, "Blocks of the decoder.", ONE_OR_MORE)
    sinusoids: bool = _option(True, "Start the position embeddings as sinusoids: patches differ from the start.")


def flag(name: str) -> str:
    """A field's name as the flag that sets it."""
    return "--" + name.replace("_", "-")
