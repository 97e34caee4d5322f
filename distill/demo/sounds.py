"""Synthesisers: one function per AudioSet class that is a signal by nature, and the table of what each one is.

Every function takes a random generator, a length in samples and a rate in Hz, and returns float64 (samples,) of any
peak; pitch, timbre and timing are drawn from the generator. Tones that are standardised follow their standard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from distill.demo.blocks import (
    Wave,
    add,
    cadence,
    cycles,
    held,
    log_uniform,
    odd_harmonics,
    power_noise,
    sine,
    spans,
    strike,
    timbre,
)

Synthesiser = Callable[[Generator, int, int], Wave]

DTMF_ROWS_HZ = (697.0, 770.0, 852.0, 941.0)
"""ITU-T Q.23, low group, rows of the keypad from top to bottom."""
DTMF_COLUMNS_HZ = (1209.0, 1336.0, 1477.0, 1633.0)
"""ITU-T Q.23, high group, columns of the keypad from left to right (the last one is A to D)."""
DTMF_KEYS = ("123A", "456B", "789C", "*0#D")

DIAL_TONES_HZ = ((350.0, 440.0), (425.0,), (350.0, 450.0))
"""North America (precise tone plan), most of Europe (ETSI TR 101 041), United Kingdom: all continuous."""

BUSY_TONES: tuple[tuple[tuple[float, ...], float, float], ...] = (
    ((480.0, 620.0), 0.5, 0.5),  # North America, busy
    ((480.0, 620.0), 0.25, 0.25),  # North America, reorder ("fast busy")
    ((425.0,), 0.5, 0.5),  # most of Europe
    ((425.0,), 0.25, 0.25),  # most of Europe, congestion
    ((400.0,), 0.375, 0.375),  # United Kingdom
)
"""(frequencies in Hz, seconds on, seconds off) of engaged tones (ITU-T E.180 supplement 2)."""

RING_CADENCES_S = ((2.0, 4.0), (1.0, 4.0), (0.4, 0.2, 0.4, 2.0))
"""Seconds on, off, on, off ...: North America, most of Europe, United Kingdom."""

MAINS_HZ = (50.0, 60.0)
T3_CADENCE_S = (0.5, 0.5, 0.5, 0.5, 0.5, 1.5)
"""The three-pulse evacuation signal of smoke alarms (ISO 8201)."""


def sine_wave(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """One steady sine, above the pitch at which it would be a dial tone."""
    hz = log_uniform(rng, 550, 1800)
    return sine(cycles(rng, hz, samples, rate_hz)) * held(rng, samples, rate_hz)


def chirp_tone(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Sine sweeps in one direction, linear or logarithmic in frequency, one after another."""
    low = log_uniform(rng, 200, 1200)
    high = min(low * rng.uniform(2.5, 8.0), 0.42 * rate_hz)
    length_s, gap_s = log_uniform(rng, 0.25, 2.5), rng.uniform(0.02, 0.4)
    ramp = np.linspace(0.0, 1.0, max(2, round(length_s * rate_hz)))
    if rng.uniform() < 0.5:
        ramp = ramp[::-1]
    sweep = low * (high / low) ** ramp if rng.uniform() < 0.5 else low + (high - low) * ramp
    one = sine(cycles(rng, sweep, len(sweep), rate_hz)) * spans([(0.0, length_s)], len(sweep), rate_hz, 0.01)
    wave = np.zeros(samples)
    for t in np.arange(rng.uniform(-0.4, 0.5) * length_s, samples / rate_hz, length_s + gap_s):
        add(wave, one, round(t * rate_hz))
    return wave


def white_noise(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Gaussian white noise."""
    return rng.standard_normal(samples) * held(rng, samples, rate_hz)


def pink_noise(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Gaussian noise that falls by 3 dB per octave."""
    return power_noise(rng, samples, rate_hz, 1.0) * held(rng, samples, rate_hz)


def harmonic(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A steady stack of sines at whole multiples of a fundamental well above the mains'."""
    hz = log_uniform(rng, 160, 600)
    k = np.arange(1, rng.integers(5, 13), dtype=np.float64)
    amplitudes = k ** -rng.uniform(0.1, 0.9) * (rng.uniform(size=len(k)) < 0.85)
    amplitudes[:2] = np.maximum(amplitudes[:2], 0.3)
    return timbre(cycles(rng, hz, samples, rate_hz), amplitudes, hz, rate_hz) * held(rng, samples, rate_hz)


def beep(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Short high tones of one pitch, at irregular distances."""
    hz, on_s = log_uniform(rng, 800, 2500), log_uniform(rng, 0.06, 0.25)
    pieces, t = [], rng.uniform(0.0, 0.25 * samples / rate_hz)
    while t < samples / rate_hz - 0.05:
        pieces.append((t, t + on_s))
        t += on_s + log_uniform(rng, 0.15, 1.5)
    wave = timbre(cycles(rng, hz, samples, rate_hz), odd_harmonics(7, rng.uniform(1, 4)), hz, rate_hz)
    return wave * spans(pieces, samples, rate_hz)


def telephone_tones(rng: Generator, hz: Sequence[float], samples: int, rate_hz: int) -> Wave:
    """The sum of a few sines, each within 0.5 % of its nominal frequency and 1 dB of the same level."""
    wave = np.zeros(samples)
    for f in hz:
        level = 10 ** (rng.uniform(-1, 1) / 20)
        wave += level * sine(cycles(rng, f * rng.uniform(0.995, 1.005), samples, rate_hz))
    return wave


def dial_tone(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """The continuous tone of an exchange that waits for a number."""
    hz = DIAL_TONES_HZ[rng.integers(len(DIAL_TONES_HZ))]
    return telephone_tones(rng, hz, samples, rate_hz) * held(rng, samples, rate_hz)


def busy_signal(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """The interrupted tone of an engaged line."""
    hz, on_s, off_s = BUSY_TONES[rng.integers(len(BUSY_TONES))]
    return telephone_tones(rng, hz, samples, rate_hz) * cadence(rng, samples, rate_hz, (on_s, off_s))


def dtmf(rng: Generator, samples: int, rate_hz: int, keys: str | None = None) -> Wave:
    """Dialled digits, as ITU-T Q.23: one row and one column frequency each, the column up to 4 dB louder.

    `keys` (of `DTMF_KEYS`) dials just those; drawn when absent.
    """
    on_s, off_s = log_uniform(rng, 0.06, 0.2), log_uniform(rng, 0.05, 0.25)
    twist = 10 ** (rng.uniform(0, 4) / 20)
    if keys is None:
        keys = "".join(DTMF_KEYS[rng.integers(4)][rng.integers(3)] for _ in range(rng.integers(4, 12)))
    wave = np.zeros(samples)
    t = rng.uniform(0.0, 0.25) * samples / rate_hz
    for key in keys:
        row = next(i for i, line in enumerate(DTMF_KEYS) if key in line)
        low, high = DTMF_ROWS_HZ[row], DTMF_COLUMNS_HZ[DTMF_KEYS[row].index(key)]
        n = round(on_s * rate_hz)
        tone = sine(cycles(rng, low, n, rate_hz)) + twist * sine(cycles(rng, high, n, rate_hz))
        add(wave, tone * spans([(0.0, on_s)], n, rate_hz, 0.003), round(t * rate_hz))
        t += on_s + off_s
    return wave


def siren(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A wail, a yelp (the same, faster) or a two-tone siren, rich in harmonics."""
    low = log_uniform(rng, 400, 800)
    high = low * rng.uniform(1.7, 2.6)
    kind = rng.integers(3)
    t = np.arange(samples) / rate_hz
    if kind == 2:  # two-tone: a fourth or so, half a second each
        high = low * rng.uniform(1.2, 1.45)
        hz = np.where((t / rng.uniform(0.35, 0.7) + rng.uniform()) % 2 < 1, low, high)
    else:
        period_s = rng.uniform(2.0, 5.0) if kind == 0 else rng.uniform(0.25, 0.45)
        swing = 0.5 - 0.5 * np.cos(2 * np.pi * (t / period_s + rng.uniform()))
        hz = low * (high / low) ** swing
    amplitudes = np.arange(1, 12, dtype=np.float64) ** -rng.uniform(0.6, 1.4)
    return timbre(cycles(rng, hz, samples, rate_hz), amplitudes, high, rate_hz) * held(rng, samples, rate_hz)


def click(rng: Generator, hz: float, rate_hz: int) -> Wave:
    """A tap: a burst of noise and a resonance that die within milliseconds."""
    t = np.arange(round(0.05 * rate_hz)) / rate_hz
    ring = np.sin(2 * np.pi * hz * t) * np.exp(-t / rng.uniform(0.002, 0.008))
    return ring + rng.uniform(0.3, 1.0) * rng.standard_normal(len(t)) * np.exp(-t / rng.uniform(0.0005, 0.002))


def tick_tock(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A clock: two different taps in turn, in strict time (120 to 300 a minute)."""
    tick_hz = log_uniform(rng, 1800, 5000)
    taps = click(rng, tick_hz, rate_hz), rng.uniform(0.5, 1.0) * click(rng, tick_hz * rng.uniform(0.5, 0.8), rate_hz)
    step_s = rng.uniform(0.2, 0.5)
    wave = np.zeros(samples)
    for i, t in enumerate(np.arange(rng.uniform(0, step_s), samples / rate_hz, step_s)):
        add(wave, taps[i % 2], round(t * rate_hz))
    return wave


def mains_hum(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """50 or 60 Hz (within 0.2 %) and its harmonics, the even ones the stronger, from start to end."""
    hz = MAINS_HZ[rng.integers(2)] * rng.uniform(0.998, 1.002)
    k = np.arange(1, rng.integers(8, 20), dtype=np.float64)
    amplitudes = k ** -rng.uniform(0.8, 1.6) * rng.uniform(0.2, 1.0, len(k)) * np.where(k % 2 == 0, 2.0, 1.0)
    return timbre(cycles(rng, hz, samples, rate_hz), amplitudes, hz, rate_hz)


def pulse(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Short bursts of a low tone or of dull noise in strict time, around one a second."""
    period_s, on_s = rng.uniform(0.55, 1.3), rng.uniform(0.08, 0.25)
    starts = np.arange(rng.uniform(-on_s / 2, period_s / 2), samples / rate_hz, period_s)
    envelope = spans([(t, t + on_s) for t in starts], samples, rate_hz, rng.uniform(0.01, 0.06))
    hz = log_uniform(rng, 90, 500)
    tone = timbre(cycles(rng, hz, samples, rate_hz), np.arange(1.0, 6.0) ** -rng.uniform(0.8, 2.5), hz, rate_hz)
    noise = power_noise(rng, samples, rate_hz, 2.0, low_hz=200.0)
    return (tone + rng.uniform(0, 0.4) * noise) * envelope


BAR_RATIOS = (1.0, 2.756, 5.404, 8.933)
"""Partials of a struck free bar."""
BELL_RATIOS = (1.0, 2.0, 2.4, 3.0, 4.5)
"""Partials of a gong or tubular chime, near those of a tuned bell."""


def ding(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A small piece of metal struck once to three times."""
    one = strike(rng, log_uniform(rng, 1700, min(4000, 0.4 * rate_hz)), log_uniform(rng, 0.2, 0.8), rate_hz, BAR_RATIOS)
    wave = np.zeros(samples)
    t = rng.uniform(0.0, 0.35) * samples / rate_hz
    for _ in range(rng.integers(1, 4)):
        add(wave, rng.uniform(0.6, 1.0) * one, round(t * rate_hz))
        t += rng.uniform(0.5, 1.4)
    return wave


def ding_dong(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A door chime: two strikes, the second a third (or a fourth) lower."""
    hz, decay_s = log_uniform(rng, 500, 1000), log_uniform(rng, 0.3, 0.9)
    low = hz / 2 ** (rng.choice([3.0, 4.0, 5.0]) / 12)
    wave = np.zeros(samples)
    t = rng.uniform(0.0, 0.3) * samples / rate_hz
    while t < samples / rate_hz - 0.5:
        gap_s = rng.uniform(0.35, 0.8)
        add(wave, strike(rng, hz, decay_s, rate_hz, BELL_RATIOS), round(t * rate_hz))
        add(wave, strike(rng, low, decay_s, rate_hz, BELL_RATIOS), round((t + gap_s) * rate_hz))
        t += gap_s + rng.uniform(1.5, 3.0)
    return wave


def buzz(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A fast rough vibration, as of wings: a rich spectrum whose pitch and level flutter and swell."""
    hz = log_uniform(rng, 90, 260)
    t = np.arange(samples) / rate_hz
    knots = np.linspace(0.0, samples / rate_hz, 2 + round(8 * samples / rate_hz))
    pitch = np.interp(t, knots, rng.normal(0.0, 0.04, len(knots))) + 0.05 * np.sin(
        2 * np.pi * (rng.uniform(0.2, 1.5) * t + rng.uniform())
    )
    level = np.exp(np.interp(t, knots, rng.normal(0.0, 0.3, len(knots))))
    amplitudes = np.arange(1, 81, dtype=np.float64) ** -rng.uniform(0.4, 0.9)
    phase = cycles(rng, hz * (1 + pitch), samples, rate_hz)
    return timbre(phase, amplitudes, 1.2 * hz, rate_hz) * level * held(rng, samples, rate_hz)


def static(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Interference: a hiss whose level jumps, with sharp crackles all over it."""
    seconds = samples / rate_hz
    knots = np.sort(rng.uniform(0.0, samples, round(rng.uniform(2, 8) * seconds))).astype(np.int64)
    steps = np.repeat(10 ** (rng.uniform(-15, 0, len(knots) + 1) / 20), np.diff(knots, prepend=0, append=samples))
    wave = 0.3 * power_noise(rng, samples, rate_hz, rng.uniform(0.0, 0.6)) * steps
    tail = np.arange(round(0.01 * rate_hz))
    for at in rng.integers(0, samples, rng.poisson(rng.uniform(10, 50) * seconds)):
        decay = np.exp(-tail / (rng.uniform(0.0003, 0.002) * rate_hz))
        add(wave, min(5.0, rng.pareto(2.0) + 0.5) * decay * rng.standard_normal(len(tail)), int(at))
    return wave


def throbbing(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A dull drone or rumble that swells and fades two to six times a second."""
    t = np.arange(samples) / rate_hz
    swell = 0.5 - 0.5 * np.cos(2 * np.pi * (rng.uniform(1.8, 6.0) * t + rng.uniform()))
    hz = log_uniform(rng, 60, 160)
    drone = timbre(cycles(rng, hz, samples, rate_hz), np.arange(1.0, 7.0) ** -rng.uniform(0.8, 2.0), hz, rate_hz)
    mix = rng.uniform()
    rumble = power_noise(rng, samples, rate_hz, 3.0, low_hz=120.0)
    return (mix * drone + (1 - mix) * 0.5 * rumble) * (0.05 + swell ** rng.uniform(1.0, 2.5))


def piezo(rng: Generator, hz: float, samples: int, rate_hz: int) -> Wave:
    """The steady tone of a piezo sounder: a strong fundamental and weaker odd harmonics."""
    return timbre(cycles(rng, hz, samples, rate_hz), odd_harmonics(7, rng.uniform(1.2, 3.0)), hz, rate_hz)


def alarm_clock(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A digital alarm clock: four quick beeps each second."""
    on_s = rng.uniform(0.05, 0.08)
    pattern = (on_s, on_s) * 3 + (on_s, 1.0 - 7 * on_s)
    return piezo(rng, rng.uniform(1950, 2800), samples, rate_hz) * cadence(rng, samples, rate_hz, pattern)


def smoke_alarm(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A smoke detector: three long shrill tones, a pause."""
    return piezo(rng, rng.uniform(3000, 3400), samples, rate_hz) * cadence(rng, samples, rate_hz, T3_CADENCE_S)


def reversing_beeps(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A lorry's reversing alarm: one pitch, half a second on, half a second off."""
    on_s = rng.uniform(0.35, 0.6)
    return piezo(rng, rng.uniform(1000, 1500), samples, rate_hz) * cadence(rng, samples, rate_hz, (on_s, on_s))


def telephone_bell(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """An electromechanical bell: a hammer between two gongs, forty-odd blows a second, in a national cadence."""
    hz = log_uniform(rng, 900, 1900)
    gongs = [strike(rng, f, rng.uniform(0.1, 0.3), rate_hz, BELL_RATIOS) for f in (hz, hz * rng.uniform(1.1, 1.35))]
    ring = cadence(rng, samples, rate_hz, RING_CADENCES_S[rng.integers(len(RING_CADENCES_S))])
    wave = np.zeros(samples)
    step_s = 0.5 / rng.uniform(16.0, 25.0)
    for i, t in enumerate(np.arange(0.0, samples / rate_hz, step_s)):
        at = round(t * rate_hz)
        if at < samples and ring[at] > 0.5:
            add(wave, rng.uniform(0.8, 1.0) * gongs[i % 2], at)
    return wave


def ringtone(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """A mobile telephone: a motif of quick notes on a pentatonic scale, played again and again."""
    hz, step_s = log_uniform(rng, 600, 1300), rng.uniform(0.08, 0.16)
    scale = np.array([0, 2, 4, 7, 9, 12, 14, 16])
    motif = rng.choice(scale, rng.integers(4, 9))
    amplitudes = odd_harmonics(9, rng.uniform(0.8, 2.0)) + 0.3 * rng.uniform(size=9)
    wave = np.zeros(samples)
    t = rng.uniform(0.0, 0.2) * samples / rate_hz
    pause_s = rng.uniform(0.1, 0.8)
    while t < samples / rate_hz:
        for note in motif:
            f, n = float(hz * 2 ** (note / 12)), round(step_s * rate_hz)
            tone = timbre(cycles(rng, f, n, rate_hz), amplitudes, f, rate_hz)
            add(wave, tone * spans([(0.0, step_s)], n, rate_hz), round(t * rate_hz))
            t += step_s
        t += pause_s
    return wave


def silence(rng: Generator, samples: int, rate_hz: int) -> Wave:
    """Nothing: the background that every clip gets is all there is."""
    return np.zeros(samples)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One kind of sound: the AudioSet names that it earns (its own first), and how it is made."""

    labels: tuple[str, ...]
    render: Synthesiser
    noisy: bool = False
    """Broadband noise: the shape of its spectrum is what it is, so it is filtered less and masks others."""

    @property
    def name(self) -> str:
        """The recipe's own class."""
        return self.labels[0]


RECIPES: tuple[Recipe, ...] = (
    Recipe(("Sine wave",), sine_wave),
    Recipe(("Chirp tone",), chirp_tone),
    Recipe(("White noise", "Noise"), white_noise, noisy=True),
    Recipe(("Pink noise", "Noise"), pink_noise, noisy=True),
    Recipe(("Harmonic",), harmonic),
    Recipe(("Beep, bleep",), beep),
    Recipe(("Dial tone", "Telephone"), dial_tone),
    Recipe(("Busy signal", "Telephone"), busy_signal),
    Recipe(("Telephone dialing, DTMF", "Telephone"), dtmf),
    Recipe(("Siren",), siren),
    Recipe(("Tick-tock", "Tick", "Clock"), tick_tock),
    Recipe(("Mains hum", "Hum"), mains_hum),
    Recipe(("Pulse",), pulse),
    Recipe(("Ding",), ding),
    Recipe(("Buzz",), buzz),
    Recipe(("Silence",), silence),
    Recipe(("Static",), static, noisy=True),
    Recipe(("Throbbing",), throbbing),
    Recipe(("Alarm clock", "Alarm", "Beep, bleep"), alarm_clock),
    Recipe(("Smoke detector, smoke alarm", "Alarm", "Beep, bleep"), smoke_alarm),
    Recipe(("Reversing beeps", "Beep, bleep"), reversing_beeps),
    Recipe(("Telephone bell ringing", "Telephone"), telephone_bell),
    Recipe(("Ringtone", "Telephone"), ringtone),
    Recipe(("Ding-dong", "Doorbell"), ding_dong),
)
"""What is rendered, and the labels each sound gets. Labels beyond the class itself are those a listener would give
too: the telephone behind its signals, the clock behind its ticks, the beeps an alarm is made of."""
