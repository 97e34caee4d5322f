"""Patchout: which patches stay, that each has the same chance, and that the student gets exactly those."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint_forms import small_model
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import RATE_HZ, SMALL, config, make_stream, small_student

from ced_edge.errors import InputError
from ced_edge.network.checkpoint import read_metadata
from ced_edge.spec import size
from distill.pipeline import run_train
from distill.training.patchout import kept_patches, structured

TINY = size("tiny")
KINDS = ("unstructured", "structured")


@given(
    st.sampled_from(KINDS),
    st.floats(0.5, 10.0),
    st.integers(1, 5),
    st.floats(0.0, 0.95),
    st.integers(0, 2**60),
    st.integers(0, 9),
)
def test_patches_that_stay_are_ascending_numbers_of_the_view(
    kind: str, seconds: float, views: int, share: float, seed: int, step: int
) -> None:
    samples = round(seconds * RATE_HZ)
    F, T = 4, (1 + samples // 160) // 16
    kept = kept_patches(TINY, samples, views, share, kind, seed, step)
    assert len(kept) == views
    assert kept.shape[1] >= 1
    assert int(kept.min()) >= 0
    assert int(kept.max()) < F * T
    assert (kept.diff(dim=1) > 0).all()
    # Whole rows leave coarse steps; columns make up for it to within one column, or at the limits.
    tolerance = 0.5 if kind == "unstructured" else F
    f = structured(F, T, share)[0]
    if 1 < kept.shape[1] < f * T:
        assert abs(kept.shape[1] - (1 - share) * F * T) <= tolerance
    assert torch.equal(kept, kept_patches(TINY, samples, views, share, kind, seed, step))


def test_half_of_a_view_of_10_s() -> None:
    """62 columns of 4: unstructured keeps 124 patches; structured keeps 3 rows and 41 columns."""
    assert kept_patches(TINY, 160_000, 2, 0.5, "unstructured", 0, 0).shape == (2, 124)
    kept = kept_patches(TINY, 160_000, 2, 0.5, "structured", 0, 0)
    assert kept.shape == (2, 3 * 41)
    assert torch.equal(kept[0], kept[1])
    rows, columns = kept[0] // 62, kept[0] % 62
    assert (len(rows.unique()), len(columns.unique())) == (3, 41)


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_stays_equally_often(kind: str) -> None:
    counts = torch.zeros(48)
    for step in range(2_000):
        counts[kept_patches(TINY, 32_000, 1, 0.5, kind, 7, step)[0]] += 1
    share = 24 / 48 if kind == "unstructured" else 3 * 8 / 48
    assert torch.allclose(counts / 2_000, torch.tensor(share), atol=0.06)


def test_views_and_processes_get_other_patches() -> None:
    kept = kept_patches(TINY, 32_000, 3, 0.5, "unstructured", 0, 0)
    assert len({tuple(row.tolist()) for row in kept}) == 3
    ranks = [kept_patches(TINY, 32_000, 2, 0.5, "unstructured", 0, 0, rank, 2) for rank in range(2)]
    assert len({tuple(row.tolist()) for part in ranks for row in part}) == 4


def test_the_student_gets_those_patches_with_their_own_positions() -> None:
    """Computed by hand: the tokens of the whole view, of which the others are taken out."""
    model = small_model(SMALL)
    wave = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(0)) * 0.1
    kept = kept_patches(SMALL, 16_000, 2, 0.4, "unstructured", 0, 0)
    with torch.inference_mode():
        tokens = model.patches(model.front_end(wave), 3).flatten(2).transpose(1, 2)
        some = torch.stack([tokens[i][kept[i]] for i in range(2)])
        expected = model.outputlayer(model.encode(some).mean(dim=1))
        torch.testing.assert_close(model(wave, 3, kept), expected)
        everything = torch.arange(tokens.shape[1]).expand(2, -1)
        torch.testing.assert_close(model(wave, 3, everything), model(wave, 3))


def test_it_is_part_of_the_run_and_off_by_default(tmp_path: Path) -> None:
    stream = make_stream(tmp_path)
    with small_student():
        for kind in KINDS:
            chosen = config(steps=4, patchout=0.5, patchout_kind=kind)
            weights = run_train(tmp_path / kind, stream.pack, stream.store, chosen)
            assert read_metadata(weights)["recipe"]["train"]["patchout"] == 0.5
        with pytest.raises(InputError, match="begun with other values of patchout, patchout_kind: "):
            run_train(tmp_path / "structured", stream.pack, stream.store, config(steps=4))
        with pytest.raises(InputError, match="begun with other values of patchout_kind: "):
            run_train(tmp_path / "structured", stream.pack, stream.store, config(steps=4, patchout=0.5))
    assert config(patchout=0.0).to_dict() == config().to_dict()
    assert "patchout" not in config().to_dict()
