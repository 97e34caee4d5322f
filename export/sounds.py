"""Sounds that ranges are measured on for int8: synthetic ones, and clips of the run's own pack, never its labels."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.audio.clips import load_clip, read_manifest
from ced_edge.audio.read import load
from ced_edge.errors import InputError

CLIPS = 64
MIXTURES = 24
SEED = 0


def calibration_waves(source: Path | None, rate_hz: int, samples: int, clips: int = CLIPS) -> list[Float32]:
    """Synthetic sounds, and the first `samples` samples of up to `clips` clips of a pack, a manifest, or a folder.

    The synthetic ones have the extremes, which a pack need not have: ranges of clips alone are exceeded more often.
    Shorter clips are repeated. Raises InputError where there are none, or one cannot be read.
    """
    made = synthetic_waves(samples, rate_hz, seed=1)  # `export.verify` listens to others
    waves = [*made, *mixtures(made, rate_hz), *(_clips(source, rate_hz, samples, clips) if source else ())]
    return [fill(wave, samples) for wave in waves]


def _clips(source: Path, rate_hz: int, samples: int, clips: int) -> Iterator[Float32]:
    if shards := sorted(source.glob("shard-*.tar")) if source.is_dir() else []:
        yield from _from_shards(shards, rate_hz, clips)
        return
    listed = read_manifest(source)
    for clip in random.Random(SEED).sample(listed, min(clips, len(listed))):
        yield load_clip(clip, rate_hz, samples / rate_hz)


def synthetic_waves(samples: int, rate_hz: int, seed: int = 0) -> list[Float32]:
    """Sounds that need no file: tones, sweeps, noise loud and faint, clicks, a short one and silence."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / rate_hz
    noise = rng.standard_normal(samples)
    swept = np.sin(2 * np.pi * (50 * t + 350 * t**2))
    pulses = (np.arange(samples) % (rate_hz // 7) < 20) * rng.standard_normal(samples)
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220.0, 277.2, 329.6))
    siren = np.sin(2 * np.pi * (700 * t - 60 * np.cos(2 * np.pi * 0.7 * t)))
    modulated = noise * (1 + np.sin(2 * np.pi * 4 * t))
    waves = [0.5 * noise, 1e-3 * noise, 0.5 * swept, pulses, 0.2 * chord, 0.3 * siren, 0.1 * modulated]
    waves += [0.2 * siren[: samples // 3], np.zeros(samples)]
    return [np.clip(wave, -1, 1).astype(np.float32) for wave in waves]


def mixtures(waves: Sequence[Float32], rate_hz: int, count: int = MIXTURES, seed: int = SEED) -> list[Float32]:
    """Three of the waves at a time, loud or faint, shifted, and each one silent now and then."""
    rng = np.random.default_rng(seed)
    mixed = []
    for _ in range(count):
        total = np.zeros_like(waves[0])
        for i in rng.choice(len(waves), 3):
            part = fill(waves[i], len(total))
            sounding = rng.random(len(part) // rate_hz + 1).repeat(rate_hz)[: len(part)] > 0.4
            total += rng.choice([0.03, 0.1, 0.3, 1.0]) * np.roll(part, rng.integers(len(part))) * sounding
        mixed.append(np.clip(total, -1, 1).astype(np.float32))
    return mixed


def _from_shards(shards: list[Path], rate_hz: int, clips: int) -> Iterator[Float32]:
    none = True
    rng = random.Random(SEED)
    for i, shard in enumerate(shards):
        share = clips * (i + 1) // len(shards) - clips * i // len(shards)
        if not share:
            continue
        try:
            with tarfile.open(shard) as tar:
                members = [m for m in tar.getmembers() if m.name.endswith(".flac")]
                for member in rng.sample(members, min(share, len(members))):
                    file = tar.extractfile(member)
                    assert file is not None
                    yield load(io.BytesIO(file.read()), rate_hz)
                    none = False
        except (tarfile.TarError, OSError) as e:
            raise InputError(f"{shard} is no shard of a pack ({e}): pack again") from e
    if none:
        raise InputError(f"{shards[0].parent} holds no clips to calibrate with")


def fill(wave: Float32, samples: int) -> Float32:
    """The first `samples` samples; a shorter wave is repeated, which is how `Tagger` fills a fixed window."""
    return wave[:samples].copy() if len(wave) >= samples else np.resize(wave, samples)
