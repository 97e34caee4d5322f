"""The specs: impossible values are refused, all of them in one line, and only a published size has its name."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ced_edge.errors import InputError
from ced_edge.frontend import log_mel, mel_filters
from ced_edge.spec import SIZES, FrontendSpec, ModelSpec


@pytest.mark.parametrize(("name", "spec"), SIZES.items())
def test_a_published_size_has_its_name(name: str, spec: ModelSpec) -> None:
    assert spec.name == name
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize("change", [{"mlp_ratio": 3}, {"patch": 8}, {"max_frames": 201}, {"n_classes": 50},
                                    {"frontend": FrontendSpec(n_mels=128)}])  # fmt: skip
def test_another_network_of_the_same_width_is_not_tiny(change: dict[str, Any]) -> None:
    assert dataclasses.replace(SIZES["tiny"], **change).name == "192x12"


INTEGERS = ["width", "heads", "depth", "mlp_ratio", "patch", "max_frames", "n_classes",
            "rate_hz", "n_fft", "hop", "n_mels"]  # fmt: skip
REALS = ["f_min_hz", "f_max_hz", "top_db", "min_power"]


def changed(name: str, value: object) -> dict[str, Any]:
    fields = SIZES["tiny"].to_dict()
    (fields if name in fields else fields["frontend"])[name] = value
    return fields


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("value", [0, -1, 1 << 40, 3.0, math.nan, True, "3", None, [1]])
def test_a_size_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"not a possible .*{name} .* is not an integer from"):
        ModelSpec.from_dict(changed(name, value))


@pytest.mark.parametrize("name", REALS)
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 1e300, 10**400, True, "3", None])
def test_a_number_that_cannot_be_is_refused(name: str, value: object) -> None:
    with pytest.raises(
        InputError,
        match=r"not a possible front end: .*( is not a number| is not above 0| is above 1048576|Hz is not a)",
    ) as e:
        ModelSpec.from_dict(changed(name, value))
    assert len(str(e.value)) < 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hop": 600}, "hop 600 is larger than n_fft 512"),
        ({"f_min_hz": 8_000.0}, "8000.0 to 8000.0 Hz is not a range"),
        ({"rate_hz": 8_000}, "0.0 to 8000.0 Hz is not a range between 0 and half of rate_hz"),
        ({"hop": 0, "n_mels": -3, "top_db": math.nan}, "hop 0 is .*; n_mels -3 is .*; top_db nan is not a number$"),
        ({"heads": 5}, "width 192 is not a multiple of its 5 heads"),
        ({"patch": 65}, "patch 65 is larger than n_mels"),
        ({"max_frames": 2, "patch": 2}, "max_frames 2 is less than one window of the front end"),
        ({"heads": 0, "depth": -1}, "heads 0 is .*; depth -1 is "),
    ],
)
def test_every_problem_is_named(fields: dict[str, Any], message: str) -> None:
    model = {"width": 192, "heads": 3}
    front = {k: v for k, v in fields.items() if k not in ModelSpec.__dataclass_fields__}
    with pytest.raises(InputError, match=message):
        ModelSpec(**{**model, **{k: v for k, v in fields.items() if k not in front}, "frontend": FrontendSpec(**front)})


@pytest.mark.parametrize("fields", [{}, [], "x", None, {"frontend": 3}, {"frontend": {}, "colour": 1}])
def test_what_is_no_spec_is_refused(fields: Any) -> None:
    with pytest.raises(InputError, match="not a model spec"):
        ModelSpec.from_dict(fields)


@given(st.integers(-2, 2_000), st.integers(-2, 2_000), st.integers(-2, 70), st.integers(-1, 30_000))
def test_every_accepted_front_end_computes(n_fft: int, hop: int, n_mels: int, rate_hz: int) -> None:
    """Whatever the check lets through can be computed: a silent clip of the least length gives finite numbers."""
    try:
        spec = FrontendSpec(n_fft=n_fft, hop=hop, n_mels=n_mels, rate_hz=rate_hz, f_max_hz=rate_hz / 2)
    except InputError:
        return
    wave = mel_filters(spec)[0, :1].repeat(spec.min_samples) * 0
    assert log_mel(wave, spec).shape == (n_mels, spec.frames(spec.min_samples))
