"""The kinds of files that ced-edge reads: for each, good files, and the function that a command reads them with.

A reader finds everything that it needs beside the file. Hashes are there against accidents and not against people, so
the readers here first make the hashes fit, as a stranger would.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from ced_edge.files import sha256_file

SHARD = "shard-000000.tar"
CLIPS = 6
"""Clips of a pack, and rows of a table."""


@dataclass(frozen=True)
class Kind:
    """One kind of file. Its functions can be pickled, so that another process runs them."""

    make: Callable[[Path], list[Path]]
    """Writes good files into a folder -> those of them that are changed in turn."""
    read: Callable[[Path], object]
    """Reads a file as the commands do."""


# Recordings -----------------------------------------------------------------------------------------------------------


def noise(seconds: float, rate_hz: int, channels: int) -> Any:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal((round(seconds * rate_hz), channels))).astype(np.float32)


def sounds(*forms: tuple[str, str]) -> Callable[[Path], list[Path]]:
    return functools.partial(make_sounds, forms)


def media(*forms: tuple[str, str]) -> Callable[[Path], list[Path]]:
    return functools.partial(make_media, forms)


def make_sounds(forms: Sequence[tuple[str, str]], folder: Path) -> list[Path]:
    """Two files for each suffix and subtype of libsndfile."""
    paths = []
    for i, (suffix, subtype) in enumerate(forms):
        for seconds, rate_hz, channels in ((0.3, 24_000, 2), (1.5, 48_000, 1)):
            paths.append(folder / f"{i}-{channels}.{suffix}")
            form = {"opus": "OGG", "aif": "AIFF"}.get(suffix, suffix.upper())
            soundfile.write(paths[-1], noise(seconds, rate_hz, channels), rate_hz, subtype, format=form)
    return paths


def make_media(forms: Sequence[tuple[str, str]], folder: Path) -> list[Path]:
    """A file for each suffix and codec of FFmpeg."""
    import av

    paths = []
    for i, (suffix, codec) in enumerate(forms):
        paths.append(folder / f"{i}.{suffix}")
        with av.open(str(paths[-1]), "w", options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(codec, rate=48_000, layout="mono", bit_rate=96_000)
            cut = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=48_000)
            frame = av.AudioFrame.from_ndarray(noise(1.0, 48_000, 1).T, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, 0
            container.mux([packet for part in cut.resample(frame) for packet in stream.encode(part)])
            container.mux(stream.encode(None))
    return paths


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def read_sound(path: Path) -> None:
    from ced_edge.audio.clips import Clip, load_clip
    from ced_edge.audio.intake import Intake
    from ced_edge.audio.read import decode, duration_s, stream

    duration_s(path)
    intake = Intake(16_000)
    for piece, rate_hz in stream(path):
        intake.accept(piece, rate_hz)
        intake.drop(intake.samples)
    intake.finish()
    load_clip(Clip("a", path), 16_000)
    load_clip(Clip("b", path, start_s=0.1, stop_s=0.2), 16_000)
    decode(Pipe(path.read_bytes()))


# Lists, packs and stores ----------------------------------------------------------------------------------------------


def make_tables(folder: Path) -> list[Path]:
    sounds(("wav", "PCM_16"))(folder)
    names = ["0-1.wav", "0-2.wav", *(f"{i}.wav" for i in range(CLIPS))]
    with (folder / "clips.csv").open("w", newline="") as f:
        csv.writer(f).writerows([["filename", "labels"], *([name, "Speech;Dog"] for name in names)])
    rows = [f"{name}\t{i};{i + 1}\tg\tdev\n" for i, name in enumerate(names)]
    (folder / "clips.tsv").write_text("filename\tlabels\tgroup\tsplit\n" + "".join(rows))
    (folder / "segments.csv").write_text(
        "# Segments csv created\n# num_ytids=2\n# YTID, start_seconds, end_seconds, positive_labels\n"
        '--aE2O5G5WE, 0.000, 10.000, "/m/03fwl,/m/04rlf"\n0-1, 0.1, 0.2, "/m/09x0r"\n'
    )
    return [folder / name for name in ("clips.csv", "clips.tsv", "segments.csv")]


def read_table(path: Path) -> object:
    from ced_edge.audio.clips import read_manifest

    return read_manifest(path)


def make_pack(folder: Path) -> Any:
    from ced_edge.audio.clips import Clip
    from distill.packing.pack import PackConfig, pack

    path = sounds(("wav", "PCM_16"))(folder)[0]
    clips = [Clip(str(i), path, (i,), "g") for i in range(CLIPS)]
    return pack(clips, folder, PackConfig(clips_per_shard=CLIPS, workers=1))


def make_shard(folder: Path) -> list[Path]:
    make_pack(folder)
    return [folder / SHARD]


def make_index(folder: Path) -> list[Path]:
    make_pack(folder)
    return [folder / "index.json"]


def read_shard(path: Path) -> None:
    index = json.loads((path.parent / "index.json").read_text())
    index["shards"][0]["sha256"] = sha256_file(path)
    (path.parent / "index.json").write_text(json.dumps(index))
    read_pack(path)


def read_pack(path: Path) -> None:
    from distill.packing import shards

    pack = shards.Pack.open(path.parent)
    for shard in pack.shards:
        shards.read_shard(pack, shard)


def make_store(folder: Path) -> Any:
    from distill.teaching.store import Store, TopK
    from distill.teaching.views import ViewRecipe

    store = Store(folder, ViewRecipe(windows=((2, 1.0),)), [{"name": "a", "sha256": "0" * 64}], 5, "1" * 64)
    store.create()
    for epoch in store.epochs:
        probs = np.random.default_rng(epoch).uniform(size=(40, 527)).astype(np.float32)
        store.write(epoch, SHARD, TopK.top_k(probs, 5))
    return store


def make_parquet(folder: Path) -> list[Path]:
    store = make_store(folder)
    return [store.file(epoch, SHARD) for epoch in store.epochs]


def make_header(folder: Path) -> list[Path]:
    make_store(folder)
    return [folder / "store.json"]


def read_parquet(path: Path) -> None:
    read_store(path.parent)


def read_store(path: Path) -> None:
    from distill.teaching.store import Store

    store = Store.open(path.parent)
    for epoch in store.epochs[:3]:
        store.read(epoch, SHARD, 40).dense()


# Models ---------------------------------------------------------------------------------------------------------------


def make_onnx(folder: Path) -> list[Path]:
    from tiny_bundle import shared_bundle

    bundle = shared_bundle()
    shutil.copytree(bundle.folder, folder, dirs_exist_ok=True)
    return [folder / bundle.file().name]


def make_tflite(folder: Path) -> list[Path]:
    from test_ced_edge_profile import write_net
    from tiny_bundle import with_file

    from ced_edge.runtime.bundle import read_bundle

    make_onnx(folder)
    bundle, path = read_bundle(folder), folder / "tiny.tflite"
    write_net(path, bundle.window_samples)
    with_file(bundle, path, "fp32")
    return [path]


def read_model(path: Path) -> None:
    from tiny_bundle import edit_bundle

    from ced_edge.runtime.tagger import Tagger

    def fit(fields: dict[str, Any]) -> None:
        for file in fields["files"]:
            if file["name"] == path.name:
                file.update(bytes=path.stat().st_size, sha256=sha256_file(path))

    edit_bundle(path.parent, fit)
    Tagger(path.parent, file=path.name).predict(np.zeros(16_000, np.float32))


def make_bundle(folder: Path) -> list[Path]:
    from tiny_bundle import SPEC

    from ced_edge.runtime import bundle

    (folder / bundle.LABELS_NAME).write_text(bundle.labels_text(), encoding="utf-8")
    (folder / "m-int8.onnx").write_bytes(b"model")
    digest = sha256_file(folder / "m-int8.onnx")
    file = bundle.ModelFile("m-int8.onnx", "int8", "made up", 5, digest)
    metrics = {"metrics": {"mean_ap": 0.5}}
    labels = sha256_file(folder / bundle.LABELS_NAME)
    bundle.Bundle(folder, SPEC, 2.0, "waveform", (file,), "0" * 64, labels, metrics, {"torch": "2"}).write()
    return [folder / bundle.BUNDLE_NAME, folder / bundle.LABELS_NAME]


def read_description(path: Path) -> None:
    from tiny_bundle import edit_bundle

    from ced_edge.runtime import bundle

    def fit(fields: dict[str, Any]) -> None:
        if path.name == bundle.LABELS_NAME:
            fields["labels_sha256"] = sha256_file(path)

    # Some damage leaves no description to which a hash could fit.
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
        edit_bundle(path.parent, fit)
    bundle.read_bundle(path.parent)


def make_checkpoints(folder: Path) -> list[Path]:
    import torch
    from tiny_bundle import tiny_model

    from ced_edge.network.checkpoint import save_model

    model = tiny_model()
    save_model(folder / "model.safetensors", model, {"recipe": {}})
    torch.save({"model": model.state_dict()}, folder / "model.pt")
    return [folder / "model.safetensors", folder / "model.pt"]


def read_checkpoint(path: Path) -> None:
    from ced_edge.network.checkpoint import load_model, read_metadata

    load_model(path)
    read_metadata(path)


def make_teachers(folder: Path) -> list[Path]:
    import torch

    from ced_edge.labels import table
    from distill.teachers.mobilenet import MobileNet

    torch.manual_seed(0)
    torch.save(MobileNet(0.1).state_dict(), folder / "mn01.pt")
    (folder / "class_map.csv").write_text("".join(table().splitlines(keepends=True)[:60]), encoding="utf-8")
    return [folder / "mn01.pt", folder / "class_map.csv"]


def read_teacher(path: Path) -> None:
    from distill.teachers.load import load_teacher
    from distill.teachers.modelfile import read_class_map

    if path.suffix == ".csv":
        read_class_map(path)
    else:
        load_teacher(path)


def make_reference(folder: Path) -> list[Path]:
    from ced_edge.proof.reference import Reference

    probs = np.random.default_rng(0).uniform(size=(5, 527)).astype(np.float32)
    aps = np.full(527, np.nan)
    metrics: dict[str, float | int | None] = {"mean_ap": 0.5, "top1_by_group": None}
    Reference(tuple("abcde"), probs, aps, metrics, "cpu", "fp32", {}, "0" * 64, "1" * 64).write(folder)
    return [folder / "reference.json", folder / "reference.npz"]


def read_reference(path: Path) -> None:
    from ced_edge.proof import reference

    if path.suffix == ".npz":
        text = json.loads((path.parent / "reference.json").read_text())
        (path.parent / "reference.json").write_text(json.dumps({**text, "npz_sha256": sha256_file(path)}))
    reference.read_reference(path.parent)


def make_settings(folder: Path) -> list[Path]:
    texts = {
        "train.toml": 'size = "tiny"\nbatch = 8\nlr = 1e-3\nsteps = 10\nkl = 0.2\nfill = "tail"\ncompile = false\n',
        "views.toml": "windows = [[8, 2.0], [2, 5.0]]\nseed = 1\ngain_db = [-9.0, 3.0]\n",
        "teachers.toml": '[teachers.a]\nsource = "x/a"\nclass_map = "map.csv"\nrate_hz = 16000\n',
        "pyproject.toml": "[tool.ced-edge.check]\nmax_drop = 0.01\n[tool.ced-edge.check.int8]\nmax_size_mb = 10.0\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "map.csv").write_text("index,mid\n0,/m/09x0r\n")
    return [folder / name for name in texts]


def read_settings(path: Path) -> None:
    from ced_edge.proof.bounds import read_bounds
    from distill.options import view_recipe
    from distill.teachers.load import find_local
    from distill.teachers.modelfile import read_class_map
    from distill.teachers.spec import parse_teachers
    from distill.training.config import TrainConfig

    match path.name:
        case "train.toml":
            TrainConfig.read(path)
        case "views.toml":
            view_recipe(None, path, None, "2x1")
        case "teachers.toml":
            for teacher in parse_teachers([], path):
                find_local(teacher.source)
                if teacher.class_map:
                    read_class_map(teacher.class_map)
        case _:
            read_bounds(path.parent, {})


KINDS = {
    "onnx": Kind(make_onnx, read_model),
    "tflite": Kind(make_tflite, read_model),
    "checkpoint": Kind(make_checkpoints, read_checkpoint),
    "teacher": Kind(make_teachers, read_teacher),
    "m4a": Kind(media(("m4a", "aac"), ("mp4", "alac"), ("mov", "pcm_s16le"), ("aac", "aac")), read_sound),
    "webm": Kind(media(("webm", "libopus"), ("mkv", "flac"), ("mka", "ac3"), ("wma", "wmav2")), read_sound),
    "mp3": Kind(sounds(("mp3", "MPEG_LAYER_III")), read_sound),
    "ogg": Kind(sounds(("ogg", "VORBIS"), ("opus", "OPUS")), read_sound),
    "flac": Kind(sounds(("flac", "PCM_16"), ("flac", "PCM_24")), read_sound),
    "wav": Kind(sounds(("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "IMA_ADPCM")), read_sound),
    "aiff": Kind(sounds(("aif", "PCM_16"), ("au", "ULAW"), ("caf", "ALAC_16"), ("w64", "PCM_24")), read_sound),
    "tar": Kind(make_shard, read_shard),
    "parquet": Kind(make_parquet, read_parquet),
    "pack json": Kind(make_index, read_pack),
    "store json": Kind(make_header, read_store),
    "bundle json": Kind(make_bundle, read_description),
    "reference": Kind(make_reference, read_reference),
    "csv": Kind(make_tables, read_table),
    "toml": Kind(make_settings, read_settings),
}
"""The slow ones first, so that they do not end last."""
