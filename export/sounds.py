"""Calibration: the sounds on which int8 ranges are measured. Synthetic ones, and clips of a pack, never its labels."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.clips import load_clip, read_manifest
from ced_edge.audio.read import load
from ced_edge.errors import InputError, first_line

CLIPS = 64
"""Clips of a pack, manifest or folder that are used."""
MIXTURES = 24
"""Mixtures of the synthetic sounds that are used."""
SEED = 0
MAX_FRAMES = 1 << 24
"""Longest clip of a pack that is decoded: 17 minutes at 16 kHz, 67 MB. `ced-edge pack` writes 10 s."""


def calibration_waves(source: Path | None, rate_hz: int, samples: int, clips: int = CLIPS) -> list[Float32]:
    """Synthetic sounds, and the first `samples` samples of up to `clips` clips of a pack, a manifest, or a folder.

    All are (samples,) at `rate_hz`; shorter clips are repeated. The synthetic sounds hold the extremes, which a pack
    need not hold: with clips alone, later input leaves the measured ranges more often. Raises InputError when the
    source holds no clip, or one cannot be read.
    """
    made = synthetic_waves(samples, rate_hz, seed=1)  # another seed than in `export.verify`, which must not reuse them
    waves = [*made, *mixtures(made, rate_hz), *(_clips(source, rate_hz, samples, clips) if source else ())]
    return [fill(wave, samples) for wave in waves]


def _clips(source: Path, rate_hz: int, samples: int, clips: int) -> Iterator[Float32]:
    """Up to `clips` clips, drawn at random with a fixed seed, so that the same export writes the same bytes."""
    if shards := sorted(source.glob("shard-*.tar")) if source.is_dir() else []:
        yield from _from_shards(shards, rate_hz, clips)
        return
    listed = read_manifest(source, labels_needed=False)
    for clip in random.Random(SEED).sample(listed, min(clips, len(listed))):
        yield load_clip(clip, rate_hz, samples / rate_hz)


def synthetic_waves(samples: int, rate_hz: int, seed: int = 0) -> list[Float32]:
    """Nine sounds that need no file: tones, sweeps, loud and faint noise, clicks, a short one and silence."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate_hz
    noise = rng.standard_normal(samples)
    # 50 Hz and up by 700 Hz a second: over a window of 10 s it passes through nearly all mel bins.
    swept = np.sin(2 * np.pi * (50 * t + 350 * t**2))
    pulses = (np.arange(samples) % (rate_hz // 7) < 20) * rng.standard_normal(samples)
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6))
    siren = np.sin(2 * np.pi * (700 * t - 60 * np.cos(2 * np.pi * 0.7 * t)))
    modulated = noise * (1 + np.sin(2 * np.pi * 4 * t))
    waves = [0.5 * noise, 1e-3 * noise, 0.5 * swept, pulses, 0.2 * chord, 0.3 * siren, 0.1 * modulated]
    # A short one to be repeated, and silence, whose log-mel is the lowest value there is.
    waves += [0.2 * siren[: samples // 3], np.zeros(samples)]
    return [np.clip(wave, -1, 1).astype(np.float32) for wave in waves]


def mixtures(waves: Sequence[Float32], rate_hz: int, count: int = MIXTURES, seed: int = SEED) -> list[Float32]:
    """`count` sums of three of the waves, each loud or faint, shifted, and silent in some seconds."""
    rng = np.random.default_rng(seed)
    mixed = []
    for _ in range(count):
        total = np.zeros_like(waves[0])
        for i in rng.choice(len(waves), 3):
            part = fill(waves[i], len(total))
            # Seconds of silence in between: ranges must hold for sounds that begin and end.
            sounding = rng.random(len(part) // rate_hz + 1).repeat(rate_hz)[: len(part)] > 0.4
            total += rng.choice([0.03, 0.1, 0.3, 1.0]) * np.roll(part, rng.integers(len(part))) * sounding
        mixed.append(np.clip(total, -1, 1).astype(np.float32))
    return mixed


def _from_shards(shards: list[Path], rate_hz: int, clips: int) -> Iterator[Float32]:
    """Up to `clips` clips of a pack, the same number from every shard, as far as that is possible."""
    none = True
    rng = random.Random(SEED)
    for i, shard in enumerate(shards):
        # Rounded so that the shares of all shards add up to `clips`.
        share = clips * (i + 1) // len(shards) - clips * i // len(shards)
        if not share:
            continue
        for wave in _from_shard(shard, rate_hz, share, rng):
            yield wave
            none = False
    if none:
        raise InputError(f"{shards[0].parent} holds no clips to calibrate with")


def _from_shard(shard: Path, rate_hz: int, clips: int, rng: random.Random) -> Iterator[Float32]:
    """Up to `clips` clips of a tar of FLAC files, drawn at random.

    A pack may come from anywhere, so sizes are compared before anything is read: a member may not be larger than the
    tar (a sparse one can claim terabytes), and a clip may not be longer than MAX_FRAMES (a FLAC file of silence
    unpacks to a thousand times its size). Raises InputError that names the shard.
    """
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            members = [m for m in tar.getmembers() if m.name.endswith(".flac")]
            for member in rng.sample(members, min(clips, len(members))):
                if not member.isreg() or member.issparse() or member.size > size:
                    raise tarfile.TarError(f"{member.name!r} is no plain file")
                file = tar.extractfile(member)
                assert file is not None  # it is for regular files
                yield _decode(file.read(), rate_hz)
    except _DAMAGE as e:
        raise InputError(f"{shard} is no shard of a pack ({first_line(e)}): pack again") from e


_DAMAGE = (
    *(tarfile.TarError, soundfile.SoundFileError, AudioError),
    *(OSError, EOFError, ValueError, MemoryError, RecursionError),
)
"""What reading a damaged shard may raise; RecursionError from headers nested thousands deep."""


def _decode(flac: bytes, rate_hz: int) -> Float32:
    """A packed clip as (samples,) mono float32 at `rate_hz`. Raises SoundFileError, AudioError, ValueError."""
    info = soundfile.info(io.BytesIO(flac))
    if (info.format, info.channels) != ("FLAC", 1) or not info.frames <= MAX_FRAMES:
        raise ValueError(
            f"a clip of {info.frames} frames and {info.channels} channels as {info.format}, where a pack has FLAC "
            f"of one channel and at most {MAX_FRAMES} frames"
        )
    return load(io.BytesIO(flac), rate_hz)


def fill(wave: Float32, samples: int) -> Float32:
    """The first `samples` samples. A shorter wave is repeated, as `Tagger` does for a fixed window."""
    return wave[:samples].copy() if len(wave) >= samples else np.resize(wave, samples)
