"""The start of a benchmark: an error that the user can fix is one line, not a traceback."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ced_edge.errors import CedEdgeError


def run(main: click.Command) -> None:
    """Run the command line of a benchmark. On a CedEdgeError, print its text and exit with its code."""
    try:
        main()
    except CedEdgeError as e:
        click.echo(f"{Path(sys.argv[0]).stem}: {e}", err=True)
        sys.exit(e.exit_code)
