"""The subcommands that train: each stage of the main job, and the main job itself."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ced_edge.audio.clips import read_clips
from ced_edge.errors import InputError
from ced_edge.spec import N_CLASSES
from distill.options import (
    DIRECTORY,
    FILE,
    PACK_HELP,
    config_options,
    data_options,
    parse_windows,
    read_config,
    teacher_options,
    view_options,
    view_recipe,
)
from distill.packing.pack import PackConfig
from distill.progress import download, say, stage
from distill.training.config import PretrainConfig, TrainConfig


@click.command()
@click.argument("data", nargs=-1, required=True, type=FILE)
@data_options
@click.option("--out", required=True, type=DIRECTORY, help="Folder to write.")
@click.option("--rate", "rate_hz", type=int, default=16_000, show_default=True, help="Sample rate in Hz.")
@click.option("--clips-per-shard", type=int, default=1_024, show_default=True)
@click.option("--segment", "segment_s", type=float, default=10.0, show_default=True, help="Longest clip in seconds.")
@click.option("--workers", type=int, default=os.cpu_count() or 1, show_default=True)
@click.option("--strict", is_flag=True, help="Fail when a file cannot be used.")
@click.option("--json", "as_json", is_flag=True, help="Result as JSON.")
def pack(
    data: tuple[Path, ...], split: str | None, audio_root: Path | None, out: Path, as_json: bool, **config: Any
) -> None:
    """Pack audio (manifests, AudioSet segment lists, folders) into WebDataset shards of FLAC."""
    from distill.packing.pack import pack as run

    clips = read_clips(data, split, audio_root)
    with stage("pack", len(clips)) as progress:
        shards = run(clips, out, PackConfig(**config), progress)
    result = {
        "clips": shards.clips,
        "hours": shards.seconds / 3600,
        "shards": len(shards.shards),
        "rejected": shards.rejected,
    }
    click.echo(json.dumps(result) if as_json else f"{out}: {shards.clips} clips, {result['hours']:.2f} hours")


@click.command()
@click.option("--fetch", "name", help="Fetch this teacher.")
@click.option("--to", "folder", type=DIRECTORY, default=Path("teachers"), show_default=True, help="Where to.")
@click.option("--sha256", help="Expected hash, where none is on record.")
@click.option("--json", "as_json", is_flag=True)
def teachers(name: str | None, folder: Path, sha256: str | None, as_json: bool) -> None:
    """List the teachers that are known, with source, licence and published mAP; fetch public ones."""
    from distill.teachers import registry

    if name:
        say(f"fetching {registry.by_name(name).url}")
        with download(name) as progress:
            path = registry.fetch(name, folder, sha256, progress)
        click.echo(path)
        return
    rows = registry.known_teachers()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        ap = f"mAP {row.mean_ap:.1f}" if row.mean_ap is not None else "mAP not published"
        click.echo(f"{row.name:16} {ap:20} {row.licence:12} {row.what}, {row.url}")


@click.command()
@click.option("--pack", "pack_path", required=True, help=PACK_HELP)
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the store.")
@teacher_options
@view_options
@click.option("-k", type=int, default=20, show_default=True, help="Classes kept per view.")
@click.option("--clean", is_flag=True, help="Answers about whole, unaugmented clips (inconsistent teaching).")
@click.option("--labels", is_flag=True, help="The clips' own labels as the only teacher; implies --clean.")
@click.option("--workers", type=int, default=None, help="Processes on the CPU.  [default: one per core]")
@click.option("--device", default="cpu", show_default=True)
def teach(
    pack_path: str,
    out: Path,
    teacher: tuple[str, ...],
    teachers_toml: Path | None,
    windows: str | None,
    views_toml: Path | None,
    view_seed: int | None,
    k: int,
    clean: bool,
    labels: bool,
    workers: int | None,
    device: str,
) -> None:
    """Let the teachers answer every view of a pack, once, into a store. Under torchrun ranks share the work."""
    from distill.packing.shards import Pack
    from distill.pipeline import run_teach
    from distill.processes import rank_and_world, run_lock
    from distill.teachers.spec import parse_teachers
    from distill.teaching.store import Store
    from distill.teaching.teach import teach_labels

    shards, views = Pack.open(pack_path), view_recipe(windows, views_toml, view_seed, "1x10")
    if labels and (teacher or teachers_toml):
        raise InputError("--labels are the only teacher: leave --teacher and --teachers out")
    with run_lock(out):
        if labels:
            described = [{"name": "labels", "sha256": shards.hash, "rate_hz": shards.rate_hz, "n_known": N_CLASSES}]
            store = Store(out, views, described, k, shards.hash, clean=True)
            teach_labels(shards, store)
        else:
            store = run_teach(shards, out, parse_teachers(teacher, teachers_toml), views, k, device, workers, clean)
    rank, world = rank_and_world()
    if world > 1:
        say(f"{out}: process {rank} of {world} has done its share")
    else:
        say(f"{out}: {store.bytes()} bytes for {shards.clips * len(store.epochs)} views")


@click.command()
@click.option("--pack", "pack_path", required=True, help=PACK_HELP)
@click.option("--store", "store_path", required=True, type=DIRECTORY, help="Folder that `ced-edge teach` wrote.")
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the run.")
@click.option("--init", help="Weights to start from: a file, a run, a folder, or a hub name (mispeech/ced-tiny).")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@click.option("--device", default="cpu", show_default=True)
@view_options
@config_options(TrainConfig)
def train(
    pack_path: str,
    store_path: Path,
    out: Path,
    init: str | None,
    resume: bool,
    device: str,
    windows: str | None,
    views_toml: Path | None,
    view_seed: int | None,
    config: Path | None,
    **flags: Any,
) -> None:
    """Train a student from a pack and a store. Under torchrun, data-parallel.

    The views are the store's own; --windows, --views and --view-seed are for stores of answers about clean clips.
    """
    from distill.packing.shards import Pack
    from distill.pipeline import run_train
    from distill.processes import rank_and_world, run_lock
    from distill.teaching.store import Store
    from distill.training.loop import STATE_NAME

    chosen = read_config(TrainConfig, config, flags)
    store = Store.open(store_path)
    views = None
    if windows or views_toml or view_seed is not None:
        if not store.clean:
            raise InputError(f"{store_path} knows its own views: leave --windows, --views and --view-seed out")
        views = view_recipe(windows, views_toml, view_seed, "1x10")
    if (out / STATE_NAME).exists() and not resume:
        raise InputError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    with run_lock(out):
        weights = run_train(out, Pack.open(pack_path), store, chosen, init, device, views)
    if rank_and_world()[0] == 0:
        click.echo(weights)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--data", required=True, multiple=True, type=FILE, help="Manifest with labels; repeat.")
@data_options
@teacher_options
@click.option(
    "--rate", "rate_hz", type=int, default=16_000, show_default=True, help="Of the audio for teachers, in Hz."
)
@click.option("--out", type=DIRECTORY, help="Folder for reference.json and reference.npz.  [default: not written]")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--dtype", default="fp32", show_default=True, help="fp32 or bf16, for the checkpoint.")
@click.option("--json", "as_json", is_flag=True)
def evaluate(
    checkpoint: str | None,
    data: tuple[Path, ...],
    split: str | None,
    audio_root: Path | None,
    teacher: tuple[str, ...],
    teachers_toml: Path | None,
    rate_hz: int,
    out: Path | None,
    batch: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """mAP over the classes present, per-class AP, and top-1 by group where the manifest has groups.

    With --teacher, a table of each teacher, their ensemble and the CHECKPOINT, if there is one.
    """
    from rich.console import Console

    from ced_edge.network.checkpoint import find_checkpoint
    from distill.evaluation.comparison import evaluate_student, evaluate_teachers, show_models
    from distill.teachers.spec import parse_teachers

    asked = bool(teacher or teachers_toml)
    if checkpoint is None and (out or not asked):
        raise InputError("give a CHECKPOINT; --teacher name=path alone will do where there is no --out to write")
    clips = read_clips(data, split, audio_root)
    found = evaluate_teachers(parse_teachers(teacher, teachers_toml), clips, rate_hz, device, batch) if asked else {}
    if checkpoint:
        found["student"] = evaluate_student(checkpoint, clips, device, dtype, batch)
        if out:
            found["student"].reference(find_checkpoint(checkpoint).weights).write(out)
    models = {name: evaluation.to_dict() for name, evaluation in found.items()}
    if as_json:
        click.echo(json.dumps(models if asked else models["student"], indent=1))
    elif asked:
        show_models(models, Console(highlight=False, markup=False, width=100))
    else:
        for name, ap in sorted(models["student"]["per_class_ap"].items(), key=lambda item: -item[1]):
            click.echo(f"{ap:.4f}  {name}")
        for name, value in found["student"].metrics().items():
            click.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


NEED_DATA = {
    *("split", "audio_root", "eval_data", "eval_split", "teacher", "teachers_toml", "views_toml"),
    *("k", "init", "clips_per_shard", "strict"),
}
"""Parameters of `distill` that the demonstration has no use for."""


def given_flags(names: set[str]) -> list[str]:
    """The flags among these parameters that were given on the command line."""
    context = click.get_current_context()
    return [
        parameter.opts[-1]
        for parameter in context.command.params
        if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    ]


@click.command()
@click.option("--data", multiple=True, type=FILE, help="Manifest or folder to learn from; repeat.  [default: the demo]")
@data_options
@click.option("--eval-data", multiple=True, type=FILE, help="Manifest with labels to evaluate on; repeat.")
@click.option("--eval-split", help="Only these rows of the evaluation manifests.")
@teacher_options
@view_options
@click.option("-k", type=int, default=20, show_default=True, help="Classes kept per view.")
@click.option("--init", help="Weights to start from: a file, a run, a folder, or a hub name (mispeech/ced-tiny).")
@click.option("--name", help="Name of the run.  [default: the size, or `demo`]")
@click.option("--runs", type=DIRECTORY, default=Path("runs"), show_default=True, help="Folder of all runs.")
@click.option("--clips-per-shard", type=int, default=1_024, show_default=True)
@click.option("--strict", is_flag=True, help="Fail when a file cannot be used.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Summary as JSON.")
@config_options(TrainConfig)
def distill(
    data: tuple[Path, ...],
    split: str | None,
    audio_root: Path | None,
    eval_data: tuple[Path, ...],
    eval_split: str | None,
    teacher: tuple[str, ...],
    teachers_toml: Path | None,
    windows: str | None,
    views_toml: Path | None,
    view_seed: int | None,
    k: int,
    init: str | None,
    name: str | None,
    runs: Path,
    clips_per_shard: int,
    strict: bool,
    device: str,
    as_json: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """The main job: pack, teach, train and evaluate, into runs/NAME. Asked twice, it goes on.

    Without --data it is a demonstration on synthesised sounds, with two small teachers trained on the spot.
    """
    from distill import pipeline
    from distill.evaluation.comparison import show
    from distill.teachers.spec import parse_teachers

    packing = PackConfig(clips_per_shard=clips_per_shard, strict=strict)
    if not data:
        if given := given_flags(NEED_DATA):
            raise InputError(f"{', '.join(given)} need --data: what should the student learn from?")
        from distill.demo import plan as demo

        run = runs / (name or "demo")
        chosen = read_config(TrainConfig, config, flags, **demo.TRAINING)
        plan = demo.plan(run, chosen, parse_windows(windows) if windows else None, view_seed or 0, device)
    else:
        chosen = read_config(TrainConfig, config, flags)
        specs = tuple(parse_teachers(teacher, teachers_toml))
        views = view_recipe(windows, views_toml, view_seed, "12x2,3x5")
        clips = read_clips(data, split, audio_root)
        eval_clips = read_clips(eval_data, eval_split, audio_root)
        run = runs / (name or chosen.size)
        plan = pipeline.Plan(run, clips, eval_clips, specs, views, chosen, packing, k, init, device)
    summary = pipeline.run_all(plan)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        show(summary, run)


@click.command()
@click.option("--pack", "pack_path", required=True, help=PACK_HELP)
@click.option("--out", required=True, type=DIRECTORY, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@click.option("--device", default="cpu", show_default=True)
@config_options(PretrainConfig)
def pretrain(pack_path: str, out: Path, resume: bool, device: str, config: Path | None, **flags: Any) -> None:
    """Warm a student up on unlabelled audio (masked autoencoder); start training from it with --init OUT."""
    from distill.packing.shards import Pack
    from distill.processes import rank_and_world, run_lock
    from distill.progress import TrainingBar
    from distill.training.loop import STATE_NAME
    from distill.training.pretrain import pretrain as run

    chosen = read_config(PretrainConfig, config, flags)
    if (out / STATE_NAME).exists() and not resume:
        raise InputError(f"{out} holds a run already: add --resume to go on with it, or choose another --out")
    with run_lock(out), TrainingBar() as bar:
        weights = run(out, Pack.open(pack_path), chosen, device, bar)
    if rank_and_world()[0] == 0:
        click.echo(weights)
