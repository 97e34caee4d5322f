"""Known public teachers: their source, licence and published accuracy. Needs no torch."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ced_edge.errors import CedEdgeError, InputError
from ced_edge.files import atomic_path, sha256_file

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes so far, and with the total if the server gives it."""

TIMEOUT_S = 30
BLOCK_BYTES = 1 << 18
EFFICIENTAT = "https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/"
YAMNET_CLASS_MAP = (
    "https://raw.githubusercontent.com/tensorflow/models/master/research/audioset/yamnet/yamnet_class_map.csv"
)
YAMNET_CLASS_MAP_SHA256 = "cdf24d193e196d9e95912a2667051ae203e92a2ba09449218ccb40ef787c6df2"


@dataclass(frozen=True)
class KnownTeacher:
    """One public teacher."""

    name: str
    what: str
    url: str
    """A file, or the page of a model on the Hugging Face hub."""
    licence: str
    mean_ap: float | None
    """Published mAP on AudioSet's evaluation set, in percent."""
    sha256: str | None = None
    """Hash of the file. None: no hash was checked here, so `fetch` needs one from the user."""
    class_map: bool = False
    """Whether it needs YAMNet's class map beside it."""

    @property
    def hub_id(self) -> str | None:
        """Its id on the Hugging Face hub, if it is there. `--teacher ID` downloads it."""
        match = re.fullmatch(r"https://huggingface\.co/([^/]+/[^/]+)", self.url)
        return match[1] if match else None

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[1]


def _mobilenet(name: str, mean_ap: float, sha256: str | None = None) -> KnownTeacher:
    file = f"{name}_mAP_{round(10 * mean_ap)}.pt"
    return KnownTeacher(name, "EfficientAT MobileNetV3, 32 kHz", EFFICIENTAT + file, "MIT", mean_ap, sha256)


def _ced(size: str, mean_ap: float) -> KnownTeacher:
    url = f"https://huggingface.co/mispeech/ced-{size}"
    return KnownTeacher(f"ced-{size}", f"CED {size}, 16 kHz", url, "Apache-2.0", mean_ap)


_KNOWN = (
    _ced("tiny", 48.1),
    _ced("mini", 49.0),
    _ced("small", 49.6),
    _ced("base", 50.0),
    _mobilenet("mn04_as", 43.2, "899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c"),
    _mobilenet("mn05_as", 44.3),
    _mobilenet("mn10_as", 47.1),
    _mobilenet("mn20_as", 47.8),
    _mobilenet("mn30_as", 48.2),
    _mobilenet("mn40_as", 48.4),
    _mobilenet("mn40_as_ext", 48.7),
    KnownTeacher(
        "ast",
        "Audio Spectrogram Transformer, 16 kHz",
        "https://huggingface.co/MIT/ast-finetuned-audioset-10-10-0.4593",
        "BSD-3-Clause",
        45.9,
    ),
    KnownTeacher(
        "yamnet",
        "YAMNet, waveform of 0.975 s at 16 kHz, 521 classes",
        "https://storage.googleapis.com/mediapipe-models/audio_classifier/yamnet/float32/1/yamnet.tflite",
        "Apache-2.0",
        30.6,
        class_map=True,
    ),
    KnownTeacher(
        "yamnet_spectra_in",
        "YAMNet, int8, log-mel patches of 16 kHz audio, 521 classes",
        "https://raw.githubusercontent.com/google-coral/coralmicro/main/models/yamnet_spectra_in.tflite",
        "Apache-2.0",
        30.6,
        "0a266465c46718f3fcc4137366be82882a8c93bfcc4f0278581a11d11dddcdf9",
        class_map=True,
    ),
)


def known_teachers() -> tuple[KnownTeacher, ...]:
    """All known teachers, the best documented kinds first."""
    return _KNOWN


def by_name(name: str) -> KnownTeacher:
    """A known teacher. Raises InputError with all names for an unknown one."""
    for teacher in _KNOWN:
        if teacher.name == name:
            return teacher
    raise InputError(f"unknown teacher {name!r}: choose one of {', '.join(t.name for t in _KNOWN)}")


def fetch(name: str, folder: Path, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """Download a known teacher (and its class map) into `folder` and return the file.

    A file is kept only if it has the hash on record, or, without one, the user's `sha256`. A file that exists with the
    right hash is not downloaded again. Raises InputError for an unknown name, a model of the hub, and when there is no
    hash. Raises CedEdgeError for a fault of the network, and for another hash.
    """
    teacher = by_name(name)
    if teacher.hub_id:
        raise InputError(f"{name} needs no --fetch: --teacher {teacher.hub_id} downloads it from the Hugging Face hub")
    if sha256 and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256}: a hash has 64 hexadecimal digits")
    if sha256 and teacher.sha256 and sha256.lower() != teacher.sha256:
        raise InputError(f"--sha256 is not the hash on record for {name}, {teacher.sha256}: leave it out")
    expected = teacher.sha256 or (sha256 or "").lower()
    if not expected:
        raise InputError(
            f"no hash of {name} is on record: get one from a source you trust and give it as --sha256, "
            f"or download {teacher.url} yourself"
        )
    path = folder / teacher.file
    download(teacher.url, path, expected, progress)
    if teacher.class_map:
        download(YAMNET_CLASS_MAP, folder / f"{path.stem}_class_map.csv", YAMNET_CLASS_MAP_SHA256)
    return path


def download(url: str, path: Path, sha256: str, progress: Progress | None = None) -> None:
    """Download `url` to `path`, atomically. A file with another hash is not kept. Raises CedEdgeError."""
    if path.is_file() and sha256_file(path) == sha256:
        return
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, atomic_path(path) as temporary:
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            digest, done = hashlib.sha256(), 0
            with temporary.open("wb") as f:
                while block := response.read(BLOCK_BYTES):
                    f.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress:
                        progress(done, total)
            if digest.hexdigest() != sha256:
                raise CedEdgeError(f"{url} gave {done} bytes of sha256 {digest.hexdigest()}, not {sha256}: not kept")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as e:
        raise CedEdgeError(f"cannot fetch {url}: {getattr(e, 'reason', e)}") from e
