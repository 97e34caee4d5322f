"""Music for the training pool: scores written as MIDI files and played by fluidsynth. See runs/pool_synth.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mido
import numpy as np
from numpy.random import Generator
from pool.tools import CLIP_S, RATE_HZ, rng_of, run

from ced_edge.arrays import Float32
from ced_edge.audio.read import decode
from ced_edge.files import read_toml

SOUNDFONT = Path("/usr/share/sounds/sf2/FluidR3_GM.sf2")
TICKS = 480
"""MIDI ticks of a quarter note."""

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "blues": (0, 3, 5, 6, 7, 10),
    "pentatonic": (0, 2, 4, 7, 9),
    "phrygian": (0, 1, 4, 5, 7, 8, 10),
}
DRUMS = {
    "kick": 36, "snare": 38, "hat": 42, "open_hat": 46, "crash": 49, "ride": 51, "clap": 39, "tom": 45, "conga": 63,
    "cowbell": 56, "shaker": 70,
}  # fmt: skip
"""Keys of General MIDI's drum kits."""
GENRES: dict[str, dict[str, Any]] = read_toml(Path(__file__).with_name("genres.toml"))
FALLS = {"major": (0, 5, 7, 9), "minor": (0, 8, 3, 10)}
"""Roots of the chords, in semitones above the key."""


class Score:
    """A MIDI file in the making. Times are in quarter notes."""

    def __init__(self, bpm: float) -> None:
        self._events: list[tuple[int, mido.Message]] = []
        self._bpm = bpm

    def program(self, channel: int, program: int) -> None:
        """Choose the instrument of a channel."""
        self._events.append((0, mido.Message("program_change", channel=channel, program=program)))

    def note(self, channel: int, pitch: int, start: float, length: float, velocity: int) -> None:
        """Add one note."""
        pitch, velocity = int(np.clip(pitch, 0, 127)), int(np.clip(velocity, 1, 127))
        on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
        off = mido.Message("note_off", channel=channel, note=pitch)
        self._events += [(round(start * TICKS), on), (round((start + length) * TICKS), off)]

    def save(self, path: Path) -> None:
        """Write the file."""
        track, last = mido.MidiTrack(), 0
        track.append(mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(self._bpm)))
        for at, message in sorted(self._events, key=lambda e: e[0]):
            track.append(message.copy(time=at - last))
            last = at
        mido.MidiFile(tracks=[track], ticks_per_beat=TICKS).save(path)


def melody(score: Score, rng: Generator, channel: int, key: int, scale: str, beats: float, rest: float = 0.15) -> None:
    """A random walk on a scale, with phrases and rests."""
    steps, at, place = SCALES[scale], 0.0, int(rng.integers(0, 8))
    while at < beats:
        length = float(rng.choice([0.25, 0.5, 0.5, 1.0, 1.0, 2.0]))
        place = int(np.clip(place + rng.integers(-3, 4), -5, 12))
        octave, step = divmod(place, len(steps))
        if rng.uniform() >= rest:
            score.note(channel, key + 12 * octave + steps[step], at, 0.9 * length, int(rng.integers(70, 120)))
        at += length


def instrument(name: str) -> Callable[[Path], None]:
    """`gm-PROGRAM-TAKE`: one instrument alone, as a melody, as chords, or both."""
    _, program, take = name.split("-")

    def compose(path: Path) -> None:
        rng = rng_of(name)
        bpm = float(rng.uniform(60, 150))
        score, beats, key = Score(bpm), CLIP_S * bpm / 60, int(rng.integers(45, 70))
        score.program(0, int(program))
        scale = str(rng.choice(list(SCALES)))
        if int(take) % 3 != 2:
            melody(score, rng, 0, key, scale, beats)
        if int(take) % 3 != 0:
            for bar in np.arange(0, beats, float(rng.choice([1, 2, 4]))):
                root = key - 12 + int(rng.choice(SCALES[scale]))
                for i, interval in enumerate((0, 4 if scale == "major" else 3, 7, 12)):
                    spread = float(rng.choice([0.0, 0.02, 0.25]))  # struck together, strummed, or broken
                    score.note(0, root + interval, bar + i * spread, 1.5, int(rng.integers(60, 110)))
        score.save(path)

    return compose


def drums(name: str) -> Callable[[Path], None]:
    """`drums-KEY-TAKE`: one drum or percussion instrument of General MIDI; key 0 plays a whole kit."""
    _, key, take = name.split("-")

    def compose(path: Path) -> None:
        rng = rng_of(name)
        bpm = float(rng.uniform(70, 170))
        score, kit = Score(bpm), _kit(str(rng.choice(list(GENRES))))
        score.program(9, int(rng.choice([0, 8, 16, 24, 25, 32, 40])))
        patterns = {int(key): "".join(rng.choice(["x", "."], 16, p=[0.35, 0.65]))} if int(key) else kit
        for sixteenth in range(int(CLIP_S * bpm / 60 * 4)):
            for drum, pattern in patterns.items():
                if pattern[sixteenth % 16] == "x" or (int(take) and rng.uniform() < 0.05):
                    score.note(9, drum, sixteenth / 4, 0.2, int(rng.integers(60, 125)))
        score.save(path)

    return compose


def genre(name: str) -> Callable[[Path], None]:
    """`genre-NAME-TAKE`: chords, bass, lead and drums in the style of a genre."""
    _, style, take = name.split("-")

    def compose(path: Path) -> None:
        rng = rng_of(name)
        g = GENRES[style]
        bpm, scale, strum, kit = float(rng.uniform(*g["bpm"])), g["scale"], g["strum"], _kit(style)
        score, beats, key = Score(bpm), CLIP_S * bpm / 60, int(rng.integers(40, 52))
        for channel, programs in ((0, g["chords"]), (1, [g["bass"]]), (2, g["leads"])):
            score.program(channel, int(rng.choice(programs)))
        roots = rng.permutation(FALLS["major" if scale in ("major", "pentatonic") else "minor"])
        third = 4 if scale in ("major", "pentatonic") else 3
        for sixteenth in range(int(beats * 4)):
            at, root = sixteenth / 4, key + int(roots[sixteenth // 16 % len(roots)])
            if strum[sixteenth % 16] == "x":
                length = 0.45 if strum.count("x") > 2 else 3.5
                for interval in (0, third, 7, 12):
                    score.note(0, root + 12 + interval, at, length, int(rng.integers(60, 95)))
            if sixteenth % 4 == 0 or (strum[sixteenth % 16] == "x" and rng.uniform() < 0.4):
                score.note(1, root - 12 + int(rng.choice([0, 0, 7])), at, 0.6, int(rng.integers(80, 115)))
            for drum, pattern in kit.items():
                if pattern[sixteenth % 16] == "x":
                    score.note(9, drum, at, 0.2, int(rng.integers(70, 120)))
        if int(take) % 3:
            melody(score, rng, 2, key + 24, scale, beats, rest=0.3)
        score.save(path)

    return compose


def _kit(style: str) -> dict[int, str]:
    return {DRUMS[drum]: pattern for drum, pattern in GENRES[style]["drums"].items()}


def play(compose: Callable[[Path], None]) -> Float32:
    """The samples of a score, by fluidsynth."""
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "score.mid", Path(folder) / "score.wav"
        compose(midi)
        run(["fluidsynth", "-niq", "-g", "0.6", "-r", str(RATE_HZ), "-F", str(wav), str(SOUNDFONT), str(midi)])
        samples, _ = decode(wav)
    return samples.mean(axis=1, dtype=np.float32)
