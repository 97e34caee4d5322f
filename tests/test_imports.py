"""Imports run one way, and what a device imports is small."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ced_edge", "distill", "export")

# What may be imported when a module is loaded; anything else only inside a function that needs it.
DEVICE = {"click", "numpy", "soundfile", "soxr"}
TORCH_SIDE = {"ced_edge.model", "ced_edge.torch_frontend", "ced_edge.checkpoint"}
ENTRY_POINTS = {("ced_edge.__main__", "ced_edge.cli")}


@dataclass(frozen=True)
class Edge:
    importer: str
    imported: str
    at_load: bool
    """Whether it happens when the importer is loaded, not inside a function."""


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(f): f for package in PACKAGES for f in sorted((ROOT / package).rglob("*.py"))}


def edges(importer: str, source: str, is_package: bool = False) -> Iterator[Edge]:
    """Every import statement, relative ones too, and `import_module` of a constant. `from a import b` may mean a.b."""
    tree = ast.parse(source)
    in_functions = {
        node
        for place in ast.walk(tree)
        if isinstance(place, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        or (isinstance(place, ast.If) and ast.unparse(place.test) == "TYPE_CHECKING")  # never executed
        for node in ast.walk(place)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = importer.split(".")[: None if is_package and node.level == 1 else is_package - node.level]
                base = ".".join([*parents, *([base] if base else [])])
            members = [f"{base}.{alias.name}" for alias in node.names]
            names = [m for m in members if m in FILES] or [base]
            if base in FILES and any(m not in FILES for m in members):
                names.append(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in names:
            yield Edge(importer, name, node not in in_functions)


def is_cli(module: str) -> bool:
    return module.rpartition(".")[2].split("_")[0] == "cli"


def wrong(edge: Edge) -> str | None:
    """Why an import must not be, or None."""
    (a, b), (package, other) = (
        (edge.importer, edge.imported),
        (edge.importer.split(".")[0], edge.imported.split(".")[0]),
    )
    if other in PACKAGES:
        if is_cli(b) and (a, b) not in ENTRY_POINTS and not (is_cli(a) and package == other):
            return "nobody imports a cli"
        if package == "ced_edge" and other != "ced_edge":
            return "ced_edge goes to devices without the other packages"
        if {package, other} == {"distill", "export"}:
            return "distill and export meet in a file"
        if a == "ced_edge.errors" or (a == "ced_edge.spec" and b != "ced_edge.errors"):
            return "the spec is the ground the others stand on"
        if package == "ced_edge" and a not in TORCH_SIDE and b in TORCH_SIDE and edge.at_load:
            return "torch reaches a device"
    elif package == "ced_edge" and edge.at_load and other not in sys.stdlib_module_names:
        if other not in DEVICE | ({"torch", "safetensors"} if a in TORCH_SIDE else set()):
            return "not part of the device install: import it in the function that needs it"
        if a in ("ced_edge", "ced_edge.spec", "ced_edge.errors"):
            return "the ground stands on the standard library alone"
    return None


def all_edges() -> list[Edge]:
    return [e for name, f in FILES.items() for e in edges(name, f.read_text(), f.name == "__init__.py")]


def test_imports_run_one_way() -> None:
    assert {"ced_edge.spec", "ced_edge.cli", "distill.teach", "distill.teachers.base"} <= FILES.keys()
    found = all_edges()
    assert len(found) > 100
    assert [f"{e.importer} imports {e.imported}: {why}" for e in found if (why := wrong(e))] == []


def test_no_cycles() -> None:
    """Modules can be loaded in one order, and read in it."""
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for edge in all_edges():
        # A package's __init__ re-exports its modules; they may name their siblings through it.
        if edge.at_load and edge.imported in FILES and not edge.importer.startswith(f"{edge.imported}."):
            graph[edge.importer].add(edge.imported)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("ced_edge.spec", "from ced_edge.files import read_json"),
        ("ced_edge.spec", "import numpy"),
        ("ced_edge.errors", "from ced_edge import spec"),
        ("ced_edge.windows", "def f():\n    from distill.views import draw"),
        ("ced_edge.windows", "import importlib\nimportlib.import_module('distill.views')"),
        ("ced_edge.windows", "import torch"),
        ("ced_edge.windows", "if True:\n    import scipy.signal"),
        ("ced_edge.windows", "import onnxruntime"),
        ("ced_edge.windows", "from ced_edge.model import CED"),
        ("ced_edge.windows", "from .model import CED"),
        ("ced_edge.windows", "from . import model"),
        (
            "ced_edge.windows",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from distill.store import Store",
        ),
        ("ced_edge.model", "import torchaudio"),
        ("distill.teachers.load", "from export.graph import build"),
        ("export.graph", "def f():\n    import distill.train"),
        ("distill.teach", "from distill.cli import teach"),
        ("distill.teach", "from distill import cli"),
        ("distill.teach", "from ced_edge.cli import main"),
        ("distill.cli", "from ced_edge.cli import main"),
        ("distill.teachers.load", "from ..cli import teach"),
    ],
)
def test_the_walk_finds(importer: str, source: str) -> None:
    assert any(map(wrong, edges(importer, source)))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("ced_edge.spec", "from ced_edge.errors import InputError"),
        ("ced_edge.windows", "import numpy as np, json\nfrom .spec import size"),
        ("ced_edge.windows", "def f():\n    import torch\n    from ced_edge.model import CED"),
        ("ced_edge.checkpoint", "import torch\nfrom ced_edge.model import CED"),
        ("distill.teach", "import torch\nfrom ced_edge.spec import size\nfrom .store import Store"),
        ("export.graph", "from ced_edge.model import CED"),
        ("distill.cli_pretrain", "from distill.cli import view_options"),
    ],
)
def test_the_walk_allows(importer: str, source: str) -> None:
    found = list(edges(importer, source))
    assert found
    assert not any(map(wrong, found))


def imported_by(code: str) -> set[str]:
    """Top-level modules beyond the standard library that a child Python has after `code`, and had not before."""
    program = (
        f"import sys, json\nbefore = set(sys.modules)\n{code}\n"
        "tops = {m.partition('.')[0] for m in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(tops - set(sys.stdlib_module_names))), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_importing_the_package() -> None:
    assert imported_by("import ced_edge") == {"ced_edge"}


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_imports_click_alone(argument: str) -> None:
    """Not even numpy: `ced-edge --help` answers at once."""
    code = (
        f"sys.argv = ['ced-edge', {argument!r}]\nfrom ced_edge.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code"
    )
    assert imported_by(code) <= {"ced_edge", "click", "colorama"}  # click's own on Windows


def test_device_modules_import_the_device_install_alone() -> None:
    modules = sorted(m for m in FILES if m.startswith("ced_edge.") and m not in TORCH_SIDE | {"ced_edge.__main__"})
    assert len(modules) > 10
    brought = {"_soundfile", "_soundfile_data", "_cffi_backend", "cffi", "typing_extensions"}  # by soundfile
    assert imported_by(f"import {', '.join(modules)}") <= {"ced_edge", *DEVICE} | brought


def test_help_of_training_and_the_demo_are_quick() -> None:
    """Neither torch for a page of text, nor the machinery of training for the demonstration's teachers."""
    assert not imported_by("import distill.cli, distill.cli_pretrain, distill.trainlog") & {"torch", "pyarrow"}
    assert "lightning_fabric" not in imported_by("import distill.demo_teachers")


def test_no_module_hides_a_library() -> None:
    names = {m.rpartition(".")[2] for m in FILES}
    assert not names & {"onnx", "tflite", "torch", "numpy", "tensorflow", "onnxruntime", "transformers"}
    assert not (ROOT / "tests" / "__init__.py").exists()
