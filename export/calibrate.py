"""Clips that quantisation ranges are measured on: of the run's own pack, never its labels."""

from __future__ import annotations

import io
import random
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ced_edge.audio import AudioError, load
from ced_edge.errors import InputError
from ced_edge.manifest import Clip, read_manifest

Float32 = NDArray[np.float32]

CLIPS = 64
SEED = 0


def calibration_waves(source: Path, rate_hz: int, samples: int, clips: int = CLIPS) -> list[Float32]:
    """The first `samples` samples of up to `clips` clips from a pack's folder, a manifest, or a folder of audio.

    Shorter ones are repeated. Raises InputError where there are none, or one cannot be read.
    """
    if shards := sorted(source.glob("shard-*.tar")) if source.is_dir() else []:
        waves = _from_shards(shards, rate_hz, clips)
    else:
        listed = read_manifest(source)
        chosen = random.Random(SEED).sample(listed, min(clips, len(listed)))
        waves = (beginning(clip, rate_hz, samples) for clip in chosen)
    return [fill(wave, samples) for wave in waves]


def beginning(clip: Clip, rate_hz: int, samples: int) -> Float32:
    """The first samples of a clip, at most `samples`: no more of it is decoded. Raises AudioError."""
    # A little more, which resampling takes away again.
    stop_s = clip.start_s + samples / rate_hz + 0.1
    wave = load(clip.path, rate_hz, clip.start_s, stop_s if clip.stop_s is None else min(stop_s, clip.stop_s))
    if not len(wave) or not np.isfinite(wave).all():
        raise AudioError(str(clip.path), "NaN or infinite samples" if len(wave) else "no samples")
    return wave[:samples]


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
