"""Writes what Python predicts with a bundle's int8 .onnx: `answers.py BUNDLE FOLDER`. The JVM's tests compare with it.

Clips: golden/clip.wav in three parts, six synthesised sounds, and eight of ../shared/audio/esc10 where that is there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import soxr

from ced_edge.arrays import Float32
from ced_edge.runtime.tagger import Tagger
from distill.demo.synth import synthesise

ROOT = Path(__file__).resolve().parents[2]
ESC10 = ROOT.parent / "shared" / "audio" / "esc10"


def clips(rate: int) -> dict[str, Float32]:
    wave, _ = soundfile.read(ROOT / "android_demo/golden/clip.wav", dtype="float32")
    found = {f"clip {s} s": wave[s * rate : (s + 2) * rate] for s in (0, 2, 4)}
    found |= {f"synthesised {i}": synthesise(i, 7, 4.0, rate)[0] for i in range(6)}
    for path in sorted(ESC10.glob("*.ogg"))[::40]:
        samples, hz = soundfile.read(path, dtype="float32")
        found[path.stem] = soxr.resample(samples, hz, rate)[: 5 * rate]
    return {name: np.asarray(c, np.float32) for name, c in found.items()}


def main() -> None:
    bundle, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    tagger = Tagger(bundle, kind="int8", format="onnx")
    rows = []
    for i, (name, wave) in enumerate(clips(tagger.rate_hz).items()):
        wave.astype("<f4").tofile(folder / f"{i}.f32")
        probs = tagger.predict_window(wave)
        probs.astype("<f4").tofile(folder / f"{i}.probs")
        rows.append({"name": name, "probs": [float(p) for p in probs]})
    (folder / "answers.json").write_text(json.dumps({"version": onnxruntime.__version__, "clips": rows}))


if __name__ == "__main__":
    main()
