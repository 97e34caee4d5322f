"""MediaPipe's AudioClassifier: `mediapipe_client.py MODEL.tflite CLIP.wav...` -> a JSON line of all scores per clip."""

import json
import sys

from mediapipe.tasks.python import BaseOptions, audio
from mediapipe.tasks.python.components.containers import AudioData
from wav import read_wav

model, *clips = sys.argv[1:]
options = audio.AudioClassifierOptions(base_options=BaseOptions(model_asset_path=model))
with audio.AudioClassifier.create_from_options(options) as classifier:
    for clip in clips:
        samples, rate_hz = read_wav(clip)
        windows = classifier.classify(AudioData.create_from_array(samples, rate_hz))
        print(json.dumps({c.category_name: c.score for c in windows[0].classifications[0].categories}))
