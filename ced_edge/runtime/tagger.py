"""What is heard in audio: a bundle's model over the windows of a stream, and of a whole clip, which is the same."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ced_edge.arrays import Float32
from ced_edge.audio.intake import Intake
from ced_edge.errors import CedEdgeError, InputError
from ced_edge.frontend import StreamMel, log_mel
from ced_edge.labels import Label, labels
from ced_edge.runtime.backends import Backend, NotInstalled, Port, load_backend, packages
from ced_edge.runtime.bundle import Bundle, ModelFile, read_bundle
from ced_edge.windows import n_full, n_windows, span, times_s


@dataclass(frozen=True, eq=False)
class Tags:
    """What a model says of one window."""

    start_s: float
    end_s: float
    """From the stream's beginning."""
    probs: Float32
    """(n_classes,) in [0, 1]."""

    def top(self, k: int, threshold: float = 0.0) -> list[tuple[Label, float]]:
        """The `k` likeliest classes of at least `threshold`, the likeliest first."""
        order = np.argsort(-self.probs, kind="stable")[:k]
        return [(labels()[i], float(self.probs[i])) for i in order if self.probs[i] >= threshold]


class Tagger:
    """A bundle's model, loaded and checked. One instance serves one thread at a time."""

    def __init__(
        self,
        bundle: Bundle | Path | str,
        kind: str | None = None,
        format: str | None = None,
        file: str | None = None,
        threads: int = 1,
        runtime: str | None = None,
    ) -> None:
        """Load the first model file that fits (see `Bundle.file`) and that an installed runtime can run.

        `runtime` is the package to use: onnxruntime, ai-edge-litert, tflite-runtime or tensorflow. Raises InputError
        when no file fits, when no runtime for it is installed (the message names the package to install), or when the
        file does not match bundle.json.
        """
        self._threads, self._runtime = threads, runtime
        self.bundle = bundle if isinstance(bundle, Bundle) else read_bundle(Path(bundle))
        self.file, self.backend = _load(self.bundle, self.bundle.fitting(file, kind, format), threads, runtime)
        self.path = self.bundle.path(self.file)
        self._steps = _input_steps(self.bundle, self.backend, self.path)
        _check_labels(self.backend, self.path)

    def copy(self) -> Tagger:
        """Load the same model file once more, for another thread."""
        return Tagger(self.bundle, None, None, self.file.name, self._threads, self._runtime)

    @property
    def rate_hz(self) -> int:
        """Of the samples that the model hears."""
        return self.bundle.spec.frontend.rate_hz

    def predict_window(self, wave: Float32, mels: StreamMel | None = None, start: int = 0) -> Float32:
        """One window (samples,), not longer than the bundle's -> probabilities (n_classes,).

        A window shorter than the only one that a model file takes is repeated to fill it; zeros would cost accuracy.
        Else zeros fill up to one patch. With `mels`, the window is that of a stream from sample `start` on.
        Raises CedEdgeError when the answer is none.
        """
        if not 0 < len(wave) <= self.bundle.window_samples:
            raise ValueError(f"a window holds 1 to {self.bundle.window_samples} samples, not {len(wave)}")
        spec, x = self.bundle.spec, wave
        if self._steps > 0 and len(wave) != self.bundle.window_samples:
            x = np.resize(wave, self.bundle.window_samples)
        elif len(wave) < spec.min_samples:
            x = np.pad(wave, (0, spec.min_samples - len(wave)))
        if self.bundle.input == "mel":
            shared = mels is not None and x is wave
            x = mels.log_mel(x, start) if mels is not None and shared else log_mel(x, spec.frontend)
        (probs, *_) = self.backend.run(np.ascontiguousarray(x[None]))
        if probs.shape != (1, spec.n_classes) or not np.isfinite(probs).all():
            raise CedEdgeError(f"{self.path} gave no {spec.n_classes} probabilities: it is broken, export it again")
        return np.asarray(probs[0], np.float32)

    def tag(
        self, samples: ArrayLike, rate_hz: int | None = None, window_s: float | None = None, hop_s: float | None = None
    ) -> list[Tags]:
        """Audio (n,) or (n, channels) of any length -> what each window holds: a stream fed once."""
        stream = StreamingTagger(self, window_s, hop_s)
        return list(tag_stream(stream, [(samples, rate_hz)]))

    def predict(self, samples: ArrayLike, rate_hz: int | None = None) -> Float32:
        """Audio of any length -> probabilities (n_classes,) of all of it. Raises InputError where there is none."""
        return mean_probs(self.tag(samples, rate_hz))


class StreamingTagger:
    """Windows over audio that comes in pieces: `accept` them, and `pop` while it is `ready`; at the end `finish`.

    How the audio is cut changes no bit of the answers. Kept are the samples of windows not popped yet, and one more.
    """

    def __init__(self, tagger: Tagger, window_s: float | None = None, hop_s: float | None = None) -> None:
        """Windows of `window_s` (default: the bundle's) every `hop_s` (default: one after the other).

        Raises InputError when they do not fit the bundle, or would leave samples out.
        """
        self.tagger = tagger
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

    def reset(self) -> None:
        """Begin a new stream, at index 0 and any rate."""
        self._intake = Intake(self.tagger.rate_hz)
        self._mels = StreamMel(self.tagger.bundle.spec.frontend)
        self._next = 0

    def accept(self, samples: ArrayLike, rate_hz: int | None = None) -> None:
        """Take the next piece, see `Intake.accept`. Raises InputError, and has taken nothing, when it is no use."""
        self._intake.accept(samples, rate_hz)

    def finish(self) -> None:
        """No more audio will come: the tail becomes a window."""
        self._intake.finish()

    def ready(self) -> int:
        """How many windows can be popped."""
        count = n_windows if self._intake.finished else n_full
        return count(self._intake.samples, self.window, self.hop) - self._next

    def pop(self) -> Tags:
        """Hear the next window. Raises InputError when none is ready."""
        start, stop = self._advance()
        probs = self.tagger.predict_window(self._intake.view(start, stop), self._mels, start)
        self._intake.drop(self._next * self.hop)
        return Tags(*times_s((start, stop), self.tagger.rate_hz), probs)

    def skip(self) -> None:
        """Let the next window go by unheard, as a machine must that is too slow. Raises InputError as `pop` does."""
        self._advance()
        self._intake.drop(self._next * self.hop)

    def _advance(self) -> tuple[int, int]:
        if not self.ready():
            raise InputError("no window is ready: accept() more samples, or finish() the stream")
        self._next += 1
        return span(self._next - 1, self._intake.samples, self.window, self.hop)


def tag_stream(stream: StreamingTagger, pieces: Iterable[tuple[ArrayLike, int | None]]) -> Iterator[Tags]:
    """All windows of pieces of (samples, rate), each as soon as it is full."""
    for samples, rate_hz in pieces:
        stream.accept(samples, rate_hz)
        while stream.ready():
            yield stream.pop()
    stream.finish()
    while stream.ready():
        yield stream.pop()


def mean_probs(tags: Sequence[Tags]) -> Float32:
    """Probabilities (n_classes,) over windows, each counting by the seconds it holds. Raises InputError without any."""
    if not tags:
        raise InputError("no samples to hear")
    seconds = [t.end_s - t.start_s for t in tags]
    return np.average([t.probs for t in tags], axis=0, weights=seconds).astype(np.float32)


def _samples(name: str, seconds: float, rate_hz: int) -> int:
    if not 0 < seconds < float("inf"):
        raise InputError(f"a {name} of {seconds:g} s: give seconds above 0")
    return round(seconds * rate_hz)


def _load(bundle: Bundle, files: Sequence[ModelFile], threads: int, runtime: str | None) -> tuple[ModelFile, Backend]:
    """The first file whose runtime is installed, with its backend. With `runtime`, the first that this package runs."""
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
    """Check the file's ports against the manifest; the steps in time of its only input, -1 where they are free."""
    spec, mel = bundle.spec, bundle.input == "mel"
    want_in = (-1, spec.frontend.n_mels, bundle.window_frames) if mel else (-1, bundle.window_samples)
    want_out = (-1, spec.n_classes)
    for what, ports, name, shape in (
        ("input", backend.inputs, bundle.input, want_in),
        ("output", backend.outputs, bundle.output, want_out),
    ):
        if len(ports) != 1 or not _agrees(ports[0], name, shape, any_name=path.suffix == ".tflite"):
            found = ", ".join(f"{p.name} {p.shape} {p.dtype}" for p in ports)
            raise InputError(
                f"{path} is not what its manifest says: its {what} is {found}, not {name} {shape} float32; "
                "export the bundle again"
            )
    return backend.inputs[0].shape[-1]


def _check_labels(backend: Backend, path: Path) -> None:
    """What other programs read from the file must be the names of its outputs."""
    told = backend.metadata.get("labels")
    with contextlib.suppress(ValueError):
        if told is None or json.loads(told) == [label.name for label in labels()]:
            return
    raise InputError(f"{path} carries other labels than the bundle, or another order of them: export the bundle again")


def _agrees(port: Port, name: str, shape: tuple[int, ...], any_name: bool) -> bool:
    """Whether a port has these sizes, free ones aside. A batch may be fixed at 1. TFLite's names are its own."""
    if port.dtype != "float32" or len(port.shape) != len(shape) or not (any_name or port.name == name):
        return False
    return port.shape[0] in (-1, 1) and all(a in (-1, b) for a, b in zip(port.shape[1:], shape[1:], strict=True))
