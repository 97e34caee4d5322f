"""`ced-edge export` and `ced-edge android`."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ced_edge.audio.clips import Clip, read_clips
from ced_edge.errors import InputError
from ced_edge.options import (
    FILE,
    FOLDER,
    SECONDS,
    bundle_option,
    data_options,
    find_bundle,
    given_flags,
    json_option,
    several_option,
)
from ced_edge.runtime.bundle import BUNDLE_NAME, FORMATS, INPUTS, KINDS
from export.android import ABIS, build_apk, check_build
from export.config import ExportConfig

if TYPE_CHECKING:
    from export.verify import Verdict

log = logging.getLogger(__name__)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--out", type=FOLDER, help="Folder of the bundle.  [default: `bundle` beside the weights]")
@several_option(
    "--format", "formats", FORMATS, default=",".join(FORMATS), show_default=True, help="Formats of the model files."
)
@several_option(
    "--kinds",
    "kinds",
    sorted(KINDS),
    default="fp32,int8",
    show_default=True,
    help="Arithmetic of the model files. `int8` alone makes a small bundle for a device. int8-static is for "
    "accelerators that need ranges measured before.",
)
@click.option("--int8", is_flag=True, help="Short for --kinds fp32,int8.")
@click.option("--per-tensor", is_flag=True, help="One scale for a layer's int8 weights, as tflite-runtime 2.14 needs.")
@click.option(
    "--input", "input_", type=click.Choice(INPUTS), default="waveform", show_default=True, help="Input of the models."
)
@click.option(
    "--window", "window_s", type=SECONDS, default=10.0, show_default=True, help="Longest input of one call in seconds."
)
@click.option(
    "--calibration", type=FILE, help="Pack, manifest or folder to measure int8 ranges on.  [default: the run's pack]"
)
@click.option("--data", type=FILE, multiple=True, help="Manifest of clips to verify on too; repeat.")
@data_options
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder of all runs.")
@json_option()
def export(
    checkpoint: str | None,
    out: Path | None,
    formats: tuple[str, ...],
    kinds: tuple[str, ...],
    int8: bool,
    per_tensor: bool,
    input_: str,
    window_s: float,
    calibration: Path | None,
    data: tuple[Path, ...],
    split: str | None,
    audio_root: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Turn a checkpoint (a run, a file, or a hub name; default: the newest run) into a bundle for devices.

    Every file is verified at the end: if its predictions differ too much from the checkpoint's, nothing is written.
    """
    if int8 and given_flags(["kinds"]):
        raise InputError("--int8 is short for --kinds fp32,int8: give one of the two")
    if not data and (given := given_flags(["split", "audio_root"])):
        raise InputError(f"{given[0]} has no effect without --data: give a manifest to verify on, or leave it out")
    if calibration is not None and not ExportConfig(formats, kinds, calibration=calibration).needs_ranges:
        raise InputError("--calibration has no effect on these files, which measure no ranges: leave it out")
    clips = _existing(read_clips(data, split, audio_root))
    source = checkpoint or str(latest_run(runs))
    from ced_edge.network.checkpoint import find_checkpoint
    from export.bundle import export_bundle

    weights = find_checkpoint(source).weights
    is_local = Path(source).expanduser().exists()
    out = out or (weights.parent if is_local else Path(source.replace("/", "-"))) / "bundle"
    pack = weights.parent / "pack"
    config = ExportConfig(
        formats=formats,
        kinds=kinds,
        input=input_,
        window_s=window_s,
        per_channel=not per_tensor,
        calibration=calibration or (pack if pack.is_dir() else None),
    )
    verdicts = export_bundle(source, out, config, clips)
    if as_json:
        click.echo(json.dumps({"bundle": str(out), "files": [v.to_dict() for v in verdicts]}, indent=1))
    else:
        click.echo(table(verdicts))
        click.echo(f"{out}: verified")


@click.command()
@click.argument("source", required=False)
@bundle_option
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="APK to write, such as app.apk."
)
@click.option("--abi", type=click.Choice(ABIS), default=ABIS[0], show_default=True, help="Kind of processor.")
@json_option()
def android(source: str | None, bundle: Path | None, out: Path, abi: str, as_json: bool) -> None:
    """Build the demonstration app around a bundle: an APK to install with `adb install`.

    SOURCE is a bundle, or a checkpoint (a run, a file, or a hub name) that is exported first. The first build fetches
    about 500 MB of tools.
    """
    if source is not None and bundle is not None:
        raise InputError(f"give {source} or --bundle {bundle}, not both")
    if source is not None and (Path(source) / BUNDLE_NAME).is_file():
        bundle, source = Path(source), None
    with tempfile.TemporaryDirectory() as folder:
        if source is not None:
            check_build(out)  # before the export, which takes minutes
            from export.bundle import export_bundle

            bundle = Path(folder) / "bundle"
            export_bundle(source, bundle, ExportConfig(formats=("onnx",), kinds=("int8",)), [])
        apk = build_apk(find_bundle(bundle), out, abi)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(apk), "path": str(apk.path)}, indent=1))
    else:
        click.echo(f"{apk.path}: {apk.bytes / 1e6:.1f} MB for {apk.abi}, with {apk.model}. adb install {apk.path}")


def _existing(clips: list[Clip]) -> list[Clip]:
    """The clips whose files exist; others are reported now, not after minutes. Raises InputError if there is none."""
    missing = [clip for clip in clips if not os.path.exists(clip.path)]
    if not missing:
        return clips
    text = f"no such file: {missing[0].path}" + (f", and {len(missing) - 1} more" if missing[1:] else "")
    if len(missing) == len(clips):
        raise InputError(f"none of the clips of --data exists: {text}: name their folder with --audio-root")
    log.warning("%d of %d clips left out: %s", len(missing), len(clips), text)
    return [clip for clip in clips if os.path.exists(clip.path)]


def latest_run(runs: Path) -> Path:
    """The run whose weights were written last. Raises InputError."""
    weights = sorted(runs.glob("*/model.safetensors"), key=lambda p: p.stat().st_mtime)
    if not weights:
        raise InputError(f"no run in {runs}: name a checkpoint, or train one with `ced-edge distill`")
    log.info("exporting the run %s", weights[-1].parent)
    return weights[-1].parent


def table(verdicts: list[Verdict]) -> str:
    """Text with a row per file and set of clips."""
    rows = [
        f"{'file':24} {'MB':>6} {'clips':>6} {'max error':>9} {'mean error':>10} "
        f"{'noise':>6} {'top-1':>7} {'top-5':>7} {'mAP':>7} {'drop':>8}"
    ]
    for v in verdicts:
        c = v.comparison
        row = f"{v.file:24} {v.bytes / 1e6:6.2f} {c.clips:6} {c.max_error:9.1e} {c.mean_error:10.1e}"
        row += f" {c.noise:6.3f} {c.top1:7.1%} {c.top5:7.1%}"
        if not math.isnan(c.drop):
            row += f" {c.mean_ap:7.4f} {c.drop:8.4f}"
        rows.append(row)
    return "\n".join(rows)
