"""What the makers of sounds share: rate, length, random numbers, and how a program is run."""

from __future__ import annotations

import hashlib
import subprocess

import numpy as np
from numpy.random import Generator, Philox

from ced_edge.errors import CedEdgeError

RATE_HZ, CLIP_S = 32_000, 10.0


def rng_of(name: str) -> Generator:
    """The random numbers of one clip."""
    return Generator(Philox(key=np.frombuffer(hashlib.blake2b(name.encode(), digest_size=16).digest(), np.uint64)))


def run(command: list[str], text: str | None = None) -> bytes:
    """What a program writes to stdout. Raises CedEdgeError with the last line of its messages when it fails."""
    done = subprocess.run(command, input=text.encode() if text else None, capture_output=True)
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no message"]
        raise CedEdgeError(f"{command[0]} failed: {last[0]}")
    return done.stdout
