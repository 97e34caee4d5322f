"""Folders of audio: the audio files in them, and files by their name without suffix."""

from __future__ import annotations

import collections
import logging
import os
from collections.abc import Callable
from pathlib import Path

from ced_edge.audio.base import AUDIO_SUFFIXES
from ced_edge.errors import InputError

log = logging.getLogger(__name__)


def _refuse(error: OSError) -> None:
    raise InputError(
        f"cannot read the folder {error.filename}: {error.strerror}: give the right to read it, or move it away"
    ) from error


def is_audio_name(name: str) -> bool:
    """Whether a file of this name counts as audio in a folder."""
    return Path(name).suffix.lower() in AUDIO_SUFFIXES


def audio_files(folder: Path, failed: Callable[[OSError], None] = _refuse) -> list[Path]:
    """All audio files under `folder`, sorted. The suffix decides; no file is opened.

    Hidden files and folders, whose names start with a dot, are skipped, and a log line counts them: macOS writes a
    `._clip.wav` without audio (AppleDouble) beside each `clip.wav` on a foreign disk. Links to folders are followed. A
    folder with several paths (through a link, or a loop of links) counts once, by its own path. `failed` is called for
    each folder that cannot be read; by default it raises InputError.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    hidden = 0
    # Links wait until all real folders are done, so that a folder is listed by its own path.
    folders, links = [folder], collections.deque[Path]()
    while folders or links:
        here = folders.pop() if folders else links.popleft()
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as e:
            failed(e)
            continue
        for entry in listed:
            is_audio = is_audio_name(entry.name)
            try:
                is_folder = entry.is_dir()
            except OSError as e:  # unknown; if it is an audio file, its reader will report the reason
                is_folder = False
                if not is_audio:
                    failed(e)
            if entry.name.startswith("."):
                hidden += is_folder or is_audio
            elif is_folder:
                (links if entry.is_symlink() else folders).append(here / entry.name)
            elif is_audio:
                found.append(here / entry.name)
    if hidden:
        log.info("%s: skipped %d hidden files or folders, whose names start with a dot", folder, hidden)
    return sorted(found)


def by_stem(folder: Path) -> dict[str, Path]:
    """File name without folder and suffix -> audio file. Of several files, the first in sorted order."""
    return {path.stem: path for path in reversed(audio_files(folder))}
