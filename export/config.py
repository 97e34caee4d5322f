"""What to export. Needs no torch: the command line refuses wrong flags before it imports the converters."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ced_edge.errors import InputError
from ced_edge.runtime.bundle import FORMATS, INPUTS, KINDS


@dataclass(frozen=True)
class ExportConfig:
    """What to export."""

    formats: tuple[str, ...] = FORMATS
    kinds: tuple[str, ...] = ("fp32", "int8")
    """Files to keep. int8 files are converted from an fp32 file, which is made anyway, and removed if not in here."""
    input: str = "waveform"
    window_s: float = 10.0
    """Longest input of one call, in seconds."""
    per_channel: bool = True
    """Whether int8 weights have a scale per output channel. False: one scale per matrix."""
    calibration: Path | None = None
    """Pack, manifest or folder of sounds to measure ranges on, besides synthetic ones. int8-static needs it."""

    @property
    def needs_ranges(self) -> bool:
        """Whether any of the files has ranges that export measures."""
        return "int8-static" in self.kinds or ("int8" in self.kinds and "tflite" in self.formats)

    def __post_init__(self) -> None:
        problems = []
        for what, values, known in (
            ("format", self.formats, FORMATS),
            ("kind", self.kinds, KINDS),
            ("input", (self.input,), INPUTS),
        ):
            if not values or set(values) - set(known):
                problems.append(f"unknown {what} {','.join(values)!r}: choose from {', '.join(known)}")
        if "int8-static" in self.kinds and self.calibration is None:
            problems.append("int8-static needs sounds to measure ranges on: give --calibration PACK, FOLDER or CSV")
        if problems:
            raise InputError("; ".join(problems))
