"""The terminal of the commands, with rich where it is installed."""

from __future__ import annotations

from typing import Any


def on_terminal(stream: Any) -> bool:
    """Whether an output stream, None where it was closed before Python began, is a terminal."""
    return stream is not None and stream.isatty()


def console(**options: Any) -> Any:
    """A rich.console.Console that leaves a reader who leaves early to main; rich would exit with 1."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Terminal(**options)
