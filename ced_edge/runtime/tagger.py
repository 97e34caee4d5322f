"""A bundle's model over the windows of audio. A whole clip is a stream that gets all its samples at once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from ced_edge.arrays import Float32
from ced_edge.audio.base import AudioError
from ced_edge.audio.intake import Intake
from ced_edge.audio.level import Gain, Level, check_gain, with_gain
from ced_edge.audio.read import stream as read_pieces
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.frontend import StreamMel, log_mel
from ced_edge.labels import Label, labels
from ced_edge.runtime.backends import Backend, NotInstalled, Port, load_backend, packages
from ced_edge.runtime.bundle import BUNDLE_NAME, PACKAGED, Bundle, ModelFile, read_bundle
from ced_edge.windows import n_full, n_windows, span, times_s


@dataclass(frozen=True, eq=False)
class Tags:
    """The predictions for one window."""

    start_s: float
    """Seconds from the start of the stream."""
    end_s: float
    probs: Float32
    """(n_classes,) in [0, 1]. Several classes may be likely at once, so they do not sum to 1."""
    level: Level | None = None
    """How loud the window is; None where only probabilities were computed."""

    def top(self, k: int, threshold: float = 0.0) -> list[tuple[Label, float]]:
        """The `k` likeliest classes with a probability of at least `threshold`, the likeliest first."""
        # Stable, so that classes with the same probability have a fixed order.
        order = np.argsort(-self.probs, kind="stable")[:k]
        return [(labels()[i], float(self.probs[i])) for i in order if self.probs[i] >= threshold]


class Tagger:
    """A bundle's model, loaded and checked. Use one instance in one thread at a time."""

    def __init__(
        self,
        bundle: Bundle | Path | str | None = None,
        kind: str | None = None,
        format: str | None = None,
        file: str | None = None,
        threads: int = 1,
        runtime: str | None = None,
    ) -> None:
        """Load a bundle, by default the one that is installed with this package.

        It is the first model file with this kind, format and name (see `Bundle.fitting`) whose runtime is installed.

        `threads` is the number of threads inside one prediction. `runtime` is the package to use: onnxruntime,
        ai-edge-litert, tflite-runtime or tensorflow. Raises InputError when there is no such file, when no runtime for
        it is installed (the message names the package to install), or when the file is not what bundle.json says.
        """
        self._threads, self._runtime = threads, runtime
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle or PACKAGED))
        self.file, self.backend = _load(self.bundle, self.bundle.fitting(file, kind, format), threads, runtime)
        self.path = self.bundle.path(self.file)
        # The file may come from anywhere, so what it claims is checked before it is used.
        self._steps = _input_steps(self.bundle, self.backend, self.path)
        _check_labels(self.backend, self.path)

    def copy(self) -> Tagger:
        """Load the same model file once more, for another thread."""
        return Tagger(self.bundle, None, None, self.file.name, self._threads, self._runtime)

    @property
    def rate_hz(self) -> int:
        """Sample rate of the model's input. Audio of another rate is resampled to it."""
        return self.bundle.spec.frontend.rate_hz

    def predict_window(self, wave: Float32, mels: StreamMel | None = None, start: int = 0) -> Float32:
        """One window (samples,) at `rate_hz`, not longer than the bundle's -> probabilities (n_classes,).

        Give `mels`, which holds the frames of earlier windows, and the first sample `start` for a window of a stream.
        Raises CedEdgeError when the model fails, or returns anything but n_classes finite numbers.
        """
        if not 0 < len(wave) <= self.bundle.window_samples:
            raise ValueError(f"a window holds 1 to {self.bundle.window_samples} samples, not {len(wave)}")
        spec, x = self.bundle.spec, wave
        if self._steps > 0 and len(wave) != self.bundle.window_samples:
            # The file accepts full windows alone. A repeated clip sounds like the clip; zeros would cost accuracy.
            x = np.resize(wave, self.bundle.window_samples)
        elif len(wave) < spec.min_samples:
            x = np.pad(wave, (0, spec.min_samples - len(wave)))  # the model needs one patch at least
        if self.bundle.input == "mel":
            # Frames are shared between windows only where the window is the stream's own samples.
            x = mels.log_mel(x, start) if mels is not None and x is wave else log_mel(x, spec.frontend)
        (probs, *_) = self.backend.run(np.ascontiguousarray(x[None]))
        if probs.shape != (1, spec.n_classes) or not np.isfinite(probs).all():
            raise CedEdgeError(
                f"{self.path} did not return {spec.n_classes} finite numbers: it is broken, export it again"
            )
        return np.asarray(probs[0], np.float32)

    def tag(
        self,
        samples: ArrayLike,
        rate_hz: int | None = None,
        window_s: float | None = None,
        hop_s: float | None = None,
        gain_db: Gain = 0.0,
    ) -> list[Tags]:
        """Floats (n,) or (n, channels) in [-1, 1], of any length -> the predictions for each window.

        `rate_hz` is that of the samples (default: the model's). Windows of `window_s` (default: the bundle's) start
        every `hop_s` (default: one after the other). `gain_db` makes them louder first, see `with_gain`. Raises
        InputError on unusable samples, rates, windows or gains.
        """
        stream = StreamingTagger(self, window_s, hop_s, gain_db)
        return list(tag_stream(stream, [(samples, rate_hz)]))

    def tag_file(
        self, path: Path | str, window_s: float | None = None, hop_s: float | None = None, gain_db: Gain = 0.0
    ) -> list[Tags]:
        """An audio file of any format, rate and length -> the predictions for each window, as `tag` does.

        The file is read in pieces: only the predictions, 2 kB per window, grow with its length. Raises AudioError on
        a file that holds no usable audio, and InputError on wrong windows.
        """
        return list(tag_file(StreamingTagger(self, window_s, hop_s, gain_db), Path(path)))

    def predict(self, samples: ArrayLike, rate_hz: int | None = None, gain_db: Gain = 0.0) -> Float32:
        """Samples as in `tag` -> probabilities (n_classes,) of the whole audio: the mean over its windows.

        Raises InputError as `tag` does, and when there are no samples.
        """
        return mean_probs(self.tag(samples, rate_hz, gain_db=gain_db))


class StreamingTagger:
    """Windows over audio that comes in pieces: `accept` each piece, `pop` while `ready`, and at the end `finish`.

    The predictions are the same, bit for bit, however the audio is cut. Memory does not grow with the stream: it holds
    the samples of the windows that are not popped yet, and of one more.
    """

    def __init__(
        self, tagger: Tagger, window_s: float | None = None, hop_s: float | None = None, gain_db: Gain = 0.0
    ) -> None:
        """Use windows of `window_s` (default: the bundle's) every `hop_s` (default: one after the other).

        `gain_db` is applied to each window before the model, see `with_gain`. Raises InputError when the bundle's model
        does not accept such a window, when the hop is longer than it, and on an unusable gain.
        """
        self.tagger, self.gain_db = tagger, check_gain(gain_db)
        bundle, rate = tagger.bundle, tagger.rate_hz
        self.window = bundle.window_samples if window_s is None else _samples("window", window_s, rate)
        self.hop = self.window if hop_s is None else _samples("hop", hop_s, rate)
        shortest_s, longest_s = bundle.spec.min_samples / rate, bundle.window_samples / rate
        if not bundle.spec.min_samples <= self.window <= bundle.window_samples:
            raise InputError(
                f"a window of {self.window / rate:g} s does not fit {bundle.folder}: {shortest_s:g} to {longest_s:g} s"
            )
        if not 0 < self.hop <= self.window:
            raise InputError(
                f"a hop of {hop_s:g} s does not fit windows of {self.window / rate:g} s: 0 < hop <= window"
            )
        self.window_s, self.hop_s = self.window / rate, self.hop / rate
        self.reset()

    def reset(self, at: int = 0, name: str = "the stream") -> None:
        """Start a new stream, whose first sample has the time of sample `at` (at the model's rate). Its rate may be
        another one. `name` is for notices.
        """
        self._at = at
        self._intake = Intake(self.tagger.rate_hz, name, at / self.tagger.rate_hz)
        self._mels = StreamMel(self.tagger.bundle.spec.frontend)
        self._next = 0

    def accept(self, samples: ArrayLike, rate_hz: int | None = None) -> None:
        """Add the next samples: floats (n,) or (n, channels) in [-1, 1].

        `rate_hz` is their rate (default: that of the samples before, at the start the model's). Raises InputError on
        unusable samples, and then adds none of them; see `Intake.accept`.
        """
        self._intake.accept(samples, rate_hz)

    def finish(self) -> None:
        """End the stream: what is left after the last full window becomes a shorter window."""
        self._intake.finish()

    def ready(self) -> int:
        """The number of windows that can be popped."""
        # Before the end only full windows count: more samples may still complete the last one.
        count = n_windows if self._intake.finished else n_full
        return count(self._intake.samples, self.window, self.hop) - self._next

    def pop(self) -> Tags:
        """Predict the next window. Raises InputError when none is ready."""
        start, stop = self._advance()
        wave, level = with_gain(self._intake.view(start, stop), self.gain_db)
        # With `auto` every window has a gain of its own, so windows have no frames in common.
        mels = None if self.gain_db == "auto" else self._mels
        probs = self.tagger.predict_window(wave, mels, start)
        self._intake.drop(self._next * self.hop)  # no later window starts before this sample
        return Tags(*times_s((self._at + start, self._at + stop), self.tagger.rate_hz), probs, level)

    def skip(self) -> None:
        """Leave out the next window, because the machine is too slow. Raises InputError as `pop` does."""
        self._advance()
        self._intake.drop(self._next * self.hop)

    def _advance(self) -> tuple[int, int]:
        if not self.ready():
            raise InputError("no window is ready: accept() more samples, or finish() the stream")
        self._next += 1
        return span(self._next - 1, self._intake.samples, self.window, self.hop)


def tag_stream(stream: StreamingTagger, pieces: Iterable[tuple[ArrayLike, int | None]]) -> Iterator[Tags]:
    """The predictions for pieces of (samples, rate), each as soon as its window is full."""
    for samples, rate_hz in pieces:
        stream.accept(samples, rate_hz)
        while stream.ready():
            yield stream.pop()
    stream.finish()
    while stream.ready():
        yield stream.pop()


def tag_file(stream: StreamingTagger, source: Path | BinaryIO) -> Iterator[Tags]:
    """The predictions for an audio file or an open one, in windows of `stream`. Every error names it.

    Raises AudioError when it holds no usable audio, and CedEdgeError when the model fails.
    """
    empty, name = True, str(source if isinstance(source, Path) else getattr(source, "name", "the stream"))
    stream.reset(name=name)
    try:
        for tags in tag_stream(stream, read_pieces(source)):
            empty = False
            yield tags
    except AudioError:
        raise
    except InputError as e:  # such as a NaN in its samples
        raise AudioError(name, str(e)) from e
    except CedEdgeError as e:
        raise CedEdgeError(f"{name}: {e}") from e
    if empty:  # of one sample at 48 kHz, for example, resampling leaves none
        raise AudioError(name, f"too short: no sample is left at {stream.tagger.rate_hz} Hz")


def mean_probs(tags: Sequence[Tags]) -> Float32:
    """The mean (n_classes,) over windows, weighted by their length in seconds. Raises InputError without windows."""
    if not tags:
        raise InputError("there are no samples to predict")
    seconds = [t.end_s - t.start_s for t in tags]
    return np.average([t.probs for t in tags], axis=0, weights=seconds).astype(np.float32)


def _samples(name: str, seconds: float, rate_hz: int) -> int:
    if not 0 < seconds < float("inf"):
        raise InputError(f"a {name} of {seconds:g} s: give seconds above 0")
    # To the nearest sample: a window of 1/3 s, for example, does not end on one.
    return round(seconds * rate_hz)


def _load(bundle: Bundle, files: Sequence[ModelFile], threads: int, runtime: str | None) -> tuple[ModelFile, Backend]:
    """The first file whose runtime is installed, and its backend. With `runtime`, the first that this package runs.

    A file that is broken is an error, and not skipped: the caller would get another model without notice.
    """
    usable = [f for f in files if runtime is None or runtime in packages(f.format)]
    if not usable:
        names, known = ", ".join(f.name for f in files), dict.fromkeys(p for f in files for p in packages(f.format))
        raise InputError(f"{runtime} does not run {names} of {bundle.folder}: choose {' or '.join(known)}")
    missing: list[NotInstalled] = []
    for file in usable:
        try:
            return file, load_backend(bundle.path(file), threads, runtime)
        except NotInstalled as e:
            missing.append(e)
    raise missing[0]


def _input_steps(bundle: Bundle, backend: Backend, path: Path) -> int:
    """Samples or frames that the file's input has, -1 where any number will do.

    Raises InputError when its inputs or outputs are not those that bundle.json describes.
    """
    spec, mel = bundle.spec, bundle.input == "mel"
    input_shape = (-1, spec.frontend.n_mels, bundle.window_frames) if mel else (-1, bundle.window_samples)
    for what, ports, name, shape in (
        ("input", backend.inputs, bundle.input, input_shape),
        ("output", backend.outputs, bundle.output, (-1, spec.n_classes)),
    ):
        if len(ports) != 1 or not _fits(ports[0], name, shape, any_name=path.suffix == ".tflite"):
            actual = ", ".join(f"{p.name} {p.shape} {p.dtype}" for p in ports) or "missing"
            raise InputError(
                f"{path} is not what its {BUNDLE_NAME} says: its {what} is {actual}, not {name} {shape} float32; "
                "export the bundle again"
            )
    return backend.inputs[0].shape[-1]


def _fits(port: Port, name: str, shape: tuple[int, ...], any_name: bool) -> bool:
    """Whether a port has this name and shape. Its batch may be 1, and any of its sizes may be free (-1)."""
    # Converters to TFLite give names of their own, such as `serving_default_args_0:0`.
    if port.dtype != "float32" or len(port.shape) != len(shape) or not (any_name or port.name == name):
        return False
    return port.shape[0] in (-1, 1) and all(a in (-1, b) for a, b in zip(port.shape[1:], shape[1:], strict=True))


def _check_labels(backend: Backend, path: Path) -> None:
    """Raise InputError unless the labels inside the file, which other programs read, are those of its outputs."""
    text = backend.metadata.get("labels")
    with contextlib.suppress(ValueError, RecursionError):
        if text is None or json.loads(text) == [label.name for label in labels()]:
            return
    raise InputError(f"{path} carries other labels than the bundle, or another order of them: export the bundle again")
