"""Option types that the command lines of all rooms share, and the bundle that is used when none is named."""

from __future__ import annotations

from pathlib import Path

import click

from ced_edge.errors import InputError
from ced_edge.runtime.bundle import BUNDLE_NAME

FOLDER = click.Path(file_okay=False, path_type=Path)


FILE = click.Path(path_type=Path, readable=False)  # what cannot be read is told of file by file


def newest_bundle() -> Path:
    """The bundle that was written last under runs/. Raises InputError when there is none."""
    manifests = sorted(Path("runs").glob(f"*/bundle/{BUNDLE_NAME}"), key=lambda p: p.stat().st_mtime)
    if not manifests:
        raise InputError("no bundle in runs/*/bundle: give one with --bundle, or write one with `ced-edge export`")
    return manifests[-1].parent
