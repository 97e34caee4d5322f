"""Answers of model files to given inputs: `answer.py OUT.npz INPUTS.npy MODEL...`, with what a device has installed."""

import platform
import sys
import time
from pathlib import Path

import numpy as np

from ced_edge.runtime.backends import load_backend

out, inputs, *models = map(Path, sys.argv[1:])
x = np.load(inputs)  # (N, samples) or (N, n_mels, frames)
answers = {}
for model in models:
    backend = load_backend(model)  # one thread: a waiting one would spin, which an emulator pays dearly for
    start = time.process_time()
    answers[model.name] = np.concatenate([backend.run(one[None])[0] for one in x])
    seconds = (time.process_time() - start) / len(x)
    print(f"{platform.machine()}: {model.name} on {backend.runtime}, {seconds:.2f} s of CPU a clip", file=sys.stderr)
np.savez(out, **answers)
