"""The embedded demonstration data: clips synthesised for AudioSet classes that are signals by nature.

A clip is a pure function of (seed, index): one sound, or two mixed, each through a random channel (gentle filtering,
sometimes a room), over a background of coloured noise. `write_dataset` writes them as FLAC with a manifest.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from numpy.random import Generator, Philox

from ced_edge.arrays import Float32
from ced_edge.errors import InputError
from ced_edge.files import atomic_path, disk_errors, folder_lock, read_json, write_json
from ced_edge.labels import index_of
from distill.demo.blocks import Wave, even_fft_size, log_uniform, power_noise
from distill.demo.sounds import RECIPES, Recipe

VERSION = 1
"""Of the recipes: raised whenever a clip of the same seed and index would sound different."""
MIX_CHANCE = 0.15
"""Share of clips that hold two sounds."""
PEAK_DBFS = (-18.0, -3.0)
"""Peak of a clip's sound."""
FLOOR_DB = (-60.0, -35.0)
"""RMS of the background relative to the peak of the sound."""
SILENCE = next(r for r in RECIPES if r.name == "Silence")
SILENCE_DBFS = (-70.0, -60.0)
"""Peak of the background where it is all there is: inaudible, and yet above what `pack` rejects as digital silence."""
MIN_SECONDS, MAX_SECONDS = 1.0, 60.0
MIN_RATE_HZ = 8_000
STREAM_ORDER, STREAM_PARTNER, STREAM_CLIP = 0, 1, 2
"""What a random stream is for; streams never overlap (the Philox counter's highest word)."""


def generator(seed: int, index: int, stream: int) -> Generator:
    """The random numbers of one clip: counter-based, so no clip depends on another one having been made."""
    return Generator(Philox(key=np.array([seed, index], np.uint64), counter=np.array([0, 0, 0, stream], np.uint64)))


def recipe_of(index: int, seed: int) -> Recipe:
    """The main sound of a clip: each run of `len(RECIPES)` clips holds every recipe once, in random order."""
    block, place = divmod(index, len(RECIPES))
    return RECIPES[int(generator(seed, block, STREAM_ORDER).permutation(len(RECIPES))[place])]


def recipes_of(index: int, seed: int) -> tuple[Recipe, ...]:
    """The one or two sounds of a clip, the main one first: silence stays alone, and noise is not mixed with noise."""
    main = recipe_of(index, seed)
    rng = generator(seed, index, STREAM_PARTNER)
    if main is SILENCE or rng.uniform() >= MIX_CHANCE:
        return (main,)
    others = [r for r in RECIPES if r not in (main, SILENCE) and not (r.noisy and main.noisy)]
    return main, others[rng.integers(len(others))]


def label_indices(*recipes: Recipe) -> tuple[int, ...]:
    """The AudioSet indices, sorted, of all labels that the recipes earn."""
    return tuple(sorted({index_of(name) for recipe in recipes for name in recipe.labels}))


def channel(rng: Generator, wave: Wave, rate_hz: int, depth_db: float) -> Wave:
    """The wave through a smooth random frequency response of +-`depth_db` and, at times, a small room; peak 1."""
    n = even_fft_size(len(wave) + rate_hz // 4)
    octave = np.log2(np.maximum(np.fft.rfftfreq(n, 1 / rate_hz), 31.25) / 31.25)
    knots = np.arange(np.ceil(octave[-1]) + 1)
    gain_db = np.interp(octave, knots, rng.uniform(-depth_db, depth_db, len(knots)))
    response = (10 ** (gain_db / 20)).astype(np.complex128)
    if rng.uniform() < 0.35:
        t = np.arange(rate_hz // 4) / rate_hz
        decay_s = log_uniform(rng, 0.1, 0.5)  # seconds for 60 dB
        room = rng.standard_normal(len(t)) * 10 ** (-3 * t / decay_s)
        room *= rng.uniform(0.1, 0.7) / np.sqrt(np.sum(room**2))
        room[0] += 1.0
        response *= np.fft.rfft(room, n)
    wave = np.fft.irfft(np.fft.rfft(wave, n) * response, n)[: len(wave)]
    return wave / max(1e-9, float(np.abs(wave).max()))


def background(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Room or circuit noise, RMS 1: steeper than pink noise, so that it never passes for one of the noise classes."""
    return power_noise(rng, samples, rate_hz, rng.uniform(1.3, 2.2), low_hz=log_uniform(rng, 60, 400))


def decibels(low_high: tuple[float, float], rng: Generator) -> float:
    """An amplitude drawn uniformly in dB."""
    return float(10 ** (rng.uniform(*low_high) / 20))


def render(rng: Generator, recipe: Recipe, samples: int, rate_hz: int) -> Wave:
    """One sound through its channel, peak 1."""
    return channel(rng, recipe.render(rng, samples, rate_hz), rate_hz, 2.0 if recipe.noisy else 6.0)


def synthesise(index: int, seed: int, seconds: float = 4.0, rate_hz: int = 16_000) -> tuple[Float32, tuple[int, ...]]:
    """Clip `index` of the data set `seed`: mono float32 (seconds * rate_hz,) in [-1, 1], and its AudioSet indices.

    `index` and `seed` are 0 to 2^63 - 1, `seconds` 1 to 60, `rate_hz` at least 8000. Raises InputError.
    """
    check(seed, seconds, rate_hz)
    if not 0 <= index < 2**63:
        raise InputError(f"clip index {index} must be 0 or more")
    rng = generator(seed, index, STREAM_CLIP)
    recipes = recipes_of(index, seed)
    samples = round(seconds * rate_hz)
    floor = background(rng, samples, rate_hz)
    if recipes[0] is SILENCE:
        wave = floor / np.abs(floor).max() * decibels(SILENCE_DBFS, rng)
        return wave.astype(np.float32), label_indices(SILENCE)
    wave = render(rng, recipes[0], samples, rate_hz)
    for partner in recipes[1:]:
        # Noise spreads over the whole spectrum: as loud as a tone, it would bury it.
        range_db = (2.0, 12.0) if recipes[0].noisy else (-14.0, -4.0) if partner.noisy else (-8.0, 8.0)
        wave += decibels(range_db, rng) * render(rng, partner, samples, rate_hz)
    wave = wave / np.abs(wave).max() + decibels(FLOOR_DB, rng) * floor
    wave *= decibels(PEAK_DBFS, rng) / np.abs(wave).max()
    return wave.astype(np.float32), label_indices(*recipes)


def check(seed: int, seconds: float, rate_hz: int) -> None:
    """Raises InputError when no clip can be made of these."""
    if not 0 <= seed < 2**63:
        raise InputError(f"seed {seed} must be 0 or more, and below 2^63")
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise InputError(f"clips of {seconds} s: give {MIN_SECONDS:.0f} to {MAX_SECONDS:.0f} s")
    if rate_hz < MIN_RATE_HZ:
        raise InputError(f"sample rate {rate_hz} Hz: the signals need at least {MIN_RATE_HZ} Hz")


def write_dataset(
    folder: Path,
    clips: int = 2_000,
    eval_clips: int = 480,
    seed: int = 0,
    seconds: float = 4.0,
    rate_hz: int = 16_000,
    progress: Callable[[int], None] = lambda n: None,
) -> Path:
    """Write `clips` for training and `eval_clips` for evaluation as 16-bit FLAC; return the manifest's path.

    The manifest (filename, labels, split) is written last, so a folder with one is whole. A whole folder of the same
    recipe is left as it is; an unfinished one is written again. `progress(1)` is called after each clip. There are no
    groups for a top-1: sounds share labels (Noise, Telephone, Alarm), so a right answer could count as wrong. Raises
    InputError when the folder holds another recipe or something else, CedEdgeError when the disk is full.
    """
    check(seed, seconds, rate_hz)
    if clips < 1 or eval_clips < 0:
        raise InputError(f"{clips} training and {eval_clips} evaluation clips: give at least one, and none below zero")
    recipe: dict[str, float] = {"version": VERSION, "clips": clips, "eval_clips": eval_clips, "seed": seed}
    recipe |= {"seconds": seconds, "rate_hz": rate_hz}
    manifest, note, audio = folder / "manifest.csv", folder / "synth.json", folder / "clips"
    with folder_lock(folder):
        if note.exists():
            if read_json(note) != recipe:
                raise InputError(f"{folder} holds synthesised clips of another recipe: choose another folder")
            if manifest.exists():
                return manifest
            shutil.rmtree(audio, ignore_errors=True)  # what a killed run left: quicker made anew than checked
        elif manifest.exists() or audio.exists():
            raise InputError(f"{folder} holds other files: choose an empty folder for the synthesised clips")
        write_json(note, recipe)
        audio.mkdir()
        rows = []
        for i in range(clips + eval_clips):
            split = "train" if i < clips else "eval"
            rows.append(_write_clip(folder, i, seed, seconds, rate_hz, split))
            progress(1)
        with atomic_path(manifest) as p, p.open("w", newline="", encoding="utf-8") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(("filename", "labels", "split"))
            writer.writerows(rows)
    return manifest


def _write_clip(folder: Path, index: int, seed: int, seconds: float, rate_hz: int, split: str) -> tuple[str, str, str]:
    """Write one clip and return its row of the manifest."""
    wave, labels = synthesise(index, seed, seconds, rate_hz)
    path = folder / "clips" / f"{split}-{index:06d}.flac"
    flac = io.BytesIO()
    soundfile.write(flac, wave, rate_hz, subtype="PCM_16", format="FLAC")
    with disk_errors(path):
        # Not atomic_path: its fsync for every clip would take longer than the synthesis.
        path.write_bytes(flac.getbuffer())
    return str(path.relative_to(folder).as_posix()), ";".join(map(str, labels)), split
