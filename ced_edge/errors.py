"""The errors a user can mend: one line, an exit code, no traceback."""

from __future__ import annotations


class CedEdgeError(Exception):
    """Something failed while running. The message names the thing and the mend; exit code 1."""

    exit_code = 1


class InputError(CedEdgeError):
    """What the user gave (a path, an option, a file's content) cannot be used; exit code 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class where it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
