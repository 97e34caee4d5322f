"""Writes core.json: what Python's runtime computes, for the Kotlin core to be compared with.

`golden.py` writes the file anew; `golden.py --check` exits with 1 where it is out of date. Both sides make the sound by
the same whole-number formula, so the file holds results alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import soxr

from ced_edge.audio.mix import Mixer
from ced_edge.frontend import frames_db
from ced_edge.runtime.events import EventRule, Events
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags, tag_stream
from ced_edge.spec import FrontendSpec
from ced_edge.windows import n_full, n_windows

HERE = Path(__file__).resolve().parent
PATH = HERE / "core.json"
LEVELS = (0, 1, 6, 8, 3, 0, 0, 8, 7, 2, 5, 8, 1)
"""Eighths of full scale, for 2,500 samples each: loud and quiet parts, so that events begin and end."""


def noise(n: int) -> np.ndarray:
    """Noise by a linear congruential generator: (n,) float32, every value exact."""
    out, x = np.empty(n, np.float32), 1
    for i in range(n):
        x = (1_103_515_245 * x + 12_345) % 2**31
        out[i] = ((x >> 16) - 16_384) / 16_384 * LEVELS[i // 2_500 % len(LEVELS)] / 8
    return out


def windows() -> list[list[int]]:
    cases = [(s, w, h) for w, h in ((10, 10), (10, 3), (7, 1), (2_400, 1_600)) for s in (0, 1, 9, 10, 11, 23, 4_800)]
    return [[s, w, h, n_full(s, w, h), n_windows(s, w, h)] for s, w, h in cases]


def top() -> list[dict[str, Any]]:
    p = np.array([0.1, 0.5, 0.5, 0.0, 0.9, 0.5, 0.2], np.float32)
    return [{"probs": p.tolist(), "k": k, "indices": np.argsort(-p, kind="stable")[:k].tolist()} for k in (1, 3, 7, 9)]


def events() -> list[dict[str, Any]]:
    rules: tuple[dict[str, Any], ...] = (
        {},
        {"on": 0.5, "off": 0.5},
        {"smooth": 3},
        {"on": 0.6, "off": 0.3, "min_duration_s": 0.9, "smooth": 2},
        {"classes": {1: (0.9, 0.45), 4: (0.3, 0.15)}},
    )
    x = noise(2_800)[2_500:].reshape(60, 5) * 8
    probs = np.abs(np.cumsum(np.concatenate([x[:30], -x[:30]]), axis=0) % 1).astype(np.float32)
    # The third window ends before the fourth begins: windows were skipped there.
    starts = [0.5 * i + 3 * (i >= 3) for i in range(len(probs))]
    tags = [Tags(s, s + 1.0, p) for s, p in zip(starts, probs, strict=True)]
    cases = []
    for rule in rules:
        e = Events(EventRule(**rule), 5)
        pushed = [[(v.index, v.start_s, v.end_s, v.peak) for v in e.push(t)] for t in tags]
        last = [(v.index, v.start_s, v.end_s, v.peak) for v in e.finish()]
        cases.append({"rule": rule, "pushed": pushed, "finish": last})
    assert sum(len(p) for c in cases for p in c["pushed"]) > 40
    return [{"starts": starts, "probs": [p.tolist() for p in probs], "cases": cases}]


def stream() -> list[dict[str, Any]]:
    """A stand-in for the model: class c is the loudest sample of the window's c-th quarter. Exact in any language."""

    def predict(wave: np.ndarray, *_: Any) -> np.ndarray:
        x = np.pad(wave, (0, max(0, 2_400 - len(wave))))
        n = len(x)
        return np.array([np.abs(x[c * n // 4 : (c + 1) * n // 4]).max() for c in range(4)], np.float32)

    spec = SimpleNamespace(min_samples=2_400, frontend=FrontendSpec())
    tagger = SimpleNamespace(
        rate_hz=16_000,
        predict_window=predict,
        bundle=SimpleNamespace(window_samples=8_000, spec=spec, folder="fake"),
    )
    cases = []
    for samples, window_s, hop_s in ((31_000, 0.3, 0.1), (8_000, 0.5, 0.5), (1_000, 0.5, 0.25), (20_011, 0.2, 0.17)):
        s = StreamingTagger(cast(Tagger, tagger), window_s, hop_s)
        tags = list(tag_stream(s, [(noise(samples), None)]))
        e = Events(EventRule(), 4)
        found = [v for t in tags for v in e.push(t)] + e.finish()
        cases.append(
            {
                "samples": samples,
                "window": s.window,
                "hop": s.hop,
                "tags": [[t.start_s, t.end_s, *map(float, t.probs)] for t in tags],
                "events": [[v.index, v.start_s, v.end_s, v.peak] for v in found],
            }
        )
    assert any(c["events"] for c in cases)
    return cases


def level() -> list[list[float]]:
    rows = []
    for n in (100, 4_000, 12_000):
        x = noise(n + 2_500)[2_500:].astype(np.float64)
        rms, peak = np.sqrt(np.mean(x**2)), np.abs(x).max()
        rows.append([n, 20 * float(np.log10(rms)), 20 * float(np.log10(peak))])
    return rows


def channels() -> list[np.ndarray]:
    """Sounds of several channels, (frames, channels) float32: they cancel each other, and then they do not."""
    a, b, c = noise(5_000)[2_500:3_100], noise(10_000)[5_000:5_600], noise(10_000)[7_500:8_100]
    stereo = np.stack([a, np.concatenate([-a[:300], b[300:]])], 1)
    three = np.stack(
        [c, np.concatenate([0 * c[:200], -c[200:400], b[400:]]), np.concatenate([0 * c[:400], a[400:]])], 1
    )
    return [stereo, three]


def mixed() -> list[list[float]]:
    """At 100 Hz: a tenth of a second is 10 samples."""
    sounds = []
    for frames in channels():
        mixer = Mixer(frames.shape[1], 100, None)
        sounds.append([*map(float, mixer.push(frames)), *map(float, mixer.finish())])
    return sounds


def tone(rate_hz: int, n: int) -> np.ndarray:
    t = np.arange(n) / rate_hz
    return (0.3 * sum(np.sin(2 * np.pi * f * t) for f in (300.0, 1_250.0, 3_100.0))).astype(np.float32)


def resampled() -> list[dict[str, Any]]:
    cases = []
    for rate in (8_000, 44_100, 48_000, 96_000):
        y = soxr.resample(tone(rate, rate // 20), rate, 16_000, quality="HQ")
        cases.append({"rate": rate, "samples": rate // 20, "out": [round(float(v), 5) for v in y]})
    return cases


def mel() -> list[list[float]]:
    return [
        [round(float(v), 4) for v in frame] for frame in frames_db(noise(20_000)[2_000:19_000:1], FrontendSpec())[::25]
    ]


def hashed() -> dict[str, str]:
    fields = {
        "b": [1, 2.5, 1e-10, 160.0],
        "a": {"z": None, "y": True, "x": False},
        "text": 'é "quoted" \\ \n\u20ac\U0001f600',
    }
    return {
        "json": json.dumps(fields, indent=1),
        "sha256": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(),
    }


def text() -> str:
    makers = (windows, top, events, stream, level, mixed, resampled, mel, hashed)
    parts = (f'"{m.__name__}": {json.dumps(m(), allow_nan=False)}' for m in makers)
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    if sys.argv[1:] != ["--check"]:
        PATH.write_text(text())
    elif not PATH.is_file() or PATH.read_text() != text():
        sys.exit(f"{PATH} is out of date: run python {Path(__file__).name}")


if __name__ == "__main__":
    main()
