"""Views: augmented clips. A view is a few random numbers (`draw`) and the samples made from them (`render`).

The numbers are a pure function of (seed, epoch, clip id). So the teacher today and the student next month get the same
samples, on any machine and with any number of processes (consistent teaching, arXiv 2308.11957, section 2). Views act
on the waveform, in seconds, dB and Hz, so that teachers of any sample rate can predict them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float32, Int16
from ced_edge.errors import InputError
from ced_edge.files import sha256_json
from ced_edge.frontend import hz_to_mel, mel_to_hz
from distill.packing.shards import INT16_SCALE

MAX_EPOCHS = 1_000_000
MEL_AXIS_HZ = 8_000.0
"""Top of the mel axis on which frequency masks are drawn. It is the student's, also for audio of another rate."""


@dataclass(frozen=True)
class ViewRecipe:
    """The random choices of which views are made. Ranges are drawn from evenly; probabilities are in [0, 1]."""

    seed: int = 0
    windows: tuple[tuple[int, float], ...] = ((1, 10.0),)
    """(epochs, seconds) in order: so many epochs have windows of so many seconds."""
    shift: bool = True
    """Start anywhere in the clip and continue at its beginning (the published +-0.5 of a clip), or start at 0."""
    gain_db: tuple[float, float] = (-9.0, 3.0)
    polarity: bool = True
    """Change the sign of the samples in half of the views."""
    mask_probability: float = 0.5
    """Probability of a time mask, and independently of a frequency mask."""
    time_mask: float = 0.192
    """Longest time mask as a share of the window (the published 192 frames of 1001)."""
    freq_mask_mels: float = 0.375
    """Widest frequency mask as a share of the mel axis (the published 24 bins of 64)."""
    mix: tuple[float, ...] = (0.4, 0.4, 0.2)
    """Probabilities of a view of one, two, three ... clips."""
    mix_db: tuple[float, float] = (-12.0, 0.0)
    """Level of a partner clip relative to the clip, after both are scaled to the same RMS."""

    def __post_init__(self) -> None:
        problems = []
        # A recipe may come from a TOML file or a stranger's store, where `epochs` decides how long a list becomes.
        if type(self.seed) is not int or type(self.shift) is not bool or type(self.polarity) is not bool:
            problems.append("seed must be a whole number, shift and polarity must be true or false")
        if not self.windows or any(type(e) is not int or e < 1 or not 0.1 <= s <= 60.0 for e, s in self.windows):
            problems.append("--windows takes EPOCHSxSECONDS with at least 1 epoch and 0.1 to 60 s")
        elif self.epochs > MAX_EPOCHS:
            problems.append(f"--windows has {self.epochs} epochs, more than {MAX_EPOCHS}")
        if not 0.0 <= self.mask_probability <= 1.0:
            problems.append("mask_probability must be within 0 and 1")
        if not (0.0 <= self.time_mask < 1.0 and 0.0 <= self.freq_mask_mels < 1.0):
            problems.append("time_mask and freq_mask_mels are shares, from 0 to below 1")
        if not 1 <= len(self.mix) <= 6 or min(self.mix) < 0.0 or not math.isclose(sum(self.mix), 1.0, abs_tol=1e-6):
            problems.append("mix must hold 1 to 6 probabilities that sum to 1")
        if not all(-60.0 <= low <= high <= 60.0 for low, high in (self.gain_db, self.mix_db)):
            problems.append("gain_db and mix_db are (lowest, highest), from -60 to 60 dB")
        if problems:
            raise InputError("view recipe: " + "; ".join(problems))

    @property
    def epochs(self) -> int:
        """The number of epochs, over all windows."""
        return sum(epochs for epochs, _ in self.windows)

    def seconds(self, epoch: int) -> float:
        """The window length of an epoch, in seconds."""
        for epochs, seconds in self.windows:
            if epoch < epochs:
                return seconds
            epoch -= epochs
        raise ValueError("epoch lies beyond the recipe")

    def digest(self, epoch: int) -> str:
        """Hash of everything that decides the views of one epoch.

        It leaves out the other epochs' windows, so that epochs can be added to a store and the old ones stay valid.
        """
        fields = {**dataclasses.asdict(self), "windows": self.seconds(epoch), "epoch": epoch}
        return sha256_json(fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ViewRecipe:
        """The inverse of `to_dict`. Raises InputError on unknown keys and wrong types."""
        unknown = set(fields) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise InputError(f"view recipe: unknown key {', '.join(sorted(unknown))}")
        try:
            return cls(**{k: _tupled(v) for k, v in fields.items()})
        except (TypeError, ValueError, OverflowError) as e:  # OverflowError: a whole number that no float can hold
            raise InputError(f"view recipe: a field has the wrong type ({e})") from e


def _tupled(value: Any) -> Any:
    return tuple(_tupled(v) for v in value) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Source:
    """The part of one clip in a view."""

    clip: int
    """Position of the clip in its shard."""
    start: float
    """Where the window starts, as a share of the clip, in [0, 1)."""
    level_db: float
    """Level relative to the first source, at equal RMS; 0 for the first source itself."""


@dataclass(frozen=True)
class View:
    """One augmented version of a clip, as numbers. `render` makes the samples."""

    seconds: float
    sources: tuple[Source, ...]
    gain_db: float
    negate: bool
    time_mask: tuple[float, float] = (0.0, 0.0)
    """Start and stop of the silenced span, as shares of the window."""
    freq_mask_hz: tuple[float, float] = (0.0, 0.0)
    """Lower and upper edge of the band that is removed."""


def random_words(key: str, n: int) -> NDArray[np.uint64]:
    """Random words (n,), a pure function of `key`.

    They are the raw words of Philox, which numpy keeps the same for ever. Numbers from numpy's distributions may change
    with its version.
    """
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return np.random.Philox(key=np.frombuffer(digest, "<u8")).random_raw(n)


@dataclass
class Uniform:
    """Evenly distributed numbers in [0, 1), a pure function of `key`."""

    key: str
    words: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.words = random_words(self.key, 32).tolist()  # `draw` takes at most 25 of them

    def __call__(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * ((self.words.pop() >> 11) * 2.0**-53)  # a float64 has 53 bits


def draw(recipe: ViewRecipe, epoch: int, clip: int, clip_ids: Sequence[str]) -> View:
    """The view of a shard's clip number `clip` in an epoch. `clip_ids` are the ids of all its clips, in order."""
    # The numbers of masks and partners are drawn whether they are used or not, so that a change of one probability
    # leaves all other choices as they are.
    u = Uniform(f"{recipe.seed}|{epoch}|{clip_ids[clip]}")
    gain_db = u(*recipe.gain_db)
    negate = u() < 0.5 and recipe.polarity
    time_mask = (0.0, 0.0)
    masked, width, place = u() < recipe.mask_probability, u(0.0, recipe.time_mask), u()
    if masked:
        time_mask = (place * (1.0 - width), place * (1.0 - width) + width)
    freq_mask_hz = (0.0, 0.0)
    masked, width, place = u() < recipe.mask_probability, u(0.0, recipe.freq_mask_mels), u()
    if masked:
        top = float(hz_to_mel(MEL_AXIS_HZ))
        low, high = mel_to_hz(place * (1.0 - width) * top), mel_to_hz((place * (1.0 - width) + width) * top)
        freq_mask_hz = (float(low), float(high))
    sources = [Source(clip, u() if recipe.shift else 0.0, 0.0)]
    chance = u()  # decides how many clips are mixed
    for n in range(1, len(recipe.mix)):
        # Partners come from the same shard, so that a machine needs only this shard to render its views.
        partner = int(u() * len(clip_ids))
        start, level_db = u(), u(*recipe.mix_db)
        if chance >= sum(recipe.mix[:n]) and partner != clip:
            sources.append(Source(partner, start if recipe.shift else 0.0, level_db))
    return View(recipe.seconds(epoch), tuple(sources), gain_db, negate, time_mask, freq_mask_hz)


def window(wave: Int16, samples: int, start: float) -> Float32:
    """`samples` samples of a clip in [-1, 1), from `start` (a share of it) on, continued at its beginning.

    A shorter clip is padded with silence first.
    """
    length = max(len(wave), samples)
    first = int(start * length) % length
    out = np.zeros(samples, np.float32)
    head = wave[first : first + samples]
    out[: len(head)] = head
    wrapped = length - first  # from here on the window holds the clip's beginning
    if wrapped < samples:
        tail = wave[: samples - wrapped]
        out[wrapped : wrapped + len(tail)] = tail
    out *= INT16_SCALE
    return out


def render(view: View, waves: Sequence[Int16], rms: Sequence[float], rate_hz: int) -> Float32:
    """The view as samples: (round(seconds * rate_hz),) float32 in [-1, 1].

    `waves` are the shard's clips as int16, `rms` their `clip_rms`. The sources are scaled to the RMS of the first one,
    mixed and masked. A view that would clip is scaled down as a whole.
    """
    samples = round(view.seconds * rate_hz)
    first = view.sources[0]
    out = window(waves[first.clip], samples, first.start)
    for source in view.sources[1:]:
        level = rms[first.clip] / max(rms[source.clip], 1e-9) * 10.0 ** (source.level_db / 20.0)
        out += np.float32(level) * window(waves[source.clip], samples, source.start)
    low_hz, high_hz = view.freq_mask_hz
    if high_hz > low_hz:
        # In the spectrum of the whole window, a mask's edges are sharp at any sample rate.
        spectrum = np.fft.rfft(out)
        bin_hz = rate_hz / samples
        spectrum[math.ceil(low_hz / bin_hz) : math.ceil(high_hz / bin_hz)] = 0.0
        out = np.fft.irfft(spectrum, samples).astype(np.float32)
    start, stop = (round(share * samples) for share in view.time_mask)
    out[start:stop] = 0.0
    gain = 10.0 ** (view.gain_db / 20.0) * (-1.0 if view.negate else 1.0)
    peak = float(np.abs(out).max()) * abs(gain)
    out *= np.float32(gain / max(1.0, peak))
    return out
