"""How many quiet clips are recognised, with and without a gain?

    python benchmarks/gain.py BUNDLE MANIFEST

MANIFEST is one with labels, such as esc10.csv; only rows of the split `dev` are used. Printed is the share of clips of
which a right class reaches 0.4, as they are and 30 and 40 dB quieter.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ced_edge.audio.clips import read_clips
from ced_edge.audio.level import Gain
from ced_edge.audio.read import load
from ced_edge.runtime.tagger import Tagger

REACHED = 0.4
"""The default of `ced-edge listen --on`."""


def main() -> None:
    tagger = Tagger(sys.argv[1], kind="int8", format="onnx")
    clips = read_clips([Path(sys.argv[2])], "dev", None)
    waves = [load(clip.path, tagger.rate_hz) for clip in clips]
    print(f"{len(clips)} clips")
    for quieter_db in (0.0, 30.0, 40.0):
        shares = []
        gains: tuple[Gain, ...] = (0.0, "auto", quieter_db)
        for gain_db in gains:
            factor = np.float32(10 ** (-quieter_db / 20))
            probs = [tagger.predict(wave * factor, gain_db=gain_db) for wave in waves]
            right = [p[list(clip.labels)].max() >= REACHED for p, clip in zip(probs, clips, strict=True)]
            shares.append(f"--gain {gain_db}: {np.mean(right):.3f}")
        print(f"{quieter_db:g} dB quieter  " + "  ".join(shares))


if __name__ == "__main__":
    main()
