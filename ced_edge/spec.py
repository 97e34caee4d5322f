"""The sizes of the front end and of the model, with their units. A few numbers set all others."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ced_edge.errors import InputError

N_CLASSES = 527
"""AudioSet classes (the published 527-class label list)."""

# A spec may come from a file that somebody else wrote, and its numbers become sizes of arrays. The limits are far
# above every real model.
_FRONTEND_LIMITS = {"rate_hz": (1_000, 1_000_000), "n_fft": (2, 1 << 16), "hop": (1, 1 << 16), "n_mels": (1, 1 << 10)}
_MODEL_LIMITS = {
    "width": (1, 1 << 13),
    "heads": (1, 1 << 10),
    "depth": (1, 1 << 8),
    "mlp_ratio": (1, 1 << 6),
    "patch": (1, 1 << 10),
    "max_frames": (1, 1 << 16),
    "n_classes": (1, 1 << 20),
}
_MOST_REAL = 1 << 20
"""Largest `top_db` and `min_power`."""


@dataclass(frozen=True)
class FrontendSpec:
    """Log-mel front end of CED (arXiv 2308.11957, section 3.1).

    1. A power spectrogram with a periodic Hann window. Reflection pads the clip, so frames are centred.
    2. HTK mel bins without normalisation.
    3. Decibels, with a floor `top_db` below the maximum of the clip.

    Raises InputError, with every problem, on values that cannot be.
    """

    rate_hz: int = 16_000
    n_fft: int = 512
    """Samples per FFT, and length of the window."""
    hop: int = 160
    """Samples between frames: 10 ms."""
    n_mels: int = 64
    f_min_hz: float = 0.0
    f_max_hz: float = 8_000.0
    top_db: float = 120.0
    min_power: float = 1e-10

    def __post_init__(self) -> None:
        problems = _size_problems(self, _FRONTEND_LIMITS)
        reals = ("f_min_hz", "f_max_hz", "top_db", "min_power")
        values = {name: getattr(self, name) for name in reals}
        problems += [f"{name} {value!r:.40} is not a number" for name, value in values.items() if not is_number(value)]
        if not problems:
            if self.hop > self.n_fft:
                problems.append(f"hop {self.hop} is larger than n_fft {self.n_fft}, so samples would be left out")
            if not 0 <= self.f_min_hz < self.f_max_hz <= self.rate_hz / 2:
                problems.append(
                    f"{self.f_min_hz!r:.40} to {self.f_max_hz!r:.40} Hz is not a range between 0 and half of rate_hz"
                )
            problems += [f"{name} is not above 0" for name in reals[2:] if values[name] <= 0]
            problems += [f"{name} is above {_MOST_REAL}" for name in reals[2:] if values[name] > _MOST_REAL]
        _raise("front end", problems)

    @property
    def n_bins(self) -> int:
        """Frequency bins of the one-sided spectrum."""
        return self.n_fft // 2 + 1

    @property
    def min_samples(self) -> int:
        """Fewest samples of a clip. Reflection pads half a window, and needs one sample more than that."""
        return self.n_fft // 2 + 1

    def frames(self, samples: int) -> int:
        """Frames of a clip of `samples` samples (10 s -> 1001)."""
        return samples // self.hop + 1


@dataclass(frozen=True)
class ModelSpec:
    """A CED transformer. The published sizes differ in width and heads only.

    Raises InputError, with every problem, on values that cannot be.
    """

    width: int
    """Channels per token."""
    heads: int
    depth: int = 12
    """Transformer blocks."""
    mlp_ratio: int = 4
    patch: int = 16
    """Side of a square patch: mel bins by frames."""
    max_frames: int = 1_012
    """Longest input in frames (10.12 s); the time embedding has `max_frames // patch` columns."""
    n_classes: int = N_CLASSES
    frontend: FrontendSpec = dataclasses.field(default_factory=FrontendSpec)

    def __post_init__(self) -> None:
        problems = _size_problems(self, _MODEL_LIMITS)
        if not problems:
            if self.width % self.heads:
                problems.append(f"width {self.width} is not a multiple of its {self.heads} heads")
            if self.patch > min(self.frontend.n_mels, self.max_frames):
                problems.append(f"patch {self.patch} is larger than n_mels or max_frames")
            elif self.max_samples < max(self.min_samples, self.frontend.min_samples):
                problems.append(f"max_frames {self.max_frames} is less than one window of the front end")
        _raise("model", problems)

    @property
    def grid_freq(self) -> int:
        """Patches along frequency (4)."""
        return self.frontend.n_mels // self.patch

    @property
    def grid_time(self) -> int:
        """Patches along time at the longest input (63)."""
        return self.max_frames // self.patch

    @property
    def max_samples(self) -> int:
        """Samples of the longest chunk: 10 s as published, or less if the time embedding is shorter."""
        return min(10 * self.frontend.rate_hz, (self.max_frames - 1) * self.frontend.hop)

    @property
    def min_samples(self) -> int:
        """Fewest samples with one whole patch in time: `patch` frames."""
        return (self.patch - 1) * self.frontend.hop

    @property
    def name(self) -> str:
        """The name of the published size that is equal in every field, else `<width>x<depth>`."""
        return next((name for name, spec in SIZES.items() if spec == self), f"{self.width}x{self.depth}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, nested like the spec."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_dict`. Raises InputError on unknown or missing keys and on values out of range."""
        try:
            return cls(**{**fields, "frontend": FrontendSpec(**fields["frontend"])})
        except (TypeError, KeyError) as e:
            raise InputError(f"not a model spec: {e}") from e


def _size_problems(spec: Any, limits: dict[str, tuple[int, int]]) -> list[str]:
    return [
        f"{name} {value!r:.40} is not an integer from {least} to {most}"
        for name, (least, most) in limits.items()
        # Not isinstance: True is an int too.
        if type(value := getattr(spec, name)) is not int or not least <= value <= most
    ]


def is_number(value: Any) -> bool:
    """Whether a value that was read from a file is a finite number, and not True or False."""
    # math.isfinite raises an error on an integer of hundreds of digits.
    return type(value) in (int, float) and abs(value) < math.inf


def _raise(what: str, problems: list[str]) -> None:
    if problems:
        raise InputError(f"not a possible {what}: {'; '.join(problems)}")


SIZES: dict[str, ModelSpec] = {
    "tiny": ModelSpec(width=192, heads=3),
    "mini": ModelSpec(width=256, heads=4),
    "small": ModelSpec(width=384, heads=6),
    "base": ModelSpec(width=768, heads=12),
}
"""The published sizes: 5.5 M, 9.7 M, 21.6 M and 85.7 M parameters."""


def size(name: str) -> ModelSpec:
    """The spec of a published size. Raises InputError, with the list of sizes, on another name."""
    if name not in SIZES:
        raise InputError(f"unknown size {name!r}: choose one of {', '.join(SIZES)}")
    return SIZES[name]
