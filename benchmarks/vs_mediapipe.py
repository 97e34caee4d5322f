"""Speed compared with MediaPipe's `AudioClassifier`: ten seconds of audio, from waveform to tags.

    make interop
    python benchmarks/vs_mediapipe.py BUNDLE --yamnet yamnet.tflite

MediaPipe runs in an environment of its own, with our .tflite files and with YAMNet, its usual model, whose window is
0.975 s. Ours is `Tagger`. MediaPipe chooses its number of threads itself, so all processes are bound to one core. The
parts take turns. Ratios are taken within a turn; the table shows their median and quartiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import soundfile
from race import ratios, show
from start import run

from ced_edge.audio.read import load
from ced_edge.runtime.bundle import Bundle, read_bundle
from ced_edge.runtime.tagger import Tagger

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / ".venv/interop/mediapipe/bin/python"


@contextmanager
def mediapipe(clip: Path, models: list[Path]) -> Iterator[subprocess.Popen[str]]:
    """Start a process that classifies `clip` with model i when it reads i, and writes the milliseconds."""
    if not PYTHON.exists():
        raise click.UsageError("MediaPipe is not installed: run `make interop`")
    command = [str(PYTHON), str(ROOT / "interop/mediapipe_timer.py"), str(clip), *map(str, models)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise click.ClickException("MediaPipe could not load the models: see its output above")
        try:
            yield child
        finally:
            child.kill()


def classify_ms(child: subprocess.Popen[str], model: int) -> float:
    """Milliseconds of one classification in MediaPipe."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{model}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def race(bundle: Bundle, yamnet: Path | None, turns: int) -> dict[str, np.ndarray]:
    """Name -> (turns,) milliseconds. The first two turns warm up and are not counted."""
    rate = bundle.spec.frontend.rate_hz
    noise = 0.05 * np.random.default_rng(0).standard_normal(bundle.window_samples)
    tflite = [file for file in bundle.files if file.format == "tflite"]
    names = [*(f"MediaPipe, {file.name}" for file in tflite), *(["MediaPipe, YAMNet"] if yamnet else [])]
    models = [*(bundle.path(file) for file in tflite), *([yamnet] if yamnet else [])]
    times_ms: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        soundfile.write(clip := Path(folder) / "noise.wav", noise, rate)
        wave = load(clip, rate)
        taggers = {f"ours, {file.name}": Tagger(bundle, file=file.name) for file in bundle.files}
        with mediapipe(clip, models) as child:
            for turn in range(-2, turns):
                for i, name in enumerate(names):
                    ms = classify_ms(child, i)
                    times_ms.setdefault(name, []).extend([ms] * (turn >= 0))
                for name, tagger in taggers.items():
                    start = time.perf_counter()
                    tagger.predict_window(wave)
                    times_ms.setdefault(name, []).extend([1e3 * (time.perf_counter() - start)] * (turn >= 0))
    return {name: np.array(ms) for name, ms in times_ms.items()}


@click.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--yamnet", type=click.Path(exists=True, path_type=Path), help="yamnet.tflite with metadata.")
@click.option("--turns", default=30, show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(folder: Path, yamnet: Path | None, turns: int, as_json: bool) -> None:
    """Measure and print."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bundle = read_bundle(folder)
    over = f"MediaPipe, {bundle.file(format='tflite').name}"
    result = ratios(race(bundle, yamnet, turns), over)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        show(result, over)


if __name__ == "__main__":
    run(main)
