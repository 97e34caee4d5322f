"""Read recordings of phones, and the sound of videos, with FFmpeg. Needs PyAV.

**The rule of time.** A sample is where the timestamps of the file put it. Second 0 is where the first track of the file
begins, which may be the picture. So a track that starts late begins with silence, and a gap between packets is silence
of its length; a notice reports it. Steps of less than 0.1 s are rounding, and no gap. Timestamps that go back, or
overlap, do not lose sound: it follows without a gap. If they go back by more than 10 s, a new clock begins. In MPEG
streams, which are often joined, it also begins after a step forward of more than 10 s. More than 2 hours of silence
mean broken timestamps, and are an error. A part of a file is the same samples as in the whole file.

An encoder puts some silence before the first sample. FFmpeg removes it if the file gives its length (mp4 and webm do,
.aac and .amr do not).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ced_edge.arrays import Float32
from ced_edge.audio.base import MAX_RATE_HZ, MEDIA_SUFFIXES, MIN_RATE_HZ, AudioError
from ced_edge.audio.joined import passed_over
from ced_edge.audio.mix import with_channels

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream


_DEMUXERS = "aac,ac3,aiff,amr,ape,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpc,mpc8,mpeg,mpegts,ogg,tta,w64,wav,wv"
"""The only formats that FFmpeg may open. Others are unsafe: a playlist makes FFmpeg open other files and URLs."""
_SOUGHT = ("mov", "matroska", "asf")
"""Formats with reliable timestamps. Other formats are decoded from the start to reach a part."""
_PREROLL_S = 1.0
"""Decoded before a part, and dropped: after a seek, a codec needs some frames until its output is right again."""
_SLACK_S = 0.5
"""A file that ends earlier than its header says, by more than this, is damaged."""
_BLOCK_FRAMES = 1 << 16
_CLOCKED = (*_SOUGHT, "mpegts", "mpeg", "flv", "ogg")
"""Formats whose timestamps come from the file. FFmpeg counts samples in the others."""
_RESTARTING = ("mpegts", "mpeg")
_TOLERANCE_S = 0.1
_RESTART_S = 10.0
_MAX_SILENCE_S = 7_200.0
_MAX_TIMELINES = 1_024

log = logging.getLogger(__name__)


class _Clock:
    """Finds the gaps between frames or packets, from their timestamps."""

    def __init__(self, name: str, restarts: bool) -> None:
        """`restarts`: a large step forward begins a new clock."""
        self._name, self._restarts = name, restarts
        self._shift_s = self._silent_s = 0.0
        self._is_first = True

    def gap(self, time_s: float | None, end_s: float) -> float:
        """Seconds of silence between `end_s` and a frame with the timestamp `time_s`. Raises AudioError."""
        if time_s is None:
            return 0.0
        step_s = time_s + self._shift_s - end_s
        is_first, self._is_first = self._is_first, False
        if not is_first and (step_s < -_RESTART_S or (self._restarts and step_s > _RESTART_S)):
            self._shift_s -= step_s
            return 0.0
        if step_s <= _TOLERANCE_S:
            return 0.0
        self._silent_s += step_s
        if self._silent_s > _MAX_SILENCE_S:
            raise AudioError(
                self._name, f"broken timestamps: they jump by {step_s:,.0f} s at {end_s:.3f} s, encode it again"
            )
        return step_s


@dataclass(frozen=True)
class _Timeline:
    """What the packets of a track say."""

    end_s: float
    is_even: bool
    """Whether each packet begins where the one before it ends."""


_timelines: dict[tuple[int, ...], _Timeline] = {}
"""By device, number, size and time of the file."""


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
    try:
        media = Media(name, file)
    except av.FFmpegError as e:
        file.seek(4)
        is_mp4 = file.read(4) == b"ftyp"  # its index is at the end, and missing in a file that was cut short
        raise AudioError(name, "truncated or damaged" if is_mp4 else "not audio") from e
    with contextlib.closing(media):
        try:
            yield media
        except (av.FFmpegError, IndexError) as e:  # IndexError: a track that appears after the header
            raise AudioError(name, "truncated or damaged" if media.decoded else "not audio") from e


class Media:
    """An audio track in an open file. It can be read once."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        """Raises AudioError when no audio track can be decoded."""
        self._name, self._file = name, file
        self.decoded = False
        """Whether any samples were decoded so far."""
        self.is_bounded = False
        """Decoders of lossy formats, and floats, go beyond 1.0."""
        self._reported = False
        self._open()

    def _open(self) -> None:
        """Open the file at its beginning."""
        import av

        self._file.seek(0)
        self._container = av.open(self._file, "r", metadata_errors="replace", options={"format_whitelist": _DEMUXERS})
        stream: Any = self._container.streams.best("audio")
        if stream is None:
            raise AudioError(self._name, "no sound in it")
        if stream.codec_context is None:
            raise AudioError(self._name, "no decoder for its codec, encode it again")
        self.rate_hz = int(stream.codec_context.sample_rate)
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ or not stream.codec_context.channels:
            raise AudioError(self._name, "bad sample rate or channel count")
        self._stream: AudioStream = stream
        self._format = self._container.format.name.split(",")[0]
        start = self._container.start_time
        self._zero_s = start / 1e6 if start is not None else float((stream.start_time or 0) * (stream.time_base or 0))
        for other in self._container.streams:
            if other.index != stream.index:
                with contextlib.suppress(AttributeError):  # older versions of PyAV do not have it
                    other.discard = type(other.discard)["all"]  # pictures are not even read

    def close(self) -> None:
        """Close the track. The file stays open."""
        self._container.close()

    def seconds(self, exact: bool = True) -> float:
        """Length in seconds. Raises AudioError.

        Packets do not show it exactly: decoders leave out silence that an encoder has added. So the track is decoded,
        unless the header of mp4 agrees with the packets: the sound is cut there. With `exact` False, the packets do.
        """
        timeline, header_s = self._timeline(), self._header_s()
        if timeline.end_s <= 0:
            raise AudioError(self._name, "no samples")
        agrees = header_s is not None and timeline.end_s - _TOLERANCE_S < header_s <= timeline.end_s
        if timeline.is_even and header_s is not None and agrees and self._format == "mov":
            return round(header_s * self.rate_hz) / self.rate_hz
        if timeline.is_even and not exact:
            return timeline.end_s
        self.close()
        self._open()  # the timeline was read to its end
        self._reported = True
        return sum(map(len, self.blocks())) / self.rate_hz

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float32]:
        """Samples [start, stop) in blocks of (frames, channels). `stop` None is the end. Raises AudioError."""
        if start == 0:
            self._report_joined()
        held: list[Float32] = []
        none = True
        for at, wave in self._waves(start, stop):
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
        """Where the track ends by the header, in seconds on the file's clock. None if the header is not reliable."""
        s = self._stream
        if self._format == "mov" and s.duration and s.time_base is not None:
            # From where the track starts: a small shift of its start is no late start.
            late_s = float((s.start_time or 0) * s.time_base) - self._zero_s
            return float(s.duration * s.time_base) + (late_s if late_s > _TOLERANCE_S else 0.0)
        if self._format in ("matroska", "asf") and len(self._container.streams) == 1 and self._container.duration:
            return float(self._container.duration / 1e6)
        return None

    def _waves(self, start: int, stop: int | None) -> Iterator[tuple[int, Float32]]:
        """(index of the first sample, (frames, channels)) of the frames, from `start` or a little before."""
        header_s = self._header_s()
        at, frames, clock = self._from(start)
        channels = 0
        last: Float32 | None = None  # one frame behind: only the last frame of all may need a cut
        for frame in frames:
            wave = _samples(frame)
            channels = channels or wave.shape[1]
            if frame.sample_rate != self.rate_hz:
                raise AudioError(self._name, "its rate changes midway, encode it again")
            end = at + (0 if last is None else len(last))
            silence = 0 if clock is None else round(clock.gap(self._time_s(frame), end / self.rate_hz) * self.rate_hz)
            if silence and start <= end and (stop is None or end < stop):
                self._report_gap(end, silence)
            if last is not None:
                yield at, last
            at = end
            for first in range(0, silence, _BLOCK_FRAMES):  # in blocks: a timestamp must not allocate memory
                yield at + first, np.zeros((min(_BLOCK_FRAMES, silence - first), channels), np.float32)
            at += silence
            self.decoded = True
            last = with_channels(wave, channels)
        if last is None:
            return
        if header_s is not None and (at + len(last)) / self.rate_hz < header_s - _SLACK_S:
            raise AudioError(self._name, "truncated or damaged")
        # An encoder pads the last frame. Only mp4 says where the sound ended.
        end = round(header_s * self.rate_hz) - at if header_s is not None and self._format == "mov" else len(last)
        yield at, last[:end] if end > 0 else last

    def _report_joined(self) -> None:
        """Warn of further files behind this one, which FFmpeg passes over without notice."""
        if self._reported:
            return
        place = self._file.tell()
        more = passed_over(self._file, self._file.seek(0, io.SEEK_END), self._format)
        self._file.seek(place)
        if more:
            log.warning("%s: holds %d files, one after the other: only the first is used", self._name, more + 1)

    def _report_gap(self, end: int, silence: int) -> None:
        """Report the first gap of what is read."""
        if not self._reported:
            self._reported = True
            times = (end / self.rate_hz, (end + silence) / self.rate_hz)
            log.info("%s: no sound from %.3f s to %.3f s by its timestamps: taken as silence", self._name, *times)

    def _from(self, start: int) -> tuple[int, Iterator[AudioFrame], _Clock | None]:
        """The index of the first sample, and the frames: from a little before `start`, or from the beginning.

        The clock is None where no gap is to be expected: behind a jump in an even track, and without timestamps.
        """
        clock = self._clock()
        before_s, tick_s = start / self.rate_hz - _PREROLL_S, self._stream.time_base
        if before_s <= 0 or self._format not in _SOUGHT or not tick_s:
            return 0, self._frames(), clock
        is_even = self._timeline().is_even
        self.close()
        self._open()  # the timeline was read to its end
        if not is_even:
            return 0, self._frames(), clock
        frames = self._frames()
        first = next(frames, None)
        if first is None or first.pts is None:
            return 0, itertools.chain([first] if first else [], frames), clock
        self._container.seek(first.pts + int(before_s / tick_s), stream=self._stream)
        frames = self._frames()
        next(frames, None)  # after a seek, Opus drops the beginning of its first frame
        frame = next(frames, None)
        if frame is None:
            return 0, iter(()), None
        at = ((self._time_s(frame) or 0.0) - (self._time_s(first) or 0.0)) * self.rate_hz
        # Timestamps may be rounded to milliseconds. All frames have one size, which gives the exact sample.
        whole = first.samples + round((at - first.samples) / frame.samples) * frame.samples
        near = abs(whole - at) < 2 * tick_s * self.rate_hz
        return whole if near else round(at), itertools.chain([frame], frames), None

    def _clock(self) -> _Clock | None:
        return _Clock(self._name, self._format in _RESTARTING) if self._format in _CLOCKED else None

    def _timeline(self) -> _Timeline:
        """Where the track ends, from all its packets. It is kept for the next part of the file."""
        key = None
        with contextlib.suppress(OSError):  # a file in memory has no number
            info = os.fstat(self._file.fileno())
            key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        if key is None or (found := _timelines.get(key)) is None:
            found = self._read_timeline()
            if key is not None:
                if len(_timelines) >= _MAX_TIMELINES:
                    _timelines.clear()
                _timelines[key] = found
        return found

    def _read_timeline(self) -> _Timeline:
        s, clock = self._stream, self._clock()
        tick_s = float(s.time_base or 0)
        frame_s = (s.codec_context.frame_size or 0) / self.rate_hz
        is_mov, durations = self._format == "mov", set[int | None]()
        end_s, is_even, is_first = 0.0, True, True
        for packet in self._container.demux(s):
            if not packet.size:
                continue
            # The size of a frame is exact where durations are rounded. In mp4 they are exact, but hold the gap that
            # follows: they may not differ in an even track, but for the last one.
            length_s = (packet.duration or 0) * tick_s if is_mov or not frame_s else frame_s
            if is_mov:
                is_even &= len(durations) < 2
                durations.add(packet.duration)
            if clock is not None and packet.pts is not None:
                time_s = packet.pts * tick_s - self._zero_s
                if is_first and time_s <= _TOLERANCE_S:
                    end_s = time_s  # before 0, if the encoder puts silence first
                gap_s = clock.gap(time_s, end_s)
                is_even &= not gap_s and abs(time_s - end_s) <= 2 * tick_s
                end_s += gap_s
            end_s += length_s
            is_first = False
        return _Timeline(end_s, is_even)

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

    def _time_s(self, frame: AudioFrame) -> float | None:
        """Start of the frame on the file's clock, in seconds; None without a timestamp."""
        if frame.pts is None or frame.time_base is None:
            return None
        return float(frame.pts * frame.time_base) - self._zero_s


def _as_doubles(frame: AudioFrame) -> AudioFrame:
    import av

    return av.AudioResampler(format="dbl").resample(frame)[0]


def _samples(frame: AudioFrame) -> Float32:
    """A decoded frame of any sample type -> (frames, channels) float32."""
    if frame.format.name in ("s64", "s64p"):  # PyAV has no array type for it
        frame = _as_doubles(frame)
    raw: NDArray[Any] = frame.to_ndarray()
    wave = raw.T if frame.format.is_planar else raw.reshape(-1, len(frame.layout.channels))
    if wave.dtype.kind == "u":
        return wave.astype(np.float32) / np.float32(128) - np.float32(1)
    if wave.dtype.kind == "i":
        return (wave / 2.0 ** (8 * wave.itemsize - 1)).astype(np.float32)
    return wave.astype(np.float32)
