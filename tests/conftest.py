"""Fixtures that several test files share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import settings

from ced_edge.cli import main

Call = Callable[..., tuple[int, str, str]]
"""`ced-edge ARGS` -> exit code, stdout, stderr."""

# On a busy machine an example may be slow. That is not a failure.
settings.register_profile("default", deadline=None, derandomize=True)
settings.load_profile("default")


def refused(result: tuple[int, str, str], code: int, *parts: str, printed: bool = False) -> None:
    """Assert that exit code, a last line on stderr that holds `parts`, and nothing on stdout unless `printed`."""
    found, out, err = result
    assert found == code, result
    assert printed or out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("ced-edge: "), err
    assert "Traceback" not in err
    assert "Usage: " not in err
    for part in parts:
        assert part in last


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real audio, teachers and golden outputs that is not part of the repository."""
    folder = Path(os.environ.get("CED_EDGE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"no shared data at {folder}: set CED_EDGE_SHARED to the folder with golden/, audio/ and teachers/")
    return folder


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """A folder of sounds: 5 s of 48 kHz stereo, and 1 s of FLAC in a folder of its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "audio" / "deep").mkdir(parents=True)
    soundfile.write(tmp_path / "audio" / "a.wav", rng.uniform(-0.5, 0.5, (240_000, 2)), 48_000)
    soundfile.write(tmp_path / "audio" / "deep" / "b.flac", rng.uniform(-0.5, 0.5, 16_000), 16_000)
    (tmp_path / "audio" / "notes.txt").write_text("not walked into")
    return tmp_path / "audio"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command line in this process."""

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ced-edge", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        return code, *capsys.readouterr()

    return run
