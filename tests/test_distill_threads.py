"""How the threads of torch wait for each other: asleep, so that training does not collapse on a busy machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest


def openmp(**settings: str) -> str:
    """What the OpenMP library in a new process prints of its settings when distill's training is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", "import distill.training.loop"],
        env=environment | settings | {"OMP_DISPLAY_ENV": "VERBOSE"},
        capture_output=True,
        text=True,
        check=True,
    )
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this torch does not use GNU's OpenMP library, whose report this test reads")
    return done.stderr


def setting(text: str, name: str) -> set[str]:
    return set(re.findall(rf"{name} = '(\w+)'", text))


def test_threads_sleep_while_they_wait() -> None:
    assert setting(openmp(), "GOMP_SPINCOUNT") == {"0"}  # without distill it is 300,000: milliseconds


def test_the_users_own_setting_is_kept() -> None:
    assert setting(openmp(GOMP_SPINCOUNT="1234"), "GOMP_SPINCOUNT") == {"1234"}
    assert setting(openmp(OMP_WAIT_POLICY="ACTIVE"), "OMP_WAIT_POLICY") == {"ACTIVE"}
    assert setting(openmp(KMP_BLOCKTIME="0"), "GOMP_SPINCOUNT") == {"300000"}
