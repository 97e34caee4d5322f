"""Read recordings of phones, and the sound of videos, with FFmpeg. Needs PyAV.

An encoder puts some silence before the first sample. FFmpeg removes it if the file gives its length (mp4 and webm do,
.aac and .amr do not).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float32
from ced_edge.audio.base import MAX_RATE_HZ, MEDIA_SUFFIXES, MIN_RATE_HZ, AudioError

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer


_DEMUXERS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,tta,w64,wav,wv"
"""The only formats that FFmpeg may open. Others are unsafe: a playlist makes FFmpeg open other files and URLs."""
_SOUGHT = ("mov", "matroska", "asf")
"""Formats with reliable timestamps. Other formats are decoded from the start to reach a part."""
_PREROLL_S = 1.0
"""Decoded before a part, and dropped: after a seek, a codec needs some frames until its output is right again."""
_SLACK_S = 0.5
"""A file that ends earlier than its header says, by more than this, is damaged."""
_BLOCK_FRAMES = 1 << 16


@contextlib.contextmanager
def opened(name: str, file: BinaryIO, suffix: str) -> Iterator[Media]:
    """The main audio track of an open file. Every failure, also during reading, becomes an AudioError.

    FFmpeg gets the file and not its name: with a colon in it, the name would be a URL.
    """
    try:
        import av
    except ImportError as e:
        reason = "its format needs PyAV: pip install 'ced-edge[av]'"
        raise AudioError(name, reason if suffix.lower() in MEDIA_SUFFIXES else "not audio") from e
    file.seek(0)
    try:
        container = av.open(file, "r", metadata_errors="replace", options={"format_whitelist": _DEMUXERS})
    except av.FFmpegError as e:
        file.seek(4)
        is_mp4 = file.read(4) == b"ftyp"  # its index is at the end, and missing in a file that was cut short
        raise AudioError(name, "truncated or damaged" if is_mp4 else "not audio") from e
    with container:
        media = Media(name, container)
        try:
            yield media
        except (av.FFmpegError, IndexError) as e:  # IndexError: a track that appears after the header
            raise AudioError(name, "truncated or damaged" if media.decoded else "not audio") from e


class Media:
    """An audio track in an open file. It can be read once."""

    def __init__(self, name: str, container: InputContainer) -> None:
        """Raises AudioError when no audio track can be decoded."""
        stream: Any = container.streams.best("audio")
        if stream is None:
            raise AudioError(name, "no sound in it")
        if stream.codec_context is None:
            raise AudioError(name, "no decoder for its codec, encode it again")
        self.rate_hz = int(stream.codec_context.sample_rate)
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ or not stream.codec_context.channels:
            raise AudioError(name, "bad sample rate or channel count")
        self.decoded = False
        """Whether any samples were decoded so far."""
        self._name, self._container = name, container
        self._stream: AudioStream = stream
        self._format = container.format.name.split(",")[0]

    def seconds(self) -> float:
        """Length in seconds: from the header, else the sum over all packets. Raises AudioError."""
        if (header_s := self._header_s()) is not None:
            return header_s
        ticks = sum(packet.duration or 0 for packet in self._container.demux(self._stream))
        if not ticks or self._stream.time_base is None:
            raise AudioError(self._name, "no samples")
        return float(ticks * self._stream.time_base)

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float32]:
        """Samples [start, stop) in blocks of (frames, channels). `stop` None is the end. Raises AudioError."""
        held: list[Float32] = []
        none = True
        for at, wave in self._waves(start):
            if stop is not None and at >= stop:
                break
            part = wave[max(0, start - at) : None if stop is None else stop - at]
            if len(part):
                held.append(part)
                none = False
            if sum(map(len, held)) >= _BLOCK_FRAMES:
                yield np.concatenate(held)
                held = []
        if none:
            raise AudioError(self._name, "no samples")
        if held:
            yield np.concatenate(held)

    def _header_s(self) -> float | None:
        """The length of the track in seconds, if the header is reliable."""
        s = self._stream
        if self._format == "mov":
            return float(s.duration * s.time_base) if s.duration and s.time_base is not None else None
        if self._format in _SOUGHT and len(self._container.streams) == 1 and self._container.duration:
            return float(self._container.duration / 1e6)
        return None

    def _waves(self, start: int) -> Iterator[tuple[int, Float32]]:
        """(index of the first sample, (frames, channels)) of the frames, from `start` or a little before."""
        header_s = self._header_s()
        at, frames = self._from(start)
        last: Float32 | None = None  # one frame behind: only the last frame of all may need a cut
        end_s = 0.0
        for frame in frames:
            if last is not None:
                yield at, last
                at += len(last)
            wave = _samples(frame)
            if frame.sample_rate != self.rate_hz or (last is not None and wave.shape[1] != last.shape[1]):
                raise AudioError(self._name, "its rate or channel count changes midway, encode it again")
            self.decoded = True
            last = wave
            end_s = max(at / self.rate_hz, self._time_s(frame)) + len(wave) / self.rate_hz
        if last is None:
            return
        if header_s is not None and end_s < header_s - _SLACK_S:
            raise AudioError(self._name, "truncated or damaged")
        # An encoder pads the last frame. Only mp4 says where the sound ended.
        end = round(header_s * self.rate_hz) - at if header_s is not None and self._format == "mov" else len(last)
        yield at, last[:end] if end > 0 else last

    def _from(self, start: int) -> tuple[int, Iterator[AudioFrame]]:
        """The index of the first sample, and the frames: from a little before `start`, or from the beginning."""
        frames = self._frames()
        s, before_s = self._stream, start / self.rate_hz - _PREROLL_S
        if before_s <= 0 or self._format not in _SOUGHT or s.time_base is None:
            return 0, frames
        first = next(frames, None)
        if first is None or first.pts is None:
            return 0, itertools.chain([first] if first else [], frames)
        self._container.seek(first.pts + int(before_s / s.time_base), stream=s)
        frames = self._frames()
        next(frames, None)  # after a seek, Opus drops the beginning of its first frame
        frame = next(frames, None)
        if frame is None:
            return 0, iter(())
        at = (self._time_s(frame) - self._time_s(first)) * self.rate_hz
        # Timestamps may be rounded to milliseconds. All frames have one size, which gives the exact sample.
        whole = first.samples + round((at - first.samples) / frame.samples) * frame.samples
        near = abs(whole - at) < 2 * s.time_base * self.rate_hz
        return whole if near else round(at), itertools.chain([frame], frames)

    def _frames(self) -> Iterator[AudioFrame]:
        """Frames from the current position on. A broken end is dropped, because a recording may stop at any point."""
        import av

        broken: av.FFmpegError | None = None
        for packet in self._container.demux(self._stream):
            if broken is not None and packet.size:
                raise broken
            try:
                yield from packet.decode()
            except av.FFmpegError as e:
                broken = e
        if broken is not None and not self.decoded:
            raise broken

    def _time_s(self, frame: AudioFrame) -> float:
        """Start of the frame in seconds from the start of the track, or 0 without timestamps."""
        if frame.pts is None or frame.time_base is None:
            return 0.0
        return float(frame.pts * frame.time_base - (self._stream.start_time or 0) * (self._stream.time_base or 0))


def _samples(frame: AudioFrame) -> Float32:
    """A decoded frame of any sample type -> (frames, channels) float32."""
    raw: NDArray[Any] = frame.to_ndarray()
    wave = raw.T if frame.format.is_planar else raw.reshape(-1, len(frame.layout.channels))
    if wave.dtype.kind == "u":
        return wave.astype(np.float32) / np.float32(128) - np.float32(1)
    if wave.dtype.kind == "i":
        return (wave / 2.0 ** (8 * wave.itemsize - 1)).astype(np.float32)
    return wave.astype(np.float32)
