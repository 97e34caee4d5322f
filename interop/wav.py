"""Read 16-bit mono wav files with the standard library and numpy: every client's environment has these."""

import wave

import numpy as np


def read_wav(path: str) -> tuple[np.ndarray, int]:
    """(samples,) float32 in [-1, 1], rate in Hz."""
    with wave.open(path) as f:
        assert (f.getnchannels(), f.getsampwidth()) == (1, 2), f"{path}: not 16-bit mono"
        return np.frombuffer(f.readframes(f.getnframes()), "<i2").astype(np.float32) / 32768, f.getframerate()
