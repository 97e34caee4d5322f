"""One model file in a child process: its memory is measured alone, a crash is one line, and a cold start is cold.

Parent and child exchange pickles over two anonymous pipes that no other process can open. Only this module writes to
them: what a runtime prints goes to stderr. So no pickle ever comes from a file or from another user. A model file that
takes over the child has the rights of the user already, and gains nothing by a pickle.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ced_edge.arrays import Float32
from ced_edge.errors import CedEdgeError
from ced_edge.proof.targets import Target
from ced_edge.runtime.backends import skip_trials
from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags, mean_probs, tag_stream
from ced_edge.windows import chunks, times_s

if TYPE_CHECKING:
    from ced_edge.proof.profile import Profile


STREAM_WINDOW_S = 2.0
"""Longest window of `stream_difference`, in seconds; the hop is half of it, as in `ced-edge listen`."""


class Worker:
    """A child process that has loaded one model file. A context manager; it dies with its parent.

    `load_s` is the time to load in seconds, `runtime` is the package with its version, and `fixed` says whether the
    file takes windows of one length only. Every method raises the CedEdgeError that the child raised, and one that
    names the file when the child died.
    """

    def __init__(self, target: Target, threads: int = 1) -> None:
        self.target = target
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115  (close() closes it)
        except OSError as e:
            raise CedEdgeError(f"no folder for temporary files ({e.strerror}): set TMPDIR to one") from e
        # `python -c` imports from the current folder first, and a numpy.py may lie there. This package's own folder
        # takes its place.
        root = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path[0] = {root!r}; from ced_edge.proof.worker import serve; serve()"
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        try:
            folder, name = str(target.bundle.folder.resolve()), target.file.name
            self.load_s, self.runtime, self.fixed = self._call("load", folder, name, target.runtime, threads)
        except BaseException:
            self.close()
            raise

    def predict(self, wave: Float32, filled: bool = False) -> Float32:
        """Samples (n,) at the model's rate, any length -> probabilities (n_classes,).

        With `filled`, short windows are repeated up to a full one, as a file with a fixed window needs them.
        """
        return np.asarray(self._call("predict", wave, filled), np.float32)

    def stream_difference(self, wave: Float32, pieces: Sequence[int]) -> float:
        """Largest difference between windows predicted in a stream and the same windows predicted one by one.

        `pieces` are the lengths in samples in which `wave` (n,) arrives; `inf` if the stream's windows differ.
        """
        return float(self._call("stream_difference", wave, list(pieces)))

    def seconds(self, wave: Float32, repeats: int) -> list[float]:
        """Seconds of each of `repeats` calls; one call before them is not counted."""
        return list(self._call("seconds", wave, repeats))

    def profile(self, repeats: int = 20) -> Profile:
        """Time per type of operator, see `ced_edge.proof.profile.profile`. Raises NotInstalled."""
        profile: Profile = self._call("profile", repeats)
        return profile

    def peak_mb(self) -> float | None:
        """Peak memory of the process so far, Python included, in 1e6 bytes; None where it cannot be measured."""
        peak = self._call("peak_mb")
        return None if peak is None else float(peak)

    def _call(self, method: str, *args: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((method, args), self._process.stdin)
            self._process.stdin.flush()
            result = pickle.load(self._process.stdout)  # see the head of this file: our own child wrote it
        except (OSError, EOFError, pickle.UnpicklingError) as e:
            code = self._process.wait()
            self._log.seek(0)
            last = self._log.read().decode(errors="replace").strip().splitlines()[-1:] or ["it printed nothing"]
            raise CedEdgeError(f"{self.target.name} died (exit code {code}): {last[0]}") from e
        if isinstance(result, CedEdgeError):
            raise result
        return result

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.kill()
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Served:
    """The child's side of `Worker`: one method for each of its methods."""

    tagger: Tagger
    target: Target
    threads: int

    def load(self, folder: str, file: str, runtime: str, threads: int) -> tuple[float, str, bool]:
        skip_trials()  # this process is a trial itself
        began = time.perf_counter()
        # Not the first installed runtime: this process must measure the given one and no other.
        self.tagger = Tagger(folder, file=file, threads=threads, runtime=runtime or None)
        seconds, backend = time.perf_counter() - began, self.tagger.backend
        self.target, self.threads = Target(self.tagger.bundle, self.tagger.file, runtime), threads
        name = backend.runtime
        for package in (runtime, f"{runtime}-cpu"):  # TensorFlow's smaller build has this name
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                name = f"{runtime} {importlib.metadata.version(package)}"
        return seconds, name, backend.inputs[0].shape[-1] > 0

    def predict(self, wave: Float32, filled: bool) -> Float32:
        if not filled:
            return self.tagger.predict(wave)
        window = self.tagger.bundle.window_samples
        spans = chunks(len(wave), window)
        windows = [self.tagger.predict_window(np.resize(wave[start:stop], window)) for start, stop in spans]
        rate_hz = self.tagger.rate_hz
        return mean_probs([Tags(*times_s(span, rate_hz), probs) for span, probs in zip(spans, windows, strict=True)])

    def stream_difference(self, wave: Float32, pieces: list[int]) -> float:
        window_s = min(STREAM_WINDOW_S, self.tagger.bundle.window_s)
        stream = StreamingTagger(self.tagger, window_s, window_s / 2)
        cut = [(piece, None) for piece in np.split(wave, np.cumsum(pieces)) if len(piece)]
        streamed = list(tag_stream(stream, cut))
        spans = chunks(len(wave), stream.window, stream.hop)
        if [(t.start_s, t.end_s) for t in streamed] != [times_s(span, self.tagger.rate_hz) for span in spans]:
            return float("inf")
        alone = [self.tagger.predict_window(wave[start:stop]) for start, stop in spans]
        return max(float(np.abs(t.probs - probs).max()) for t, probs in zip(streamed, alone, strict=True))

    def seconds(self, wave: Float32, repeats: int) -> list[float]:
        self.tagger.predict(wave)
        marks = [time.perf_counter()]
        for _ in range(repeats):
            self.tagger.predict(wave)
            marks.append(time.perf_counter())
        return np.diff(marks).tolist()

    def profile(self, repeats: int) -> Profile:
        from ced_edge.proof.profile import profile  # only needed with --profile

        return profile(self.target, repeats, self.threads)

    def peak_mb(self) -> float | None:
        # Linux's ru_maxrss would count what the parent held when it forked; VmHWM begins anew with exec.
        with contextlib.suppress(OSError):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024 / 1e6
        with contextlib.suppress(ImportError):
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return None


def serve() -> None:
    """Run in the child: read pickled (method, arguments) from stdin until it ends, and write each pickled result."""
    served, requests = _Served(), sys.stdin.buffer
    # Results go to a copy of stdout; stdout itself becomes stderr. C++ code prints there, and would break a pickle.
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)
        while True:
            try:
                method, args = pickle.load(requests)
            except EOFError:
                return
            try:
                result = getattr(served, method)(*args)
            except CedEdgeError as e:
                result = e
            pickle.dump(result, results)
            results.flush()
