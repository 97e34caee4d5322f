"""The microphone, through PortAudio (package sounddevice)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ced_edge.audio.sources import PIECE_S, PieceQueue
from ced_edge.errors import CedEdgeError, InputError


class Microphone(PieceQueue):
    """The default microphone, or the one with the given name or number. One channel, at the rate of the device."""

    def __init__(self, device: str | None = None) -> None:
        """Open and start it.

        Raises InputError when sounddevice or PortAudio is not installed, and CedEdgeError when there is no such
        microphone now.
        """
        try:
            import sounddevice
        except ImportError as e:
            raise InputError("the microphone needs sounddevice: pip install 'ced-edge[mic]'") from e
        except OSError as e:  # the package is there, the C library is not
            raise InputError(f"the microphone needs PortAudio ({e}): apt install libportaudio2") from e
        super().__init__()
        self._closing = False
        self.overflows = 0
        """How often samples were lost because they were not read in time."""
        try:
            name = int(device) if device and device.isdecimal() else device
            rate_hz = int(sounddevice.query_devices(name, "input")["default_samplerate"])
            self._rate_hz = rate_hz
            self._stream = sounddevice.InputStream(
                samplerate=rate_hz,
                blocksize=round(PIECE_S * rate_hz),
                device=name,
                channels=1,
                dtype="float32",
                callback=self._arrived,
                finished_callback=self._finished,
            )
            try:
                self._stream.start()
            except BaseException:
                self.close()  # else no program could open the device while this process runs
                raise
        except (sounddevice.PortAudioError, ValueError) as e:
            name_text = f" {device!r}" if device else ""
            # Not an InputError: a supervisor that starts the program again may find the device plugged in.
            raise CedEdgeError(
                f"no microphone{name_text} ({' '.join(str(e).split())}): `python -m sounddevice` lists them"
            ) from e

    def _arrived(self, samples: Any, frames: int, time: Any, status: Any) -> None:
        self.overflows += bool(status.input_overflow)
        if self.full:  # a callback of PortAudio must never wait
            self.overflows += 1
            self.lost(len(samples) / self._rate_hz)
        else:
            self.arrived((np.array(samples, np.float32), self._rate_hz))  # a copy: PortAudio reuses its buffer

    def _finished(self) -> None:
        gone = CedEdgeError("the microphone has gone: plug it in and start again")
        self.end(None if self._closing else gone)

    def close(self) -> None:
        """Stop, and close the device."""
        self._closing = True
        self._stream.close()
