"""tflite-runtime or TensorFlow: `tflite_client.py MODEL.tflite CLIP.wav...` -> a JSON line of all scores per clip."""

import json
import sys
import zipfile

import numpy as np
from wav import read_wav

try:
    from tflite_runtime.interpreter import Interpreter
except ImportError:
    import tensorflow

    Interpreter = tensorflow.lite.Interpreter

model, *clips = sys.argv[1:]
labels = zipfile.ZipFile(model).read("labels.txt").decode().splitlines()
interpreter = Interpreter(model, num_threads=1)
interpreter.allocate_tensors()
(waveform,), (prob,) = interpreter.get_input_details(), interpreter.get_output_details()
for clip in clips:
    samples, rate_hz = read_wav(clip)  # at 16,000 Hz
    interpreter.set_tensor(waveform["index"], np.resize(samples, waveform["shape"]))
    interpreter.invoke()
    scores = interpreter.get_tensor(prob["index"])[0].tolist()
    print(json.dumps(dict(zip(labels, scores, strict=True))))
