"""sherpa-onnx's AudioTagging: `sherpa_onnx_client.py MODEL.onnx CLIP.wav...` -> a JSON line of all scores per clip."""

import json
import sys
from pathlib import Path

import sherpa_onnx
from wav import read_wav

model, *clips = sys.argv[1:]
labels = Path(model).parent / "class_labels_indices.csv"
config = sherpa_onnx.AudioTaggingConfig(
    model=sherpa_onnx.AudioTaggingModelConfig(ced=model, num_threads=1),
    labels=str(labels),
    top_k=527,
)
tagger = sherpa_onnx.AudioTagging(config)
for clip in clips:
    samples, rate_hz = read_wav(clip)
    stream = tagger.create_stream()
    stream.accept_waveform(rate_hz, samples)
    print(json.dumps({event.name: event.prob for event in tagger.compute(stream)}))
