"""``python -m fastnn COMMAND``: what the package can do from a shell.

Only the chosen command is imported, so that ``info`` answers where the extras of the others are not installed.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

import fastnn

# command: the module with add_arguments(parser) and run(args) -> exit code, and the line of --help
COMMANDS = {
    "info": ("fastnn.__main__", "print version, instruction sets, threads and build"),
    "lecture": ("fastnn.lecture.cli", "run the experiments of the lecture on real data and write a report"),
    "bench": ("fastnn.bench.cli", "measure the kernels against their peers on this machine"),
    "verify": ("fastnn.bench.verify", "check accuracy and reproducibility of this installation"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print what ``fastnn.runtime.info()`` knows, one fact a line."""
    from fastnn import runtime

    facts = dict(runtime.info())
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        print(f"{name:<{width}}  {text}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (2 for a wrong command line, 130 after Ctrl-C, 141 after | head)."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks, µ and ✓, must not end the command
            stream.reconfigure(errors="replace")
    parser = argparse.ArgumentParser(prog="python -m fastnn", description="Fast CPU kernels for neural networks.")
    parser.add_argument("--version", action="version", version=f"fastnn {fastnn.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    action = None
    for name, (module_name, help_line) in COMMANDS.items():
        command = commands.add_parser(name, help=help_line, description=help_line[0].upper() + help_line[1:] + ".")
        if name == chosen:
            action = importlib.import_module(module_name)
            action.add_arguments(command)
    args = parser.parse_args(words)
    assert action is not None  # argparse has left with an error where no command was chosen
    try:
        code = int(action.run(args))
        print(end="", flush=True)
        return code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        reader_left = isinstance(error, BrokenPipeError)
        if not reader_left and error.errno != errno.ENOSPC:
            raise
        # nobody takes what is printed: what is still buffered must not raise once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if reader_left:
            return 141
        print(f"fastnn {args.command}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
