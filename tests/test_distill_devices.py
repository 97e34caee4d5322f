"""Which hardware trains in bfloat16 by default."""

from __future__ import annotations

import pytest
import torch

from distill import devices


@pytest.mark.parametrize(
    ("name", "avx512", "amx", "fast"),
    [
        ("AMD EPYC 9R14", True, False, True),
        ("Intel(R) Xeon(R) Processor", True, False, False),
        ("Intel(R) Xeon(R) Processor", True, True, True),
        ("AMD EPYC 7763", False, False, False),
    ],
)
def test_bf16_where_it_is_faster(
    name: str, avx512: bool, amx: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_name", lambda: name)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert devices.has_fast_bf16("cpu") is fast
    assert devices.has_fast_bf16("mps") is False
