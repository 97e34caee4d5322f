"""ced-edge: distil big AudioSet taggers into a small CED student, and run it on devices.

The names below are loaded when they are first used, so that `import ced_edge` itself needs no numpy. docs/api.md shows
each of them with an example.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ced_edge.audio.base import AudioError
    from ced_edge.audio.read import load as load_audio
    from ced_edge.errors import CedEdgeError, InputError
    from ced_edge.runtime.bundle import Bundle, read_bundle
    from ced_edge.runtime.events import Event, EventRule, find_events
    from ced_edge.runtime.tagger import StreamingTagger, Tagger, Tags

__version__ = "0.1.0"

__all__ = [
    "AudioError",
    "Bundle",
    "CedEdgeError",
    "Event",
    "EventRule",
    "InputError",
    "StreamingTagger",
    "Tagger",
    "Tags",
    "__version__",
    "find_events",
    "load_audio",
    "read_bundle",
]

_PLACES = {
    "ced_edge.audio.base": ("AudioError",),
    "ced_edge.audio.read": ("load_audio",),
    "ced_edge.errors": ("CedEdgeError", "InputError"),
    "ced_edge.runtime.bundle": ("Bundle", "read_bundle"),
    "ced_edge.runtime.events": ("Event", "EventRule", "find_events"),
    "ced_edge.runtime.tagger": ("StreamingTagger", "Tagger", "Tags"),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}
_NAME_THERE = {"load_audio": "load"}


def __getattr__(name: str) -> Any:
    """Import a public name from its module (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), _NAME_THERE.get(name, name))
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
