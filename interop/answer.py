"""Predictions of model files for given inputs: `answer.py OUT.npz INPUTS.npy MODEL...`.

It needs nothing beyond the device install, so it also runs in other environments and on an emulated processor.
"""

import platform
import sys
import time
from pathlib import Path

import numpy as np

from ced_edge.runtime.backends import load_backend

out, inputs, *models = map(Path, sys.argv[1:])
x = np.load(inputs)  # (N, samples) or (N, n_mels, frames)
predictions = {}
for model in models:
    backend = load_backend(model)  # one thread: waiting threads spin, which is very slow in an emulator
    start = time.process_time()
    predictions[model.name] = np.concatenate([backend.run(one[None])[0] for one in x])
    seconds = (time.process_time() - start) / len(x)
    print(f"{platform.machine()}: {model.name} on {backend.runtime}, {seconds:.2f} s of CPU a clip", file=sys.stderr)
np.savez(out, **predictions)
