"""The command line: a group whose subcommands are imported only when they are called."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback

import click

from ced_edge import __version__
from ced_edge.errors import CedEdgeError

COMMANDS = {
    "distill": ("distill.cli:distill", "The main job: pack, teach, train and evaluate, into runs/NAME."),
    "pack": ("distill.cli:pack", "Pack audio files into WebDataset shards of FLAC."),
    "teachers": ("distill.cli:teachers", "List the teachers that are known, and fetch public ones."),
    "teach": ("distill.cli:teach", "Let the teachers answer every view of a pack, once, into a store."),
    "train": ("distill.cli:train", "Train a student from a pack and a store."),
    "pretrain": ("distill.cli:pretrain", "Warm a student up on unlabelled audio (masked autoencoder)."),
    "evaluate": ("distill.cli:evaluate", "mAP and per-class AP of a checkpoint; writes the reference."),
    "export": ("export.cli:export", "Turn a checkpoint into a bundle of ONNX and TFLite files, int8 too."),
    "check": ("ced_edge.proof.cli:check", "Hold a bundle against the reference: was accuracy lost?"),
    "bench": ("ced_edge.proof.cli:bench", "Latency, load time and memory of a bundle on this machine."),
    "info": ("ced_edge.runtime.cli:info", "Show what a bundle holds."),
    "tag": ("ced_edge.runtime.cli:tag", "Tag audio files, with times."),
    "listen": ("ced_edge.runtime.cli:listen", "Tag the microphone, a file or a stream live."),
}
"""Subcommand -> where it is, and the help that needs no import."""


class LazyGroup(click.Group):
    """A group that knows its subcommands by name alone."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as e:
            extra = {"distill": "train", "export": "export"}.get(module.partition(".")[0], "all")
            raise CedEdgeError(f"`ced-edge {cmd_name}` needs {e.name}: pip install '.[{extra}]'") from e
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ced-edge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Distil big audio taggers into a small one that runs on phones and boards."""


def main() -> None:
    """Run the command line; errors the user can mend are one line on stderr and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold any bytes
    # Wherever it stands: nobody looks up on which side of the subcommand it belongs.
    debug = "--debug" in sys.argv[1:]
    try:
        cli.main([arg for arg in sys.argv[1:] if arg != "--debug"], standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(e.exit_code)
    except click.ClickException as e:
        name = e.ctx.command_path if isinstance(e, click.UsageError) and e.ctx else ""
        asked = f" ({name} --help)" if name else ""
        click.echo(f"ced-edge: {' '.join(e.format_message().split())}{asked}", err=True)
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("ced-edge: stopped", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left; nothing more may be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as e:
        if debug:
            traceback.print_exc()
        lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
        if isinstance(e, CedEdgeError):
            click.echo(f"ced-edge: {' '.join(lines)}", err=True)
            sys.exit(e.exit_code)
        if isinstance(e, OSError) and e.filename is not None:
            click.echo(f"ced-edge: cannot use {os.fsdecode(e.filename)}: {e.strerror}", err=True)
            sys.exit(1)
        # Of many lines the first and the last one tell what and why.
        told = " ... ".join(dict.fromkeys((lines[0], lines[-1])))
        click.echo(f"ced-edge: unexpected {type(e).__name__}: {told} (--debug shows where)", err=True)
        sys.exit(1)
