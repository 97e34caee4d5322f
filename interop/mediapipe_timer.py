"""Time MediaPipe's AudioClassifier: `mediapipe_timer.py CLIP.wav MODEL...`.

It writes `ready`. Then it reads the number of a model per line and writes the milliseconds of one classification.
"""

import sys
import time

from mediapipe.tasks.python import BaseOptions, audio
from mediapipe.tasks.python.components.containers import AudioData
from wav import read_wav

clip, *models = sys.argv[1:]
samples, rate_hz = read_wav(clip)
data = AudioData.create_from_array(samples, rate_hz)
classifiers = [
    audio.AudioClassifier.create_from_options(
        audio.AudioClassifierOptions(base_options=BaseOptions(model_asset_path=model), max_results=5)
    )
    for model in models
]
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    classifiers[int(line)].classify(data)
    print(1e3 * (time.perf_counter() - start), flush=True)
