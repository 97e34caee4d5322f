"""What every reader of audio shares: suffixes, possible rates, and the error for a file that cannot be used."""

from __future__ import annotations

from ced_edge.errors import InputError

_SNDFILE = ".aif .aifc .aiff .au .bwf .caf .flac .mp2 .mp3 .oga .ogg .opus .rf64 .snd .sph .w64 .wav .wave"


_FFMPEG = (
    ".3g2 .3gp .aac .ac3 .amr .ape .asf .avi .awb .m4a .m4b .m4v .mka .mkv .mov .mp4 .mpeg .mpg .spx .weba .webm"
    " .wma .wmv .wv"
)


MEDIA_SUFFIXES = frozenset(_FFMPEG.split())
"""Suffixes of what libsndfile does not read, and FFmpeg does, in lower case."""


AUDIO_SUFFIXES = MEDIA_SUFFIXES | frozenset(_SNDFILE.split())
"""Suffixes that a folder is searched for, in lower case."""


MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 1_000_000
"""Rates outside this range are broken headers; resampling from them would fill the memory."""


class AudioError(InputError):
    """A file that holds no usable audio. `reason` is one short phrase without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"cannot use {name}: {reason}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[AudioError], tuple[str, str]]:
        return type(self), (self.name, self.reason)
