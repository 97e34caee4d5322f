# ruff: noqa: SIM905  (as a list literal each word would take a line)
"""Speech, crowds and singing for the training pool, by espeak-ng, festival and formant filters. See runs/pool_synth.py."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.random import Generator
from pool.music import SCALES
from pool.tools import CLIP_S, RATE_HZ, rng_of, run

from ced_edge.arrays import Float32
from ced_edge.audio.read import decode, resample
from ced_edge.errors import CedEdgeError

TEXTS = (
    "Good morning. The train to the city leaves at nine from platform two.",
    "Could you please tell me where the nearest station is?",
    "One, two, three, four, five, six, seven, eight, nine, ten.",
    "Once upon a time there was a small house beside a deep forest, and an old man lived in it.",
    "The weather will be cold tomorrow, with rain in the north and strong wind near the sea.",
    "No! Stop! Come back here right now! Help! Watch out!",
    "Ha ha ha ha ha! He he he! That was so funny!",
    "La la la la, la la, la la la, oh oh oh, yeah yeah.",
    "Ladies and gentlemen, please welcome our next guest.",
    "Hmm. Well, I think so. Yes, yes, of course. Oh, really?",
)
LANGUAGES = (
    "en-us en-gb de fr-fr es es-419 it pt-br nl sv da nb fi pl cs ru uk el tr ar fa he hi bn ta te ur id vi th "
    "ko ja cmn-latn-pinyin ro hu bg hr sr sw am af ka hy et lv lt is ga cy eu ca eo la ms my ne si "
).split()
VOICES = ("m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 whisper whisperf croak klatt klatt4 grandpa grandma ").split()
FESTIVAL = ("kal_diphone ked_diphone cmu_us_slt_arctic_hts lp_diphone pc_diphone czech_dita czech_krb ").split()


def spoken(name: str) -> Float32:
    """`talk-LANGUAGE-VOICE-TAKE`: a sentence. Children are high voices that speak fast."""
    rng = rng_of(name)
    language, voice = name.split("-", 1)[1].rsplit("-", 2)[:2]
    pitch, speed = int(rng.choice([15, 35, 50, 65, 95, 99])), int(rng.integers(110, 220))
    command = ["espeak-ng", "-v", f"{language}+{voice}", "-p", str(pitch), "-s", str(speed), "-w"]
    return _speech(command, " ".join(rng.choice(TEXTS, 2, replace=False)))


def recited(name: str) -> Float32:
    """`recite-VOICE-TAKE`: a sentence by a voice of festival, whose sound is less mechanical than espeak's."""
    rng = rng_of(name)
    voice = name.split("-")[1]
    text = " ".join(rng.choice(TEXTS, 2, replace=False))
    return _speech(["text2wave", "-eval", f"(voice_{voice})", "-o"], text)


def crowd(name: str) -> Float32:
    """`crowd-SIZE-TAKE`: many people who speak at once."""
    rng = rng_of(name)
    size, total = int(name.split("-")[1]), np.zeros(round(CLIP_S * RATE_HZ), np.float32)
    for i in range(size):
        take = f"{name.replace('-', '')}x{i}"
        wave = spoken(f"talk-{rng.choice(LANGUAGES[:12])}-{rng.choice(VOICES[:13])}-{take}")
        wave = np.resize(np.roll(wave, rng.integers(len(wave))), len(total))
        total += wave / max(float(np.abs(wave).max()), 1e-6) * float(rng.uniform(0.3, 1.0))
    return total


def sung(name: str) -> Float32:
    """`sing-VOICE-TAKE`: a melody of vowels: a glottal pulse train with vibrato through formant filters."""
    rng = rng_of(name)
    voice = name.split("-")[1]
    lowest = {"bass": 82.0, "tenor": 131.0, "alto": 196.0, "soprano": 262.0, "child": 330.0, "choir": 147.0}[voice]
    total = np.zeros(round(CLIP_S * RATE_HZ))
    scale = rng.choice(list(SCALES))
    for _ in range(8 if voice == "choir" else 1):
        at, place = 0.0, int(rng.integers(0, 5))
        while at < CLIP_S - 0.3:
            length = float(rng.choice([0.3, 0.5, 0.8, 1.2, 2.0]))
            place = int(np.clip(place + rng.integers(-2, 3), 0, 9))
            octave, step = divmod(place, len(SCALES[scale]))
            hz = lowest * 2 ** (octave + SCALES[scale][step] / 12) * float(rng.normal(1.0, 0.004))
            first, tone = round(at * RATE_HZ), _vowel(rng, hz, min(length, CLIP_S - at))
            total[first : first + len(tone)] += tone[: len(total) - first]
            at += length
    return total.astype(np.float32)


def _vowel(rng: Generator, hz: float, seconds: float) -> np.ndarray:
    """A sung vowel; formants after Peterson and Barney (1952)."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    vibrato = 1.0 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 6.5) * t) * np.clip(t / 0.3, 0, 1)
    phase = 2 * np.pi * np.cumsum(hz * vibrato) / RATE_HZ
    formants = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]
    centres = np.array([*formants[int(rng.integers(5))], 3300, 3750]) * (1.2 if hz > 250 else 1.0)
    tone = np.zeros(len(t))
    for k in range(1, int(min(9_000, 0.45 * RATE_HZ) / hz) + 1):
        gain = sum(a / (1 + ((k * hz - c) / 90.0) ** 2) for c, a in zip(centres, (1, 0.6, 0.3, 0.25, 0.1), strict=True))
        tone += (gain + 0.004) / k**0.6 * np.sin(k * phase)
    return tone * np.clip(np.minimum(t, seconds - t) / 0.06, 0, 1)


def _speech(command: list[str], text: str) -> Float32:
    """What a speech program, whose last option names its output, makes of a text on stdin."""
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        run([*command, str(wav)], text)
        if not wav.exists():  # text2wave ends with 0 also when it does not know the voice
            raise CedEdgeError(f"{' '.join(command)} made no sound: is the voice installed?")
        samples, rate_hz = decode(wav)
    return resample(samples.mean(axis=1, dtype=np.float32), rate_hz, RATE_HZ)
