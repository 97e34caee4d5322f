"""Clips that quantisation ranges are measured on: of the run's own pack, never its labels."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ced_edge.audio import load
from ced_edge.errors import InputError
from ced_edge.manifest import read_manifest

Float32 = NDArray[np.float32]

CLIPS = 64
SEED = 0


def calibration_waves(source: Path, rate_hz: int, clips: int = CLIPS) -> list[Float32]:
    """Up to `clips` waveforms drawn from a pack's folder, a manifest, or a folder of audio. Raises InputError."""
    if shards := sorted(source.glob("shard-*.tar")) if source.is_dir() else []:
        return _from_shards(shards, rate_hz, clips)
    listed = read_manifest(source)
    chosen = random.Random(SEED).sample(listed, min(clips, len(listed)))
    return [load(clip.path, rate_hz, clip.start_s, clip.stop_s) for clip in chosen]


def _from_shards(shards: list[Path], rate_hz: int, clips: int) -> list[Float32]:
    waves: list[Float32] = []
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
                    waves.append(load(io.BytesIO(file.read()), rate_hz))
        except (tarfile.TarError, OSError) as e:
            raise InputError(f"{shard} is no shard of a pack ({e}): pack again") from e
    if not waves:
        raise InputError(f"{shards[0].parent} holds no clips to calibrate with")
    return waves


def fill(wave: Float32, samples: int) -> Float32:
    """The first `samples` samples; a shorter wave is repeated, which is how `Tagger` fills a fixed window."""
    return wave[:samples] if len(wave) >= samples else np.resize(wave, samples)
