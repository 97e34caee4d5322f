"""What all readers of audio share: file suffixes, the range of sample rates, and the error for a bad file."""

from __future__ import annotations

from ced_edge.errors import InputError

_SNDFILE = ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .oga .ogg .opus .rf64 .snd .sph .w64 .wav .wave"


_FFMPEG = (
    ".3g2 .3gp .aac .ac3 .amr .ape .asf .avi .awb .flv .m2ts .m4a .m4b .m4v .mka .mkv .mov .mp4 .mpeg .mpg .mts .spx"
    " .ts .tta .weba .webm .wma .wmv .wv"
)


MEDIA_SUFFIXES = frozenset(_FFMPEG.split())
"""Suffixes of formats that only FFmpeg reads, in lower case."""


AUDIO_SUFFIXES = MEDIA_SUFFIXES | frozenset(_SNDFILE.split())
"""Suffixes of all files that count as audio in a folder, in lower case."""


MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 1_000_000
"""A rate outside this range means a broken header. Resampling from it would fill the memory."""


class AudioError(InputError):
    """A file without usable audio. `reason` is a short phrase without the name of the file."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot use {name}: {reason}")
        self.name, self.reason = name, reason

    # Worker processes send the error back by pickle, which would call the class with the whole message only.
    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        return type(self), (self.name, self.reason)
