"""The command line: a group that imports a subcommand only when it is called."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator

import click

from ced_edge import __version__
from ced_edge.errors import CedEdgeError, printable

COMMANDS = {
    "distill": ("distill.cli:distill", "The main job: pack, teach, train and evaluate, into runs/NAME."),
    "pack": ("distill.cli:pack", "Pack audio files into WebDataset shards of FLAC."),
    "teachers": ("distill.cli:teachers", "List known teachers, and download public ones."),
    "teach": ("distill.cli:teach", "Predict every view of a pack by the teachers, once, into a store."),
    "train": ("distill.cli:train", "Train a student from a pack and a store."),
    "pretrain": ("distill.cli:pretrain", "Pretrain a student on unlabelled audio (masked autoencoder)."),
    "evaluate": ("distill.cli:evaluate", "mAP and per-class AP of a checkpoint; writes the reference."),
    "agreement": ("distill.evaluation.cli:agreement", "Compare a student with its teachers on clips without labels."),
    "export": ("export.cli:export", "Turn a checkpoint into ONNX and TFLite files, also as int8."),
    "android": ("export.cli:android", "Build the Android app around a bundle: an APK."),
    "check": ("ced_edge.proof.cli:check", "Compare a bundle with the reference: was accuracy lost?"),
    "bench": ("ced_edge.proof.cli:bench", "Latency, load time and memory of a bundle on this machine."),
    "info": ("ced_edge.runtime.cli:info", "Show what a bundle holds."),
    "tag": ("ced_edge.runtime.cli:tag", "Tag audio files, with times."),
    "listen": ("ced_edge.runtime.listen_cli:listen", "Tag the microphone, a file or a stream live."),
}
"""Subcommand -> where it is, and its help. The help stands here, so that `ced-edge --help` imports no subcommand."""
PACKAGES = ("ced_edge", "distill", "export")
EXTRAS = {"distill": "train", "export": "export"}
"""Package of a subcommand -> the extra that installs all it needs."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a disk that takes no more bytes. Of stdout they name no file."""


class LazyGroup(click.Group):
    """A group that lists its subcommands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
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


class _Notices(logging.Handler):
    """Prints a log record as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        # click looks up sys.stderr at every call: a progress bar of rich replaces it to print lines above the bar.
        _print(f"{'warning: ' * (record.levelno == logging.WARNING)}{record.getMessage()}")


def _print(text: str) -> None:
    """Print one line on stderr. Notices and the errors of libraries quote names from files too."""
    click.echo(f"ced-edge: {printable(text)}", err=True)


@contextlib.contextmanager
def _print_notices() -> Iterator[None]:
    """Print what our own packages log, from level INFO on, while the block runs."""
    loggers, handler = [logging.getLogger(name) for name in PACKAGES], _Notices()
    # Without any handler on the root, Python prints the warnings of all libraries to stderr.
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(silent)
        for logger in loggers:
            logger.removeHandler(handler)
            logger.setLevel(logging.NOTSET)


def main() -> None:
    """Run the command line. An error is one line on stderr and an exit code: 1 failed, 2 wrong input, 130 stopped."""
    if sys.stdout is None:
        _print("stdout is closed: send it to a file, or to /dev/null")
        sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold any bytes
    # --debug works before and after the subcommand.
    debug, arguments = "--debug" in sys.argv[1:], [arg for arg in sys.argv[1:] if arg != "--debug"]
    try:
        with _print_notices():
            cli.main(arguments, prog_name="ced-edge", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _print("stopped")
        sys.exit(130)
    except BrokenPipeError:
        _drop_stdout()  # the program that read our output has ended
        sys.exit(1)
    except Exception as e:
        if debug:
            traceback.print_exc()
        _print(_message(e, next((arg for arg in arguments if arg in COMMANDS), "")))
        if isinstance(e, OSError) and e.errno in _FULL:
            _drop_stdout()
        sys.exit(e.exit_code if isinstance(e, CedEdgeError | click.ClickException) else 1)


def _drop_stdout() -> None:
    """Discard the output that cannot be written. Else Python would try it again at exit, and print an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: Exception, command: str) -> str:
    """One line that names what is wrong and how to mend it."""
    if isinstance(error, click.ClickException):
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        return " ".join(error.format_message().split()) + (f" ({path} --help)" if path else "")
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing(error.name, command)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, CedEdgeError):
        return " ".join(lines)
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"cannot write the output: {error.strerror}"
    # Of a long text, the first line usually says what failed, and the last one why.
    text = " ... ".join(dict.fromkeys((lines[0], lines[-1])))
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def _missing(module: str, command: str) -> str:
    """How to install a module that could not be found."""
    top = module.partition(".")[0]
    if top in PACKAGES:
        return f"this installation is broken: it lacks {module}; install ced-edge again"
    package, wanted = top.replace("_", "-"), EXTRAS.get(COMMANDS.get(command, ("", ""))[0].partition(".")[0])
    extras = _extras(package) or ([wanted] if wanted else [])
    extra = wanted if wanted in extras else next(iter(extras), None)
    target = f"'ced-edge[{extra}]'" if extra else package
    if module != top and importlib.util.find_spec(top):
        return f"`ced-edge {command}` needs {module}, but the installed {package} lacks it: pip install -U {target}"
    return f"`ced-edge {command}` needs {package}: pip install {target}"


def _extras(package: str) -> list[str]:
    """The extras of ced-edge that install a package, in the order of pyproject.toml."""
    import importlib.metadata

    try:
        lines = importlib.metadata.requires("ced-edge") or []
    except importlib.metadata.PackageNotFoundError:  # it runs from a folder that was never installed
        return []
    # Such as: torch<2.15,>=2.11; extra == "train"
    matches = [re.match(r"""([\w.-]+)[^;]*;.*\bextra == ["']([\w-]+)""", line) for line in lines]
    return [m[2] for m in matches if m and m[1].lower().replace("_", "-") in (package, f"{package}-cpu")]
