"""The public names: each exists, is documented, and its examples run."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_bundle import shared_bundle

import ced_edge

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "Tagger",
    "StreamingTagger",
    "Tags",
    "Event",
    "EventRule",
    "find_events",
    "Bundle",
    "read_bundle",
    "load_audio",
    "CedEdgeError",
    "InputError",
    "AudioError",
    "__version__",
]


def test_every_promised_name_is_there() -> None:
    assert sorted(ced_edge.__all__) == sorted(NAMES) == dir(ced_edge)
    assert all(getattr(ced_edge, name) is not None for name in NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'Taggers'"):
        _ = ced_edge.Taggers


def test_a_name_is_the_one_of_its_module() -> None:
    from ced_edge.audio import read
    from ced_edge.runtime import tagger

    assert ced_edge.load_audio is read.load
    assert ced_edge.Tagger is tagger.Tagger
    assert issubclass(ced_edge.AudioError, ced_edge.InputError)
    assert issubclass(ced_edge.InputError, ced_edge.CedEdgeError)


def test_importing_a_name_loads_its_module_alone() -> None:
    code = (
        "import sys, ced_edge; ced_edge.InputError; print('numpy' in sys.modules);"
        "ced_edge.Tags; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(examples) > 8
    assert all(f"ced_edge.{name}" in "".join(examples) for name in NAMES if name not in ("Tags", "Bundle", "Event"))
    assert all(f"`{name}`" in text for name in NAMES if name != "__version__")
    shutil.copytree(shared_bundle().folder, tmp_path / "bundle")
    soundfile.write(tmp_path / "dog.wav", 0.1 * np.random.default_rng(0).standard_normal(3 * 48_000), 48_000)
    (tmp_path / "all.py").write_text("\n".join(examples), encoding="utf-8")
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "all.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot use missing.wav: no such file" in done.stdout
