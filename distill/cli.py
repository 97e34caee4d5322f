"""The subcommands that train: each stage of the main job, and the main job itself.

Every command first checks all of its flags, and only then imports what it needs. torch alone takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import click

from ced_edge.audio.base import MAX_RATE_HZ, MIN_RATE_HZ
from ced_edge.audio.clips import read_clips
from ced_edge.errors import InputError
from ced_edge.machine import cores
from ced_edge.options import FILE, FOLDER, SECONDS, data_options, given_flags, json_option
from ced_edge.spec import N_CLASSES
from distill.options import (
    clips_per_shard_option,
    config_options,
    device_option,
    dtype_option,
    init_option,
    k_option,
    out_option,
    pack_option,
    parse_windows,
    read_config,
    resume_option,
    strict_option,
    teacher_options,
    view_options,
    view_recipe,
)
from distill.packing.pieces import PackConfig
from distill.training.config import PretrainConfig, TrainConfig

log = logging.getLogger(__name__)

RATE = click.IntRange(MIN_RATE_HZ, MAX_RATE_HZ)


@click.command()
@click.argument("data", nargs=-1, required=True, type=FILE)
@data_options
@click.option("--out", required=True, type=FOLDER, help="Folder to write the pack into.")
@click.option("--rate", "rate_hz", type=RATE, default=16_000, show_default=True, help="Sample rate of the pack in Hz.")
@clips_per_shard_option
@click.option(
    "--segment",
    "segment_s",
    type=SECONDS,
    default=10.0,
    show_default=True,
    help="Seconds; a longer file is cut into segments of this length.",
)
@click.option("--workers", type=click.IntRange(1), default=cores(), show_default=True, help="Processes that decode.")
@strict_option
@json_option()
def pack(
    data: tuple[Path, ...], split: str | None, audio_root: Path | None, out: Path, as_json: bool, **fields: Any
) -> None:
    """Pack audio into WebDataset shards of FLAC. DATA are manifests, AudioSet segment lists, or folders."""
    config = PackConfig(**fields)
    from distill.packing.pack import pack as run
    from distill.progress import stage

    clips = read_clips(data, split, audio_root, labels_needed=False)
    with stage("pack", len(clips)) as progress:
        shards = run(clips, out, config, progress)
    result = {
        "clips": shards.clips,
        "hours": shards.seconds / 3600,
        "shards": len(shards.shards),
        "rejected": shards.rejected,
    }
    click.echo(json.dumps(result) if as_json else f"{out}: {shards.clips} clips, {result['hours']:.2f} hours")


@click.command()
@click.option("--fetch", "name", help="Download this teacher.")
@click.option("--to", "folder", type=FOLDER, default=Path("teachers"), show_default=True, help="Folder for --fetch.")
@click.option("--sha256", help="Expected hash of the file, for a teacher whose hash is not on record.")
@json_option()
def teachers(name: str | None, folder: Path, sha256: str | None, as_json: bool) -> None:
    """List known teachers with source, licence and published mAP; download public ones."""
    if not name and (given := given_flags(("folder", "sha256"))):
        raise InputError(f"{', '.join(given)} has no effect without --fetch: name a teacher to download")
    from distill.progress import download
    from distill.teachers import registry

    if name:
        log.info("downloading %s", registry.by_name(name).url)
        with download(name) as progress:
            path = registry.fetch(name, folder, sha256, progress)
        click.echo(json.dumps({"name": name, "file": str(path)}) if as_json else path)
        return
    rows = registry.known_teachers()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        ap = f"mAP {row.mean_ap:.1f}" if row.mean_ap is not None else "mAP not published"
        click.echo(f"{row.name:16} {ap:20} {row.licence:12} {row.what}, {row.url}")


@click.command()
@pack_option
@click.option("--out", required=True, type=FOLDER, help="Folder of the store.")
@teacher_options
@view_options
@k_option
@click.option("--clean", is_flag=True, help="Predict whole clips without augmentation (inconsistent teaching).")
@click.option("--labels", is_flag=True, help="Store the clips' own labels instead of predictions; implies --clean.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Processes: on the CPU they predict, for a GPU they render views.  [default: by the number of cores]",
)
@device_option
@dtype_option(["fp32", "bf16", "fp16"], "Arithmetic of the teachers; another one makes another store.")
@json_option()
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
    dtype: str,
    as_json: bool,
) -> None:
    """Predict every view of a pack by the teachers, once, into a store. Under torchrun, processes share the work."""
    views = view_recipe(windows, views_toml, view_seed, "1x10")
    if labels and (teacher or teachers_toml):
        raise InputError("--labels are the only teacher: leave --teacher and --teachers out")
    from distill.teachers.spec import parse_teachers

    specs = [] if labels else parse_teachers(teacher, teachers_toml)
    from distill.packing.shards import Pack
    from distill.pipeline import run_teach
    from distill.processes import rank_and_world, run_lock
    from distill.teaching.store import Store
    from distill.teaching.teach import teach_labels

    shards = Pack.open(pack_path)
    with run_lock(out):
        if labels:
            described = [{"name": "labels", "sha256": shards.hash, "rate_hz": shards.rate_hz, "n_known": N_CLASSES}]
            store = Store(out, views, described, k, shards.hash, clean=True)
            teach_labels(shards, store)
        else:
            store = run_teach(shards, out, specs, views, k, device, workers=workers, clean=clean, dtype=dtype)
    rank, world = rank_and_world()
    if world > 1:
        log.info("%s: process %d of %d has finished", out, rank, world)
    if rank == 0:
        # Under torchrun, the other processes may still write: the size is not known yet.
        size = store.bytes() if world == 1 else None
        result = {"store": str(out), "views": shards.clips * len(store.epochs), "bytes": size, "processes": world}
        click.echo(json.dumps(result) if as_json else f"{out}: {result['views']} views, {size or 'unknown'} bytes")


@click.command()
@pack_option
@click.option("--store", "store_path", required=True, help="Folder or URL of what `ced-edge teach` wrote.")
@out_option
@init_option
@resume_option
@device_option
@json_option()
@view_options
@config_options(TrainConfig)
def train(
    pack_path: str,
    store_path: str,
    out: Path,
    init: str | None,
    resume: bool,
    device: str,
    as_json: bool,
    windows: str | None,
    views_toml: Path | None,
    view_seed: int | None,
    config: Path | None,
    **flags: Any,
) -> None:
    """Train a student from a pack and a store. Under torchrun, processes share each batch.

    The store decides the views. Only for a store of clean clips are --windows, --views and --view-seed needed.
    """
    chosen = read_config(TrainConfig, config, flags)
    given = bool(windows or views_toml or view_seed is not None)
    views = view_recipe(windows, views_toml, view_seed, "1x10") if given else None
    from distill.teaching.store import Store

    store = Store.open(store_path)
    if views is not None and not store.clean:
        raise InputError(f"{store_path} has views of its own: leave --windows, --views and --view-seed out")
    from distill.packing.shards import Pack
    from distill.pipeline import load_student, run_train
    from distill.processes import run_lock

    _check_new(out, resume)
    with run_lock(out):
        weights = run_train(out, Pack.open(pack_path), store, chosen, load_student(init, chosen), device, views)
    _show_weights(out, weights, as_json)


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--data", required=True, multiple=True, type=FILE, help="Manifest with labels; repeat.")
@data_options
@teacher_options
@click.option(
    "--rate", "rate_hz", type=RATE, default=16_000, show_default=True, help="Sample rate in Hz of the teachers' audio."
)
@click.option("--out", type=FOLDER, help="Folder for reference.json and reference.npz.  [default: not written]")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Clips per prediction.")
@device_option
@dtype_option(["fp32", "bf16"], "Arithmetic of the checkpoint.")
@json_option()
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
    """mAP over the classes present, per-class AP, and top-1 by group if the manifest has groups.

    With --teacher, print a table of each teacher, their ensemble, and the CHECKPOINT if there is one.
    """
    with_teachers = bool(teacher or teachers_toml)
    if checkpoint is None and (out or not with_teachers):
        raise InputError("give a CHECKPOINT; only with --teacher name=path and without --out can it be left out")
    from distill.teachers.spec import parse_teachers

    specs = parse_teachers(teacher, teachers_toml) if with_teachers else []
    clips = read_clips(data, split, audio_root)
    from rich.console import Console

    from ced_edge.network.checkpoint import find_checkpoint
    from distill.evaluation.comparison import evaluate_student, evaluate_teachers, show_models

    evaluations = evaluate_teachers(specs, clips, rate_hz, device, batch) if with_teachers else {}
    if checkpoint:
        evaluations["student"] = evaluate_student(checkpoint, clips, device, dtype, batch)
        if out:
            evaluations["student"].reference(find_checkpoint(checkpoint).weights).write(out)
    models = {name: evaluation.to_dict() for name, evaluation in evaluations.items()}
    if as_json:
        click.echo(json.dumps(models if with_teachers else models["student"], indent=1))
    elif with_teachers:
        show_models(models, Console(highlight=False, markup=False, width=100))
    else:
        for name, ap in sorted(models["student"]["per_class_ap"].items(), key=lambda item: -item[1]):
            click.echo(f"{ap:.4f}  {name}")
        for name, value in evaluations["student"].metrics().items():
            click.echo(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")


NEED_DATA = {
    *("split", "audio_root", "eval_data", "eval_split", "teacher", "teachers_toml", "views_toml"),
    *("k", "init", "clips_per_shard", "strict"),
}
"""Parameters of `distill` that the demonstration does not use."""


@click.command()
@click.option("--data", multiple=True, type=FILE, help="Manifest or folder to train on; repeat.  [default: the demo]")
@data_options
@click.option("--eval-data", multiple=True, type=FILE, help="Manifest with labels to evaluate on; repeat.")
@click.option("--eval-split", help="Only rows of the evaluation manifests with this in the `split` column.")
@teacher_options
@view_options
@k_option
@init_option
@click.option("--name", help="Name of the run.  [default: the size, or `demo`]")
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder of all runs.")
@clips_per_shard_option
@strict_option
@device_option
@json_option("Print the summary as one JSON object.")
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
    """The main job: pack, teach, train and evaluate, into runs/NAME. The same command continues a stopped run.

    Without --data it is a demonstration on synthesised sounds. Two small teachers are trained for it first.
    """
    packing = PackConfig(clips_per_shard=clips_per_shard, strict=strict)
    chosen = read_config(TrainConfig, config, flags)
    views = view_recipe(windows, views_toml, view_seed, "12x2,3x5")
    if not data:
        if given := given_flags(NEED_DATA):
            raise InputError(f"{', '.join(given)} need --data: give the audio to train on")
        from distill.demo import plan as demo

        run = runs / (name or "demo")
        chosen = read_config(TrainConfig, config, flags, **demo.TRAINING)
        plan = demo.plan(run, chosen, parse_windows(windows) if windows else None, view_seed or 0, device)
    else:
        from distill.teachers.spec import parse_teachers

        specs = tuple(parse_teachers(teacher, teachers_toml))
        clips = read_clips(data, split, audio_root, labels_needed=False)
        eval_clips = read_clips(eval_data, eval_split, audio_root)
        run = runs / (name or chosen.size)
        from distill.pipeline import Plan

        plan = Plan(run, clips, eval_clips, specs, views, chosen, packing, k, init, device)
    from distill.evaluation.comparison import show
    from distill.pipeline import run_all

    summary = run_all(plan)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        show(summary, run)


@click.command()
@pack_option
@out_option
@resume_option
@device_option
@json_option()
@config_options(PretrainConfig)
def pretrain(
    pack_path: str, out: Path, resume: bool, device: str, as_json: bool, config: Path | None, **flags: Any
) -> None:
    """Pretrain a student on unlabelled audio (masked autoencoder). Then train from it with --init OUT."""
    chosen = read_config(PretrainConfig, config, flags)
    from distill.packing.shards import Pack
    from distill.pipeline import run_pretrain
    from distill.processes import run_lock

    _check_new(out, resume)
    with run_lock(out):
        weights = run_pretrain(out, Pack.open(pack_path), chosen, device)
    _show_weights(out, weights, as_json)


def _check_new(out: Path, resume: bool) -> None:
    """Raise InputError when `out` holds a run, which is continued only on request."""
    from distill.training.loop import STATE_NAME

    if (out / STATE_NAME).exists() and not resume:
        raise InputError(f"{out} holds a run already: add --resume to continue it, or choose another --out")


def _show_weights(out: Path, weights: Path, as_json: bool) -> None:
    """Print the path of the weights, or the result as JSON. Under torchrun, the first process does it for all."""
    from distill.processes import rank_and_world
    from distill.training.log import read_log

    if rank_and_world()[0] == 0:
        last = (read_log(out) or [{}])[-1]
        result = {"weights": str(weights), "steps": int(last.get("step", 0)), "loss": last.get("loss")}
        click.echo(json.dumps(result) if as_json else weights)
