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
ENTRY_POINTS = {("ced_edge.__main__", "ced_edge.cli")}
GROUND = {"aliases", "errors", "arrays", "machine", "windows", "spec", "files", "labels", "frontend", "figures"}

# Room -> the other rooms it may import from, lazily too. docs/design.md says why.
ROOMS = {
    "ced_edge": set(),
    "ced_edge ground": set(),
    "ced_edge.audio": {"ced_edge ground"},
    "ced_edge.network": {"ced_edge ground"},
    "ced_edge.runtime": {"ced_edge ground", "ced_edge.audio"},
    "ced_edge.proof": {"ced_edge ground", "ced_edge.audio", "ced_edge.runtime"},
    "distill ground": set(),
    "distill.packing": {"distill ground"},
    "distill.teachers": {"distill ground"},
    "distill.teaching": {"distill ground", "distill.packing", "distill.teachers"},
    "distill.training": {"distill ground", "distill.packing", "distill.teaching"},
    "distill.evaluation": {f"distill{r}" for r in (" ground", ".packing", ".teachers", ".teaching", ".training")},
    "distill.pipeline": {
        f"distill{r}" for r in (" ground", ".packing", ".teachers", ".teaching", ".training", ".evaluation")
    },
    "export": set(),
}
ROOMS["distill.demo"] = ROOMS["distill.pipeline"] | {"distill.pipeline"}
FOR_CLIS = {"ced_edge.options", "distill.options"}


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
    name = module.rpartition(".")[2]
    return name == "cli" or name.endswith("_cli")


def room(module: str) -> str:
    """The folder of a module; files beside the folders are the ground of their package."""
    package, *rest = module.split(".")
    if f"{package}.{rest[0] if rest else ''}" in ROOMS:
        return f"{package}.{rest[0]}"
    if package == "export" or not rest:
        return package
    return f"{package} ground"


def wrong(edge: Edge) -> str | None:
    """Why an import must not be, or None."""
    (a, b), (package, other) = (
        (edge.importer, edge.imported),
        (edge.importer.split(".")[0], edge.imported.split(".")[0]),
    )
    if other in PACKAGES:
        if is_cli(b) and (a, b) not in ENTRY_POINTS:
            return "nobody imports a cli"
        if package == "ced_edge" and other != "ced_edge":
            return "ced_edge goes to devices without the other packages"
        if {package, other} == {"distill", "export"}:
            return "distill and export meet in a file"
        if a == "ced_edge.errors" or (a == "ced_edge.spec" and b != "ced_edge.errors"):
            return "the spec is the ground the others stand on"
        if b in FOR_CLIS and not is_cli(a) and a not in FOR_CLIS:
            return "options are for command lines"
        inside = package == other and not is_cli(a) and a not in FOR_CLIS | {"ced_edge"} and b != package
        if inside and room(a) != room(b) and room(b) not in ROOMS[room(a)]:
            return f"{room(a)} stands below {room(b)}"
        if package == "ced_edge" and room(b) == "ced_edge.network" != room(a):
            return "torch reaches a device"
    elif package == "ced_edge" and edge.at_load and other not in sys.stdlib_module_names:
        if other not in DEVICE | ({"torch", "safetensors"} if room(a) == "ced_edge.network" else set()):
            return "not part of the device install: import it in the function that needs it"
        if a in ("ced_edge", "ced_edge.spec", "ced_edge.errors"):
            return "the ground stands on the standard library alone"
    elif a == "distill.processes" and other == "torch":
        return "a process is started without torch"
    return None


def all_edges() -> list[Edge]:
    return [e for name, f in FILES.items() for e in edges(name, f.read_text(), f.name == "__init__.py")]


def test_imports_run_one_way() -> None:
    assert {"ced_edge.spec", "ced_edge.cli", "distill.teaching.teach", "distill.teachers.base"} <= FILES.keys()
    assert {file.partition(".")[2] for file in FILES if room(file) == "ced_edge ground"} >= GROUND
    found = all_edges()
    assert len(found) > 100
    assert [f"{e.importer} imports {e.imported}: {why}" for e in found if (why := wrong(e))] == []


def test_no_cycles() -> None:
    """Modules can be loaded in one order, and read in it."""
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for edge in all_edges():
        # A package's __init__ re-exports its modules; they may name their siblings through it.
        if edge.imported in FILES and not edge.importer.startswith(f"{edge.imported}."):
            graph[edge.importer].add(edge.imported)
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("ced_edge.spec", "from ced_edge.files import read_json"),
        ("ced_edge.spec", "import numpy"),
        ("ced_edge.errors", "from ced_edge import spec"),
        ("ced_edge.windows", "def f():\n    from distill.teaching.views import draw"),
        ("ced_edge.windows", "import importlib\nimportlib.import_module('distill.teaching.views')"),
        ("ced_edge.windows", "import torch"),
        ("ced_edge.windows", "if True:\n    import scipy.signal"),
        ("ced_edge.windows", "import onnxruntime"),
        ("ced_edge.windows", "from ced_edge.audio.read import load"),
        ("ced_edge.windows", "from .audio.read import load"),
        ("ced_edge.windows", "from .audio import read"),
        ("ced_edge.windows", "from ced_edge.options import FILE"),
        ("ced_edge.audio.clips", "from ced_edge.runtime.bundle import Bundle"),
        ("ced_edge.runtime.tagger", "def f():\n    from ced_edge.proof.check import check"),
        ("ced_edge.runtime.tagger", "def f():\n    from ced_edge.network.ced import CED"),
        ("ced_edge.proof.check", "from ced_edge.network.checkpoint import load_model"),
        ("ced_edge.network.ced", "from ced_edge.runtime.tagger import Tagger"),
        (
            "ced_edge.windows",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from distill.teaching.store import Store",
        ),
        ("ced_edge.network.ced", "import torchaudio"),
        ("distill.processes", "def f():\n    import torch"),
        ("distill.packing.pack", "from distill.teaching.views import draw"),
        ("distill.teaching.teach", "from distill.training.config import TrainConfig"),
        ("distill.training.train", "from distill.evaluation.evaluate import evaluate"),
        ("distill.pipeline", "from distill.demo.plan import plan"),
        ("distill.teachers.load", "from export.graph import build"),
        ("export.graph", "def f():\n    import distill.training.train"),
        ("distill.teaching.teach", "from distill.cli import teach"),
        ("distill.teaching.teach", "from distill import cli"),
        ("distill.teaching.teach", "from ced_edge.cli import main"),
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
        ("ced_edge.proof.check", "from ced_edge.runtime.tagger import Tagger\nfrom ced_edge.audio import clips"),
        ("ced_edge.network.checkpoint", "import torch\nfrom ced_edge.network.ced import CED"),
        ("ced_edge.runtime.cli", "from ced_edge.options import FILE"),
        ("distill.teaching.teach", "import torch\nfrom ced_edge.spec import size\nfrom .store import Store"),
        ("distill.teaching.teach", "from ced_edge.network.ced import CED"),
        ("export.graph", "from ced_edge.network.ced import CED"),
        ("distill.cli", "from distill.options import view_options\nfrom distill.demo import plan"),
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
    modules = sorted(m for m in FILES if m.startswith("ced_edge.") and room(m) != "ced_edge.network")
    modules.remove("ced_edge.__main__")
    assert len(modules) > 10
    brought = {"_soundfile", "_soundfile_data", "_cffi_backend", "cffi", "typing_extensions"}  # by soundfile
    assert imported_by(f"import {', '.join(modules)}") <= {"ced_edge", *DEVICE} | brought


def test_help_of_training_is_quick() -> None:
    """A page of text needs no torch."""
    assert not imported_by("import distill.cli, distill.training.log") & {"torch", "pyarrow"}


def test_no_module_hides_a_library() -> None:
    names = {m.rpartition(".")[2] for m in FILES}
    assert not names & {"onnx", "tflite", "torch", "numpy", "tensorflow", "onnxruntime", "transformers"}
    assert not (ROOT / "tests" / "__init__.py").exists()
