#!/usr/bin/env python3
"""Build a pool of unlabelled training audio from Debian packages: runs/pool_debian.py OUT

apt downloads each package of runs/pool/debian.txt and checks it against the signed archive; nothing is installed. The
script cuts the audio of each package into clips, drops clips that an earlier package had, and writes

    OUT/clips/PACKAGE/*.flac   mono, at most 32 kHz, at most 10 s each
    OUT/pool.csv               a manifest: filename, package, version, path, start_s, seconds, licence, sha256
    OUT/sources.md             clips, hours and licences per package, for the credits

A package that is done is kept: run the script again after an interruption, and it goes on. Needs apt, dpkg-deb and
`pip install ced-edge python-debian`. No audio of the pool is meant to be published; what was used is named.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import fnmatch
import hashlib
import io
import logging
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import click
import numpy as np
import soundfile
from debian.copyright import Copyright

from ced_edge.arrays import Float32
from ced_edge.audio.base import AUDIO_SUFFIXES, AudioError
from ced_edge.audio.read import resample, stream
from ced_edge.errors import CedEdgeError
from ced_edge.files import atomic_path, read_json, write_json

LIST = Path(__file__).parent / "pool" / "debian.txt"
ARCHIVES = (".zip", ".pk3", ".wz")
"""Games keep their data in zip archives under these names."""
CLIP_S, MOST_CLIPS, SHORTEST_S = 10.0, 6, 0.3
"""A longer file gives at most so many clips, spread evenly over it: many sources matter more than long ones."""
QUIETEST = 10.0 ** (-50 / 20)
"""Clips whose highest sample is lower are silence with noise."""
RATE_HZ = 32_000
"""The highest rate that any of our teachers takes."""
MAX_BYTES = 256 << 20
"""A larger file is skipped."""
MAX_PACKAGE_BYTES = 4 << 30
"""A package whose files hold more is refused. All files of a package are in memory at the same time."""

log = logging.getLogger("pool")


@dataclass(frozen=True)
class Row:
    """One clip of the manifest."""

    filename: str
    package: str
    version: str
    path: str
    """Where the package has the file; `archive.zip/member` inside archives."""
    start_s: float
    seconds: float
    licence: str
    """Short name from the package's copyright file."""
    sha256: str
    """Of the samples as 16-bit at 16 kHz: equal sounds have equal hashes, whatever file format they came in."""


def read_list(path: Path) -> dict[str, dict[str, int]]:
    """Package -> {pattern of paths: most files of that kind}, in the order of the list."""
    packages: dict[str, dict[str, int]] = {}
    for line in path.read_text().splitlines():
        words = line.partition("#")[0].split()
        if words:
            packages[words[0]] = {p: int(n) for p, _, n in (w.rpartition("=") for w in words[1:])}
    return packages


@contextlib.contextmanager
def _damage_named(deb: Path) -> Iterator[None]:
    """Turn what a damaged .deb raises into a CedEdgeError that names the file."""
    try:
        yield
    except (tarfile.TarError, subprocess.CalledProcessError) as e:
        raise CedEdgeError(f"{deb} is damaged (dpkg-deb cannot read it): delete it and run again") from e


def version_of(deb: Path) -> str:
    """The version in a .deb. Raises CedEdgeError on a damaged file."""
    with _damage_named(deb):
        command = ["dpkg-deb", "-f", deb, "Version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def audio_files(deb: Path) -> tuple[dict[str, bytes], str]:
    """Path -> content of every audio file in a .deb, also inside its archives; and the text of its copyright file.

    Raises CedEdgeError on a damaged file, and above MAX_PACKAGE_BYTES.
    """
    with _damage_named(deb):
        return _audio_files(deb)


def _audio_files(deb: Path) -> tuple[dict[str, bytes], str]:
    files: dict[str, bytes] = {}
    copyright_text, total = "", 0

    def count(content: bytes) -> bytes:
        nonlocal total
        total += len(content)
        if total > MAX_PACKAGE_BYTES:
            raise CedEdgeError(
                f"{deb} holds more than {MAX_PACKAGE_BYTES:,} bytes: take it out of the list of packages"
            )
        return content

    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=subprocess.PIPE) as unpacked,
        tarfile.open(fileobj=unpacked.stdout, mode="r|") as tar,
    ):
        for member in tar:
            name = member.name.removeprefix("./")
            suffix = PurePosixPath(name).suffix.lower()
            is_copyright = re.fullmatch(r"usr/share/doc/[^/]+/copyright", name) is not None
            wanted = suffix in AUDIO_SUFFIXES or suffix in ARCHIVES or is_copyright
            if not (member.isfile() and wanted and member.size <= MAX_BYTES):
                continue
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if is_copyright:
                copyright_text += count(content).decode(errors="replace")
            elif suffix in ARCHIVES:
                files |= {f"{name}/{inner}": count(data) for inner, data in _archived(content)}
            else:
                files[name] = count(content)
    if unpacked.returncode:
        raise subprocess.CalledProcessError(unpacked.returncode, "dpkg-deb")
    return files, copyright_text


def _archived(content: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                if PurePosixPath(info.filename).suffix.lower() in AUDIO_SUFFIXES and info.file_size <= MAX_BYTES:
                    with archive.open(info) as member:
                        # In small blocks: one large read unpacks all there is, also beyond the size in the header.
                        yield info.filename, b"".join(iter(partial(member.read, 4096), b""))
    # ValueError: a name that is no UTF-8, a place before the file. EOFError: it ends early. OSError: damaged bzip2.
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, ValueError, EOFError, OSError, RuntimeError):
        return  # some games use the suffix for other things


class Licences:
    """The licence of each file, as the package's copyright file gives it."""

    def __init__(self, text: str) -> None:
        self._globs: list[tuple[str, str]] = []
        self._main = "see the package's copyright file"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # many packages break a rule of the format in a harmless way
                parsed = Copyright(io.StringIO(text), strict=False)
        except Exception:  # free text, or a form that the parser rejects in one of many ways
            return
        for paragraph in parsed.all_files_paragraphs():
            name = paragraph.license.synopsis if paragraph.license else ""
            for glob in paragraph.files:
                self._globs.append((glob, name or self._main))
                if glob == "*":
                    self._main = name or self._main

    def of(self, path: str) -> str:
        """The licence of the last pattern that matches.

        Patterns are for paths of the source package, and `path` is where the file gets installed. Both share the end,
        so leading folders are dropped on both sides until they match.
        """
        parts, found = path.split("/"), self._main
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        for glob, name in self._globs:
            folders = glob.removeprefix("./").split("/")
            for k in range(len(folders)):
                rest = "/".join(folders[k:])
                if not re.search(r"[A-Za-z0-9]{2}", rest) or (k and k == len(folders) - 1 and rest.startswith("*")):
                    break  # nothing but wildcards is left, which would match any file
                if any(fnmatch.fnmatchcase(end, rest) for end in ends):
                    found = name
                    break
        return found


def decoded(content: bytes) -> tuple[Float32, int]:
    """((samples,) mono, rate in Hz) of an audio file, as far as it can be decoded; no samples where nothing can."""
    pieces, rate_hz = [np.empty(0, np.float32)], RATE_HZ
    try:
        for piece, source_hz in stream(io.BytesIO(content)):
            rate_hz = source_hz
            pieces.append(piece.mean(axis=1, dtype=np.float32))
    except AudioError:
        pass  # the part before the damage is as good as any other sound
    return np.concatenate(pieces), rate_hz


def cut(wave: Float32, rate_hz: int) -> Iterator[tuple[float, Float32]]:
    """(start in seconds, samples) of the clips of a file (samples,): all of it, or clips spread evenly over it."""
    length = round(CLIP_S * rate_hz)
    count = min(MOST_CLIPS, max(1, len(wave) // length))
    for start in np.linspace(0, max(0, len(wave) - length), count).astype(int).tolist():
        clip = wave[start : start + length]
        if len(clip) >= SHORTEST_S * rate_hz and float(np.abs(clip).max()) >= QUIETEST:
            yield start / rate_hz, clip


def build(package: str, caps: dict[str, int], deb: Path, out: Path) -> None:
    """Write the clips of one package and OUT/done/PACKAGE.json with their rows."""
    version = version_of(deb)
    files, copyright_text = audio_files(deb)
    count = len(files)
    licences, rows, unreadable = Licences(copyright_text), [], 0
    folder = out / "clips" / package
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in _chosen(package, sorted(files), caps):
        mono, rate_hz = decoded(files.pop(path))
        if not len(mono):
            unreadable += 1
            continue
        target_hz = min(rate_hz, RATE_HZ)
        wave = np.clip(resample(mono, rate_hz, target_hz), -1.0, 1.0)
        stem = f"{_plain(path)}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        for start_s, clip in cut(wave, target_hz):
            name = f"clips/{package}/{stem}_{start_s:.1f}.flac"
            soundfile.write(out / name, clip, target_hz, subtype="PCM_16")
            bytes_16k = (resample(clip, target_hz, 16_000) * 32_767).astype("<i2").tobytes()
            digest = hashlib.sha256(bytes_16k).hexdigest()
            seconds = round(len(clip) / target_hz, 3)
            rows.append(Row(name, package, version, path, round(start_s, 3), seconds, licences.of(path), digest))
    write_json(out / "done" / f"{package}.json", {"caps": caps, "rows": [asdict(row) for row in rows]})
    log.info("%s %s: %d files, %d clips, %d files unreadable", package, version, count, len(rows), unreadable)


def _chosen(package: str, paths: Iterable[str], caps: dict[str, int]) -> list[str]:
    """All paths, but at most `caps[pattern]` of those that match it first. The package's name decides which."""
    groups: dict[str | None, list[str]] = collections.defaultdict(list)
    for path in paths:
        groups[next((pattern for pattern in caps if fnmatch.fnmatchcase(path, pattern)), None)].append(path)
    rng, chosen = random.Random(package), groups.pop(None, [])
    for pattern, cap in caps.items():
        chosen += rng.sample(groups[pattern], min(cap, len(groups[pattern])))
    return sorted(chosen)


def _plain(path: str) -> str:
    """The end of a path as a file name of letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", "_".join(PurePosixPath(path).with_suffix("").parts[-3:]))[-70:]


def download(package: str, folder: Path) -> Path:
    """Fetch the .deb of a package with apt, which checks its signature chain. Raises CedEdgeError."""
    for old in folder.glob(f"{package}_*.deb"):
        old.unlink()  # perhaps of a download that was cut short
    # apt would drop to a user of its own, who may not write into the folder.
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", package]
    if subprocess.run(command, cwd=folder).returncode:
        raise CedEdgeError(f"apt-get cannot download {package}: run `apt-get update`, or take it out of {LIST}")
    return next(folder.glob(f"{package}_*.deb"))


def write_manifest(packages: Iterable[str], out: Path) -> list[Row]:
    """OUT/pool.csv and OUT/sources.md. Of equal clips the first package in the list keeps its own."""
    seen: set[str] = set()
    rows: list[Row] = []
    lines = ["| package | version | clips | hours | licences (clips) |", "|---|---|---|---|---|"]
    for package in packages:
        kept = []
        for fields in read_json(out / "done" / f"{package}.json")["rows"]:
            row = Row(**fields)
            if row.sha256 not in seen:
                seen.add(row.sha256)
                kept.append(row)
        licences = collections.Counter(row.licence for row in kept).most_common()
        hours, version = sum(row.seconds for row in kept) / 3600, kept[0].version if kept else "-"
        told = ", ".join(f"{name} ({n})" for name, n in licences)
        lines.append(f"| {package} | {version} | {len(kept)} | {hours:.3f} | {told} |")
        rows += kept
    with atomic_path(out / "pool.csv") as path, path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, rows))
    with atomic_path(out / "sources.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--list", "listing", type=click.Path(exists=True, path_type=Path), default=LIST, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Packages cut side by side.")
@click.option("--keep-debs", is_flag=True, help="Keep the downloaded packages (6.6 GB).")
def main(out: Path, listing: Path, jobs: int, keep_debs: bool) -> None:
    """Download Debian packages and build a manifest of their audio in OUT."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("debian").setLevel(logging.ERROR)  # remarks on copyright files of an old form
    packages = read_list(listing)
    debs = out / "debs"
    for folder in (debs, out / "done"):
        folder.mkdir(parents=True, exist_ok=True)
    done = {p for p, caps in packages.items() if _is_done(out / "done" / f"{p}.json", caps)}
    with ProcessPoolExecutor(jobs) as pool:
        futures = {}
        for package in (p for p in packages if p not in done):
            deb = download(package, debs)  # the next package is fetched while the last ones are cut
            futures[package] = pool.submit(_build_and_clean, package, packages[package], deb, out, keep_debs)
        for future in futures.values():
            future.result()
    rows = write_manifest(packages, out)
    log.info("%s: %d clips, %.2f hours", out / "pool.csv", len(rows), sum(row.seconds for row in rows) / 3600)


def _is_done(path: Path, caps: dict[str, int]) -> bool:
    return path.exists() and read_json(path)["caps"] == caps


def _build_and_clean(package: str, caps: dict[str, int], deb: Path, out: Path, keep: bool) -> None:
    build(package, caps, deb, out)
    if not keep:
        os.unlink(deb)


if __name__ == "__main__":
    try:
        main()
    except CedEdgeError as e:
        sys.exit(f"error: {e}")
