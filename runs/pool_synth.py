#!/usr/bin/env python3
"""Fill gaps of the training pool with sounds made here: runs/pool_synth.py OUT

Recordings that anyone may use are rare for many AudioSet classes. This script makes three kinds of sounds:

    music   every instrument of General MIDI alone, and short pieces in the style of many genres, by fluidsynth
    speech  sentences in many languages and voices, sung vowels, crowds of voices, by espeak-ng and festival
    device  alarms, tones, motors, fans and other appliances, as filtered noise and harmonics

It writes OUT/clips/KIND/*.flac (mono, 32 kHz, 10 s at most) and the manifest OUT/pool.csv. Nothing is labelled: the
teachers decide what each clip sounds like. A clip is a function of its name alone, so a second run gives the same.

    apt-get install fluidsynth fluid-soundfont-gm espeak-ng festival festvox-kallpc16k festvox-kdlpc16k
    apt-get install festvox-us-slt-hts festvox-italp16k festvox-itapc16k festvox-czech-dita festvox-czech-krb
    pip install ced-edge mido
"""

from __future__ import annotations

import csv
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
import soundfile
from pool.devices import DEVICES, device
from pool.music import GENRES, drums, genre, instrument, play
from pool.speech import FESTIVAL, LANGUAGES, VOICES, crowd, recited, spoken, sung
from pool.tools import CLIP_S, RATE_HZ, rng_of

from ced_edge.arrays import Float32
from ced_edge.errors import CedEdgeError
from ced_edge.files import atomic_path


def names(takes: int) -> dict[str, list[str]]:
    """Kind -> names of its clips."""
    music = [f"gm-{program}-{take}" for program in range(128) for take in range(takes)]
    music += [f"drums-{key}-{take}" for key in (0, 0, 0, *range(35, 82)) for take in range(takes)]
    music += [f"genre-{style}-{take}" for style in GENRES for take in range(4 * takes)]
    voices = [VOICES[i % len(VOICES)] for i in range(takes * len(LANGUAGES))]
    speech = [
        f"talk-{language}-{voices[i * takes + k]}-{k}" for i, language in enumerate(LANGUAGES) for k in range(takes)
    ]
    speech += [f"talk-en-us-{voice}-{k}" for voice in VOICES for k in range(2 * takes)]
    speech += [f"recite-{voice}-{k}" for voice in FESTIVAL for k in range(4 * takes)]
    speech += [f"crowd-{size}-{k}" for size in (2, 4, 8, 16) for k in range(3 * takes)]
    speech += [
        f"sing-{voice}-{k}"
        for voice in ("bass", "tenor", "alto", "soprano", "child", "choir")
        for k in range(5 * takes)
    ]
    devices = [f"device-{kind}-{k}" for kind in DEVICES for k in range(takes)]
    return {
        kind: list(dict.fromkeys(made)) for kind, made in (("music", music), ("speech", speech), ("device", devices))
    }


def make(name: str) -> Float32:
    """The samples of a clip: at most 10 s at RATE_HZ, peak between -20 and -1 dBFS."""
    makers = {"gm": instrument, "drums": drums, "genre": genre}
    sounds = {"talk": spoken, "recite": recited, "crowd": crowd, "sing": sung, "device": device}
    kind = name.split("-")[0]
    wave = play(makers[kind](name)) if kind in makers else sounds[kind](name)
    wave = wave[: round(CLIP_S * RATE_HZ)]
    peak = 10 ** (rng_of(f"level {name}").uniform(-20, -1) / 20)
    return (wave * (peak / max(float(np.abs(wave).max(initial=0.0)), 1e-9))).astype(np.float32)


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--takes", type=click.IntRange(1), default=3, show_default=True, help="Clips of each kind of sound.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True)
def main(out: Path, takes: int, jobs: int) -> None:
    """Make sounds and a manifest of them in OUT; clips that are there already are kept."""
    if missing := [tool for tool in ("fluidsynth", "espeak-ng", "text2wave") if shutil.which(tool) is None]:
        raise CedEdgeError(f"{', '.join(missing)} not found: apt-get install fluidsynth espeak-ng festival")

    def write(kind: str, name: str) -> tuple[str, str, float]:
        path = out / "clips" / kind / f"{name.replace(' ', '_')}.flac"
        if not path.exists():
            with atomic_path(path) as temporary:
                soundfile.write(temporary, make(name), RATE_HZ, format="FLAC", subtype="PCM_16")
        return path.relative_to(out).as_posix(), kind, soundfile.info(path).duration

    with ThreadPoolExecutor(jobs) as pool:
        wanted = [(kind, name) for kind, all_of_it in names(takes).items() for name in all_of_it]
        rows = list(pool.map(write, *zip(*wanted, strict=True)))
    with atomic_path(out / "pool.csv") as path, path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["filename", "kind", "seconds", "licence"])
        writer.writerows((*row, "made by runs/pool_synth.py") for row in rows)
    click.echo(f"{out / 'pool.csv'}: {len(rows)} clips, {sum(row[2] for row in rows) / 3600:.2f} hours")


if __name__ == "__main__":
    try:
        main()
    except CedEdgeError as e:
        sys.exit(f"error: {e}")
