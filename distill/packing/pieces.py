"""From a clip to the FLAC bytes in a shard: cut, decode, check, compress. Worker processes do this."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile

from ced_edge.arrays import Float32, Int16
from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ, AudioError
from ced_edge.audio.clips import Clip, load_clip, located
from ced_edge.audio.read import duration_s
from ced_edge.errors import InputError
from ced_edge.machine import cores

_FULL_SCALE = 32_768


@dataclass(frozen=True)
class PackConfig:
    """How to pack. Every field except `workers` and `strict` changes the bytes that are written."""

    rate_hz: int = 16_000
    clips_per_shard: int = 1_024
    segment_s: float = 10.0
    """Longer files are cut into segments of this many seconds."""
    min_s: float = 0.1
    """Shorter clips are rejected. A shorter rest of a long file is added to the segment before it."""
    silence_dbfs: float = -80.0
    """Clips whose largest sample is below this level are rejected as silent."""
    workers: int = dataclasses.field(default_factory=cores)
    strict: bool = False
    """Whether a rejected clip is an error."""
    seed: int = 0
    """Decides the order of the clips."""

    def __post_init__(self) -> None:
        problems = [
            text
            for bad, text in (
                (not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ, f"rate_hz {self.rate_hz} is out of range"),
                (self.clips_per_shard < 1, f"clips_per_shard {self.clips_per_shard} is below 1"),
                (not 0 < self.min_s <= self.segment_s < math.inf, "min_s and segment_s must be 0 < min_s <= segment_s"),
                (not math.isfinite(self.silence_dbfs), "silence_dbfs must be finite"),
                (self.workers < 1, f"workers {self.workers} is below 1"),
            )
            if bad
        ]
        if problems:
            raise InputError("; ".join(problems))

    def identity(self) -> dict[str, Any]:
        """The fields that decide the bytes."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("workers", "strict")}


@dataclass(frozen=True, slots=True)
class Piece:
    """A clip, or a segment of one. It becomes one clip of a shard."""

    clip: Clip
    id: str
    start_s: float
    stop_s: float | None
    counts: bool
    """Whether it is the first piece of its clip. Progress is counted in clips, not in pieces."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A piece as the shard stores it, or the reason why it was rejected."""

    flac: bytes = b""
    samples: int = 0
    reason: str | None = None


def probe(clips: Sequence[Clip]) -> list[float | str]:
    """Decoded seconds of each clip's file, or the reason why it cannot be used. Runs in a worker."""

    def length(clip: Clip) -> float | str:
        try:
            file_s = duration_s(clip.path)
            located(clip, file_s)
            return file_s
        except AudioError as e:
            return e.reason

    return [length(clip) for clip in clips]


def cut(clip: Clip, file_s: float, config: PackConfig) -> list[Piece]:
    """Consecutive segments that together are the whole clip: no sample is dropped.

    `file_s` is the decoded length of the file in seconds; `probe` has checked that the clip fits it.
    """
    clip = located(clip, file_s)
    end_s = file_s if clip.stop_s is None else min(file_s, clip.stop_s)
    n = max(1, math.ceil((end_s - clip.start_s) / config.segment_s))
    # The last segment would be too short to be used: it stays with the one before it.
    if n > 1 and end_s - clip.start_s - (n - 1) * config.segment_s < config.min_s:
        n -= 1
    if n == 1:
        return [Piece(clip, clip.id, clip.start_s, clip.stop_s, True)]
    starts = [clip.start_s + k * config.segment_s for k in range(n)]
    stops = [*starts[1:], clip.stop_s]  # None is the end of the file, whatever its header says
    return [
        Piece(clip, f"{clip.id}#{start:.3f}".rstrip("0").rstrip("."), start, stop, k == 0)
        for k, (start, stop) in enumerate(zip(starts, stops, strict=True))
    ]


def encode(job: tuple[Sequence[Piece], PackConfig]) -> list[Encoded]:
    """Decode, resample, check and compress pieces. Runs in a worker."""
    pieces, config = job
    return [_encode_one(piece, config) for piece in pieces]


def _encode_one(piece: Piece, config: PackConfig) -> Encoded:
    try:
        part = dataclasses.replace(piece.clip, start_s=piece.start_s, stop_s=piece.stop_s)
        wave = load_clip(part, config.rate_hz)
    except AudioError as e:
        return Encoded(reason=e.reason)
    if len(wave) < config.min_s * config.rate_hz:
        return Encoded(reason="too short")
    if np.abs(wave).max() <= 10.0 ** (config.silence_dbfs / 20.0):
        return Encoded(reason="silent")
    buffer = io.BytesIO()
    soundfile.write(buffer, to_int16(wave), config.rate_hz, format="FLAC", subtype="PCM_16")
    return Encoded(buffer.getvalue(), len(wave))


def to_int16(wave: Float32) -> Int16:
    """(samples,) float32 -> int16. A clip that is too loud is scaled down as a whole; 16-bit sources stay exact."""
    top, bottom = float(wave.max(initial=0.0)), float(wave.min(initial=0.0))
    over = max(1.0, top * _FULL_SCALE / (_FULL_SCALE - 1), -bottom)
    return np.asarray(np.rint(wave * np.float32(_FULL_SCALE / over)), np.int16)
