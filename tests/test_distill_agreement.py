"""Agreement with the teachers: figures computed by hand, the same audio as in training, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Call
from sklearn.metrics import average_precision_score
from tiny_run import RECIPE, SMALL, make_pack, make_store, small_student

from ced_edge.network.ced import CED
from ced_edge.network.checkpoint import save_model
from distill.evaluation.agreement import Agreement, agreement
from distill.packing.shards import Pack
from distill.teaching.store import Store, TopK
from distill.teaching.views import ViewRecipe
from distill.training.batches import Batches, TrainingData


def test_figures_by_hand() -> None:
    """Three views, two stored classes each. In view 2 the ensemble's best class is below 0.3, so nothing is present."""
    target = np.zeros((3, 527), np.float32)
    probs = np.full((3, 527), 0.01, np.float32)
    kept = np.zeros((3, 527), np.bool_)
    target[0, :2], target[1, :2], target[2, [0, 2]] = (0.8, 0.4), (0.1, 0.9), (0.25, 0.2)
    kept[:2, :2] = kept[2, [0, 2]] = True
    probs[0, :2], probs[1, :2], probs[2, [0, 2]] = (0.6, 0.2), (0.1, 0.7), (0.7, 0.2)
    found = Agreement(probs, target, kept).to_dict()
    # Class 0: present in view 0 alone, which comes second (0.7, 0.6, 0.1): 1/2. Class 1: views 1 and 0 come first: 1.
    assert {name: (one["ap"], one["views"]) for name, one in found["per_class"].items()} == {
        "Speech": (0.5, 1), "Male speech, man speaking": (1.0, 2),
    }  # fmt: skip
    assert (found["mean_ap"], found["classes_present"], found["views"]) == (0.75, 2, 3)

    def kl(view: int, classes: list[int]) -> float:
        """From the definition: odds over the stored classes, and the sum of all other odds as one more."""
        distributions = []
        for table in (np.maximum(target[view], 1e-7), probs[view]):
            odds = [float(p) / (1 - float(p)) for p in table]
            rest = sum(odds) - sum(odds[c] for c in classes)
            distributions.append([odds[c] / sum(odds) for c in classes] + [rest / sum(odds)])
        return sum(q * math.log(q / p) for q, p in zip(*distributions, strict=True))

    expected = (kl(0, [0, 1]) + kl(1, [0, 1]) + kl(2, [0, 2])) / 3
    assert found["kl"] == pytest.approx(expected, rel=1e-5)


def test_a_student_that_equals_its_teachers_scores_one() -> None:
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.001, 0.9, (40, 527)).astype(np.float32)
    target, kept = TopK.top_k(probs, 527).dense()
    found = Agreement(probs, target, kept)
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert np.nanmin(found.per_class_ap) == 1.0
    # A class outside the stored top K never counts as present, whatever the fill.
    target, kept = TopK.top_k(probs, 3).dense()
    assert Agreement(probs, target, kept).present.sum() == 120


def test_average_precision_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    target = rng.uniform(0, 1, (60, 527)).astype(np.float32)
    probs = (0.5 * target + 0.5 * rng.uniform(0, 1, (60, 527))).astype(np.float32)
    found = Agreement(probs, target, np.ones((60, 527), np.bool_))
    assert found.per_class_ap == pytest.approx(average_precision_score(target >= 0.3, probs, average=None))


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pack, Store, Path]:
    folder = tmp_path_factory.mktemp("held")
    packed = make_pack(folder)
    torch.manual_seed(0)
    model = CED(SMALL).eval()
    save_model(folder / "student.safetensors", model, {})
    return packed, make_store(folder / "store", packed), folder / "student.safetensors"


def test_the_student_gets_the_views_of_the_store(held: tuple[Pack, Store, Path]) -> None:
    """The same audio as in training: the batches of the loader, in another order. At -20 dB it is a tenth of it."""
    packed, store, _ = held
    recipe = ViewRecipe(windows=((2, 0.4),))
    store = make_store(store.path.parent / "equal", packed, recipe)
    waves: list[torch.Tensor] = []

    class Recorder(CED):
        def forward(self, wave: torch.Tensor, time_offset: int = 0, kept: torch.Tensor | None = None) -> torch.Tensor:
            waves.append(wave)
            return super().forward(wave, time_offset, kept)

    found = agreement(Recorder(SMALL), packed, store, batch_size=5)
    assert found.probs.shape == (48, 527)
    full, waves = torch.cat(waves), []
    batches = iter(Batches(TrainingData(packed, store, recipe, 24, 16_000)))
    trained = torch.cat([next(batches).wave for _ in range(2)])
    order = [t[np.lexsort(t.numpy()[:, :3].T)] for t in (full, trained)]
    assert torch.equal(*order)
    agreement(Recorder(SMALL), packed, store, level_db=-20.0)
    torch.testing.assert_close(torch.cat(waves), full * 0.1)


def test_the_command(call: Call, held: tuple[Pack, Store, Path], tmp_path: Path) -> None:
    packed, store, student = held
    flags = ["agreement", student, "--pack", packed.location, "--store", store.path]
    code, out, _ = call(*flags, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["views"], found["classes_present"]) == (24 * RECIPE.epochs, 4)
    code, out, _ = call(*flags)
    assert code == 0
    assert f"mean_ap: {found['mean_ap']:.4f} over 4 classes\nkl: {found['kl']:.4f} over 72 views" in out
    quiet = json.loads(call(*flags, "--json", "--level", -40)[1])
    assert quiet["kl"] != found["kl"]
    with small_student():
        other = make_pack(tmp_path, n=6)
    for change, message in (
        (["--pack", other.location], "is a store of another pack than"),
        (["--store", tmp_path], "no store at"),
        (["--level", 6], "not in the range"),
    ):
        code, out, err = call(*flags, *change)
        assert (code, out) == (2, "")
        assert message in err
    clean = make_store(tmp_path / "clean", packed, clean=True)
    code, _, err = call(*flags, "--store", clean.path)
    assert code == 2
    assert "store of clean clips" in err
    store.file(1, packed.shards[2].name).rename(tmp_path / "away")
    code, _, err = call(*flags)
    assert code == 75
    assert "`ced-edge teach` has not finished this store" in err
