"""Alarms and appliances for the training pool: filtered noise and the harmonics of motors. See runs/pool_synth.py."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from pool.tools import CLIP_S, RATE_HZ, rng_of

from ced_edge.arrays import Float32


def device(name: str) -> Float32:
    """`device-KIND-TAKE`: an alarm, or an appliance as filtered noise and the harmonics of its motor."""
    rng = rng_of(name)
    kind = name.split("-")[1]
    t = np.arange(round(CLIP_S * RATE_HZ)) / RATE_HZ
    return DEVICES[kind](rng, t).astype(np.float32)


def noise(rng: Generator, n: int, low_hz: float, high_hz: float, slope: float = 0.0) -> np.ndarray:
    """Gaussian noise in a band, falling by `slope` powers of the frequency; RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(n))
    hz = np.fft.rfftfreq(n, 1 / RATE_HZ)
    edges = 1 / (1 + (low_hz / np.maximum(hz, 1.0)) ** 4) / (1 + (hz / high_hz) ** 4)
    wave = np.fft.irfft(spectrum * edges * np.maximum(hz, 20.0) ** -slope, n)
    return wave / max(float(wave.std()), 1e-9)


def motor(rng: Generator, t: np.ndarray, hz: np.ndarray | float, harmonics: int = 24, slope: float = 1.0) -> np.ndarray:
    """The harmonics of a turning motor, of random strengths, with a little flutter; RMS 1."""
    flutter = 1 + 0.004 * np.cumsum(rng.standard_normal(len(t))) / np.sqrt(len(t))
    phase = 2 * np.pi * np.cumsum(hz * flutter) / RATE_HZ
    wave = sum(
        rng.lognormal(0, 0.7) / k**slope * np.sin(k * phase + rng.uniform(0, 6.3)) for k in range(1, harmonics + 1)
    )
    return wave / max(float(np.std(wave)), 1e-9)


def bursts(rng: Generator, t: np.ndarray, on_s: float, period_s: float, count: int, pause_s: float) -> np.ndarray:
    """`count` beeps of `on_s`, one every `period_s`, then a pause; 0 to 1, with soft edges."""
    at = (t + rng.uniform(0, 5)) % (count * period_s + pause_s)
    inside, place = at < count * period_s, at % period_s
    return inside * np.clip(np.minimum(place, on_s - place) / 0.004, 0, 1)


def run_up(rng: Generator, t: np.ndarray) -> np.ndarray:
    """Speed of a machine that is switched on and off, 0 to 1; often it runs all the time."""
    if rng.uniform() < 0.5:
        return np.ones_like(t)
    start, stop = rng.uniform(0, 3), rng.uniform(6, 12)
    return np.clip((t - start) / rng.uniform(0.2, 1.0), 0, 1) * np.clip((stop - t) / rng.uniform(0.5, 2.0), 0, 1)


def _vacuum(r: Generator, t: np.ndarray) -> np.ndarray:
    speed = run_up(r, t)
    return speed * (
        noise(r, len(t), 200, 6_000, 0.5) + r.uniform(0.2, 0.6) * motor(r, t, r.uniform(180, 420) * (0.2 + 0.8 * speed))
    )


def _drill(r: Generator, t: np.ndarray) -> np.ndarray:
    speed = run_up(r, t) * (1 - 0.3 * np.clip(np.sin(2 * np.pi * r.uniform(0.1, 0.4) * t), 0, 1))
    return speed * (motor(r, t, r.uniform(90, 250) * (0.2 + speed), 60, 0.6) + 0.5 * noise(r, len(t), 800, 9_000))


def _fan(r: Generator, t: np.ndarray) -> np.ndarray:
    return noise(r, len(t), 60, 2_500, 0.8) + r.uniform(0.1, 0.5) * motor(r, t, r.uniform(40, 130), 10, 1.4)


def _blender(r: Generator, t: np.ndarray) -> np.ndarray:
    speed = run_up(r, t)
    lumps = 1 + 0.4 * noise(r, len(t), 2, 15)
    return (
        speed
        * lumps
        * (motor(r, t, r.uniform(150, 320) * (0.3 + 0.7 * speed), 50, 0.7) + 0.7 * noise(r, len(t), 500, 8_000))
    )


def _dryer(r: Generator, t: np.ndarray) -> np.ndarray:
    speed = run_up(r, t)
    return speed * (
        noise(r, len(t), 300, 9_000, 0.3) + 0.3 * motor(r, t, r.uniform(250, 500) * (0.3 + 0.7 * speed), 15, 1.0)
    )


def _shaver(r: Generator, t: np.ndarray) -> np.ndarray:
    return motor(r, t, r.uniform(90, 125), 80, 0.5) + 0.4 * noise(r, len(t), 2_000, 10_000)


def _mower(r: Generator, t: np.ndarray) -> np.ndarray:
    return motor(r, t, r.uniform(25, 60), 80, 0.7) * (1 + 0.2 * noise(r, len(t), 1, 8)) + 0.5 * noise(
        r, len(t), 100, 5_000, 0.5
    )


def _engine(r: Generator, t: np.ndarray) -> np.ndarray:
    revs = r.uniform(12, 30) * (
        1 + r.uniform(0, 3) * np.clip(np.sin(2 * np.pi * r.uniform(0.05, 0.3) * t + r.uniform(0, 6)), 0, 1)
    )
    return motor(r, t, revs, 90, 0.8) + 0.4 * noise(r, len(t), 40, 1_500, 0.8)


def _starter(r: Generator, t: np.ndarray) -> np.ndarray:
    cranking = (t % 4 < 1.5) * (1 + 0.8 * np.sign(np.sin(2 * np.pi * r.uniform(3, 6) * t)))
    running = (t % 4 >= 1.5) * np.clip((t % 4 - 1.5) * 3, 0, 1)
    return cranking * motor(r, t, r.uniform(60, 110), 40, 0.8) * 0.5 + running * _engine(r, t)


def _pass_by(r: Generator, t: np.ndarray) -> np.ndarray:
    distance = np.sqrt(4 + ((t - r.uniform(3, 7)) * r.uniform(8, 25)) ** 2)
    return (noise(r, len(t), 200, 3_000, 0.6) + 0.5 * motor(r, t, r.uniform(40, 120), 30)) * 4 / distance


def _tap(r: Generator, t: np.ndarray) -> np.ndarray:
    return noise(r, len(t), 700, 10_000, 0.2) * (1 + 0.5 * noise(r, len(t), 5, 60)) + 0.3 * noise(r, len(t), 100, 500)


def _alarm(
    r: Generator, t: np.ndarray, hz: tuple[float, float], on: float, period: float, count: int, pause: float
) -> np.ndarray:
    tone = (
        np.sign(np.sin(2 * np.pi * r.uniform(*hz) * t)) if r.uniform() < 0.5 else np.sin(2 * np.pi * r.uniform(*hz) * t)
    )
    return tone * bursts(r, t, on, period, count, pause) + 0.01 * noise(r, len(t), 50, 8_000, 0.5)


def _sweep(r: Generator, t: np.ndarray, low: float, high: float, rate: tuple[float, float], square: bool) -> np.ndarray:
    swing = np.sin(2 * np.pi * r.uniform(*rate) * t)
    hz = low + (high - low) * (0.5 + 0.5 * (np.sign(swing) if square else swing))
    phase = 2 * np.pi * np.cumsum(hz) / RATE_HZ
    return np.sin(phase) + 0.4 * np.sin(3 * phase) + 0.2 * np.sin(5 * phase)


def _mains(r: Generator) -> float:
    return 50.0 if r.uniform() < 0.5 else 60.0


def _microwave(r: Generator, t: np.ndarray) -> np.ndarray:
    return motor(r, t, 2 * _mains(r), 20, 1.2) + 0.5 * noise(r, len(t), 80, 2_000, 0.8)


def _dentist(r: Generator, t: np.ndarray) -> np.ndarray:
    speed = 0.6 + 0.4 * run_up(r, t)
    return motor(r, t, r.uniform(2_500, 5_000) * speed, 3, 0.8) + 0.3 * noise(r, len(t), 3_000, 12_000)


def _sewing(r: Generator, t: np.ndarray) -> np.ndarray:
    stitches = np.sin(2 * np.pi * r.uniform(8, 18) * t) > 0
    return (motor(r, t, r.uniform(90, 160), 30) + noise(r, len(t), 500, 6_000)) * (0.4 + stitches)


def _smoke(r: Generator, t: np.ndarray) -> np.ndarray:
    # Three long beeps and a pause (ISO 8201), or quick beeps as older detectors give.
    slow = r.uniform() < 0.6
    return _alarm(r, t, (2_900, 3_400), *((0.5, 1.0, 3, 1.0) if slow else (0.15, 0.3, 9, 0.0)))


def _buzzer(r: Generator, t: np.ndarray) -> np.ndarray:
    return np.sign(np.sin(2 * np.pi * r.uniform(90, 420) * t)) * bursts(r, t, r.uniform(0.3, 2), 2.5, 4, 0)


def _drip(r: Generator, t: np.ndarray) -> np.ndarray:
    hz = r.uniform(900, 2_000) * (1 + 2 * (t % 0.7))
    return np.sin(2 * np.pi * np.cumsum(hz) / RATE_HZ) * np.exp(-25 * (t % 0.7))


DEVICES: dict[str, Callable[[Generator, np.ndarray], np.ndarray]] = {
    "vacuum": _vacuum,
    "drill": _drill,
    "fan": _fan,
    "blender": _blender,
    "dryer": _dryer,
    "shaver": _shaver,
    "mower": _mower,
    "engine": _engine,
    "starter": _starter,
    "passing": _pass_by,
    "tap": _tap,
    "microwave": _microwave,
    "dentist": _dentist,
    "sewing": _sewing,
    "smoke": _smoke,
    "buzzer": _buzzer,
    "drip": _drip,
    "conditioner": lambda r, t: noise(r, len(t), 50, 1_200, 1.0) + 0.2 * motor(r, t, r.uniform(48, 62), 8, 1.0),
    "brush": lambda r, t: motor(r, t, r.uniform(180, 270), 40, 0.8) * (1 + 0.3 * noise(r, len(t), 2, 10)),
    "clock": lambda r, t: _alarm(r, t, (1_800, 2_700), 0.06, 0.125, 4, r.uniform(0.4, 0.7)),
    "fire": lambda r, t: _sweep(r, t, 450, 1_200, (0.5, 3.0), r.uniform() < 0.5),
    "car alarm": lambda r, t: _sweep(r, t, 600, r.uniform(1_500, 3_000), (1.0, 8.0), r.uniform() < 0.4),
    "police": lambda r, t: _sweep(r, t, 500, 1_600, (0.15, 4.0), False),
    "ambulance": lambda r, t: _sweep(r, t, 435, 580, (0.4, 0.7), True),
    "reversing": lambda r, t: _alarm(r, t, (900, 1_400), 0.5, 1.0, 9, 0.0) + 0.1 * _engine(r, t),
    "white": lambda r, t: noise(r, len(t), 20, 15_000),
    "pink": lambda r, t: noise(r, len(t), 20, 15_000, 0.5),
    "static": lambda r, t: noise(r, len(t), 500, 12_000) * (0.5 + (noise(r, len(t), 1, 20) > 0.5)),
    "hum": lambda r, t: motor(r, t, _mains(r), 12, 0.8),
    "wind": lambda r, t: noise(r, len(t), 40, 700, 1.0) * np.exp(0.6 * noise(r, len(t), 0.1, 0.6)),
    "leaves": lambda r, t: noise(r, len(t), 1_500, 12_000, 0.3) * np.exp(noise(r, len(t), 0.5, 6)),
}
"""Kind of sound -> its maker."""
