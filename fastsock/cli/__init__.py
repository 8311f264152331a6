"""The ``fastsock`` command: picks the subcommand, and turns what goes wrong into one line.

Each subcommand is a module with ``add_arguments(parser)`` and ``run(args) -> int``, imported
only when it is the one asked for. May import the standard library and its own modules; rich
is imported where it is used, and never for ``--json``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import fastsock
from fastsock.cli.arguments import UsageError

__all__ = ["main"]

DONE, FAILED, USAGE = 0, 1, 2

COMMANDS = {
    "recv": "receive UDP datagrams and report rates, drops, and the loss and delay of a fastsock stream",
    "send": "send a numbered, time-stamped stream of UDP datagrams at a set rate",
    "bench": "measure batched against single calls on this machine",
    "info": "show what this kernel offers and what limits it",
}

EXIT_CODES = """\
exit codes:
  0  done; also after Ctrl-C or SIGTERM, which end with the summary, and when the
     reader of stdout goes away
  1  a system call or the address failed: one line on stderr says which
  2  wrong usage, or an extra that is not installed
  3  recv --fail-on-loss: datagrams were lost or dropped
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. argparse itself exits for --help and usage."""
    argv = sys.argv[1:] if argv is None else list(argv)
    # No option before the subcommand takes a value, so the first plain word names it.
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        parsers = build_parsers(command)
        args = parsers[""].parse_args(argv)
        if not args.json:
            importlib.import_module("rich")
    except ModuleNotFoundError as error:
        return say(missing_extra(error.name or "", command), USAGE)
    try:
        code: int = importlib.import_module(f"fastsock.cli.{command}").run(args)
        sys.stdout.flush()
        return code
    except UsageError as error:
        parsers[args.command].error(str(error))
    except KeyboardInterrupt:
        return DONE
    except BrokenPipeError:
        let_go_of_output()
        return DONE
    except OSError as error:
        return say(error.strerror or str(error), FAILED)
    except MemoryError as error:
        return say(f"not enough memory for {error}", FAILED)


def build_parsers(command: str | None) -> dict[str, argparse.ArgumentParser]:
    """The parser of each subcommand, and "" for the whole; only `command` gets its arguments."""
    parser = argparse.ArgumentParser(
        prog="fastsock",
        description="Batched Linux UDP from the command line.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fastsock {fastsock.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {"": parser}
    for name, text in COMMANDS.items():
        parsers[name] = subparsers.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parsers[name].set_defaults(json=False)
    if command in COMMANDS:
        importlib.import_module(f"fastsock.cli.{command}").add_arguments(parsers[command])
    return parsers


def missing_extra(module: str, command: str | None) -> str:
    if module.partition(".")[0] == "rich":
        return "the fastsock command needs its extra: pip install 'fastsock[cli]'"
    if command == "bench":
        return f"fastsock bench needs {module}: pip install 'fastsock[bench]'"
    return f"fastsock {command} needs {module}, which is not installed"


def say(message: str, code: int) -> int:
    """Print one line of failure; returns `code`."""
    with contextlib.suppress(OSError):
        print(f"fastsock: {message}" if code == FAILED else message, file=sys.stderr, flush=True)
    return code


def let_go_of_output() -> None:
    """Point what nobody reads at /dev/null, so that Python's own last flush stays quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
