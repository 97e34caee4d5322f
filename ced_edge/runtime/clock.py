"""Times as text: seconds of a stream, and the date and time of day."""

from __future__ import annotations

import datetime


def clock(seconds: float) -> str:
    """Seconds as minutes and hours: 7.5 -> 0:07.5, 3661 -> 1:01:01.0."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def date_time(unix_s: float) -> str:
    """Seconds since 1970 as ISO 8601 with milliseconds, in the time zone of this machine, with its offset."""
    return datetime.datetime.fromtimestamp(unix_s).astimezone().isoformat(timespec="milliseconds")
