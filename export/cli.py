"""`ced-edge export`."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path

import click

from ced_edge.audio.clips import Clip, read_clips
from ced_edge.errors import InputError
from ced_edge.network.checkpoint import find_checkpoint
from ced_edge.runtime.bundle import FORMATS, INPUTS
from export.bundle import ExportConfig, export_bundle
from export.verify import Verdict

log = logging.getLogger(__name__)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="[default: `bundle` beside the weights]")
@click.option("--format", "formats", default=",".join(FORMATS), show_default=True, metavar="F,...")
@click.option("--int8", is_flag=True, help="int8 weights and products.  [default: on]")
@click.option("--int8-static", is_flag=True, help="int8 with calibrated ranges, for accelerators that need them.")
@click.option("--per-tensor", is_flag=True, help="One scale for a layer's int8 weights, as tflite-runtime 2.14 needs.")
@click.option("--fp32", is_flag=True, help="Float alone, which else comes along.")
@click.option("--input", "input_", type=click.Choice(INPUTS), default="waveform", show_default=True)
@click.option("--window", "window_s", type=float, default=10.0, show_default=True, help="Seconds of one call at most.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Sounds to measure ranges on.  [default: the run's pack]",
)
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="Manifest to verify on, too; repeat.")
@click.option("--split", help="Only rows with this in the `split` column.")
@click.option(
    "--audio-root",
    type=click.Path(file_okay=False, path_type=Path),
    help="What file names are relative to, if not the manifest.",
)
@click.option("--runs", type=click.Path(file_okay=False, path_type=Path), default="runs", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def export(
    checkpoint: str | None,
    out: Path | None,
    formats: str,
    int8: bool,
    int8_static: bool,
    per_tensor: bool,
    fp32: bool,
    input_: str,
    window_s: float,
    calibration: Path | None,
    data: tuple[Path, ...],
    split: str | None,
    audio_root: Path | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Turn a checkpoint (a run, a file, or a hub name; default: the latest run) into a bundle for devices.

    It ends with verification: the files must answer as the checkpoint does, or nothing is written.
    """
    for option, value in (("--split", split), ("--audio-root", audio_root)):
        if value is not None and not data:
            raise InputError(f"{option} has no effect without --data: give a manifest to verify on, or leave it out")
    clips = _present(read_clips(data, split, audio_root))
    source = checkpoint or str(latest_run(runs))
    weights = find_checkpoint(source).weights
    is_local = Path(source).expanduser().exists()
    out = out or (weights.parent if is_local else Path(source.replace("/", "-"))) / "bundle"
    kinds = ("fp32", *["int8"] * (int8 or not (fp32 or int8_static)), *["int8-static"] * int8_static)
    pack = weights.parent / "pack"
    config = ExportConfig(
        formats=tuple(dict.fromkeys(formats.split(","))),
        kinds=kinds,
        input=input_,
        window_s=window_s,
        per_channel=not per_tensor,
        calibration=calibration or (pack if pack.is_dir() else None),
    )
    if calibration is not None and not config.needs_ranges:
        raise InputError("--calibration has no effect on these files, which measure no ranges: leave it out")
    verdicts = export_bundle(source, out, config, clips)
    if as_json:
        click.echo(json.dumps({"bundle": str(out), "files": [v.to_dict() for v in verdicts]}, indent=1))
    else:
        click.echo(table(verdicts))
        click.echo(f"{out}: verified")


def _present(clips: list[Clip]) -> list[Clip]:
    """The clips whose files are there; the others are told of now, not after minutes. Raises InputError if none is."""
    missing = [clip for clip in clips if not os.path.exists(clip.path)]
    if not missing:
        return clips
    told = f"no such file: {missing[0].path}" + (f", and {len(missing) - 1} more" if missing[1:] else "")
    if len(missing) == len(clips):
        raise InputError(f"no clip of --data is there: {told}: name their folder with --audio-root")
    log.warning("%d of %d clips left out: %s", len(missing), len(clips), told)
    return [clip for clip in clips if os.path.exists(clip.path)]


def latest_run(runs: Path) -> Path:
    """The run whose checkpoint was written last. Raises InputError."""
    found = sorted(runs.glob("*/model.safetensors"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise InputError(f"no run in {runs}: name a checkpoint, or train one with `ced-edge distill`")
    return found[-1].parent


def table(verdicts: list[Verdict]) -> str:
    """A row per file and set of clips."""
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
