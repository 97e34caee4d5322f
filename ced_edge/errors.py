"""Errors that a user can fix: the command line prints one line and exits with a code, without a traceback."""

from __future__ import annotations


class CedEdgeError(Exception):
    """Something failed during a run. The message names the thing and how to fix it. Exit code 1.

    Its text is always one printable line. Messages quote names from files, and a hostile name could hold commands for
    the terminal.
    """

    exit_code = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(CedEdgeError):
    """A path, an option or the content of a file cannot be used. Exit code 2."""

    exit_code = 2


def printable(text: str) -> str:
    """`text` as one line: line breaks become spaces, other control characters their escape sequences."""
    line = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its class when it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
