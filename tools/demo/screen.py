"""The demo's output: steps, commands to copy, histories, differences.

People at a terminal get colours and a progress bar; a pipe gets the same words as plain lines.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ledgerq.eventlog.events import Acked, Claimed, Enqueued, LeaseExpired, Nacked, Record
from ledgerq.projections.audit import Difference
from ledgerq.tools.console.descriptions import event_name, event_text
from ledgerq.tools.console.output import printable, shorten

__all__ = ["Screen", "difference_row", "history_rows"]

_INDENT: Final = 3
_GAP: Final = "  "
_ERROR_CHARS: Final = 90
_KEY_CHARS: Final = 60
_VALUES_CHARS: Final = 150


class Screen:
    """The output of the demo."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._steps = 0

    def intro(self, lines: Sequence[str]) -> None:
        """Print what the demo is."""
        for line in lines:
            self._print(Text(self._safe(line)), indent=0)

    def step(self, title: str) -> None:
        """Print the heading of the next step."""
        self._steps += 1
        self._print(Text(""), indent=0)
        self._print(Text(f"{self._steps}  {title}", style="bold cyan"), indent=0)

    def say(self, text: str, style: str = "") -> None:
        """Print a sentence or two."""
        self._print(Text(self._safe(text), style=style))

    def good(self, text: str) -> None:
        """Print a result that came out as it should."""
        self.say(text, "green")

    def command(self, text: str) -> None:
        """Print the command that does the same by hand; never folded, so that it can be copied."""
        line = Text(" " * _INDENT + "$ " + self._safe(text), style="dim")
        self._console.print(line, soft_wrap=True)

    def rows(self, rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), style: str = "") -> None:
        """Print columns without lines; the last one may fold."""
        cells = [[self._safe(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        if not self._console.is_terminal:
            for row in cells:
                padded = [
                    cell.rjust(widths[at]) if at in right else cell.ljust(widths[at]) for at, cell in enumerate(row)
                ]
                self._print(Text(_GAP.join(padded).rstrip()))
            return
        table = Table.grid(padding=(0, len(_GAP), 0, 0))
        for at in range(len(widths)):
            is_last = at == len(widths) - 1
            table.add_column(justify="right" if at in right else "left", no_wrap=not is_last, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=style) for cell in row))
        self._console.print(Padding(table, (0, 0, 0, _INDENT)))

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar that is gone at the end; nothing where there is no terminal. Yields `report(done)`."""
        if not self._console.is_terminal:
            yield lambda done: None
            return
        columns = (TextColumn(" " * _INDENT + "{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True) as bar:
            task = bar.add_task(self._safe(label), total=total)
            yield lambda done: bar.update(task, completed=done)

    def _safe(self, text: str) -> str:
        """The text on one line that steers no terminal, in characters that the stream can hold."""
        return printable(text).encode(self._console.encoding, "backslashreplace").decode(self._console.encoding)

    def _print(self, text: Text, indent: int = _INDENT) -> None:
        if self._console.is_terminal:
            self._console.print(Padding(text, (0, 0, 0, indent)))
        else:
            self._console.print(Text(" " * indent) + text if text else text, soft_wrap=True)


def history_rows(records: Sequence[Record]) -> list[list[str]]:
    """A job's events with times relative to the first one."""
    start_ms = records[0].time_ms
    return [[f"+{(r.time_ms - start_ms) / 1000:.3f} s", event_name(r.event), _words(r)] for r in records]


def _words(record: Record) -> str:
    event = record.event
    match event:
        case Enqueued():
            return f"in queue {event.queue!r}, up to {event.max_attempts} attempts"
        case Claimed():
            return f"attempt {event.attempt} by {event.worker}"
        case Nacked():
            error = shorten(event.error.splitlines()[-1], _ERROR_CHARS)
            wait_s = (event.due_ms - record.time_ms) / 1000
            return f"{error}; {f'again in {wait_s:.3f} s' if event.due_ms else f'now {event.to}'}"
        case LeaseExpired():
            return f"{event.reason}: its process is gone; now {event.to}"
        case Acked():
            return "done"
        case _:
            return event_text(event)


def difference_row(difference: Difference) -> list[str]:
    """A difference that an audit found: what is wrong, the range, the key, and both values where both are there."""
    expected, found = difference.expected, difference.found
    head = [difference.range_name, shorten(difference.key, _KEY_CHARS)]
    if found is None:
        return ["missing", *head]
    if expected is None:
        return ["surplus", *head]
    values = f"{shorten(found, _VALUES_CHARS)}, but by the log {shorten(expected, _VALUES_CHARS)}"
    return ["altered", head[0], f"{head[1]}: {values}"]
