"""Tables and progress in the terminal: with rich where it is installed, in plain text elsewhere."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from fastnn import _terminal

HAVE_RICH = importlib.util.find_spec("rich") is not None
_MARKUP = re.compile(r"\[/?[a-z ]+\]")


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], note: str = "") -> None:
    """Print a table. Cells may use rich's [red]...[/red]; without rich they get an exclamation mark."""
    columns, rows = list(columns), [list(row) for row in rows]
    if HAVE_RICH:
        from rich.table import Table

        table = Table(title=title, caption=note or None, title_justify="left", caption_justify="left")
        for position, column in enumerate(columns):
            table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        # As wide as it needs: rich would cut figures off in a narrow terminal, which wraps lines itself.
        needed = _terminal.console(width=1000).measure(table).maximum
        _terminal.console(width=max(needed, _terminal.console().width)).print(table)
        return
    plain = [columns, *[[_plain(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in plain) for i in range(len(columns))]
    print(f"\n{title}")
    for row in plain:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))
    if note:
        print(_plain(note))


def _plain(cell: str) -> str:
    return _MARKUP.sub("", cell.replace("[red]", "!"))


class Progress:
    """A bar with the time left. ``advance(weight)`` counts work, not steps, so that the time left is honest."""

    def __init__(self, description: str, total: float) -> None:
        self._total, self._done, self._start = max(total, 1e-9), 0.0, time.monotonic()
        self._description = description

    def advance(self, amount: float, doing: str = "") -> None:
        raise NotImplementedError

    def _left(self) -> str:
        if self._done <= 0:
            return "?"
        left = (time.monotonic() - self._start) * (self._total / self._done - 1)
        return f"{int(left) // 60}:{int(left) % 60:02d} left"


class _Plain(Progress):
    _shown = -1

    def advance(self, amount: float, doing: str = "") -> None:
        self._done += amount
        percent = min(100, int(100 * self._done / self._total))
        tty = _terminal.on_terminal(sys.stderr)
        if sys.stderr and (percent != self._shown if tty else percent // 10 > self._shown // 10):
            self._shown = percent
            text = f"{self._description} {percent:3d} %  {self._left():>10}  {doing}"
            print(f"\r{text:<100.100}" if tty else text, end="" if tty else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        if _terminal.on_terminal(sys.stderr):
            print(file=sys.stderr)


@contextmanager
def progress(description: str, total: float) -> Iterator[Progress]:
    """A progress bar on stderr for ``total`` units of work."""
    if not (HAVE_RICH and _terminal.on_terminal(sys.stderr)):
        plain = _Plain(description, total)
        try:
            yield plain
        finally:
            plain.close()
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.fields[doing]}"), console=_terminal.console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, doing="")

        class Rich(Progress):
            def advance(self, amount: float, doing: str = "") -> None:
                bar.update(task, advance=amount, doing=doing)

        yield Rich(description, total)
