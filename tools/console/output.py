"""The output of commands: results on stdout as text, tables or JSON, messages and progress on stderr.

Tables and progress bars are for people at a terminal; a pipe gets plain lines. Jobs and events are described in
descriptions.py.
"""

import base64
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal

from ledgerq.eventlog.runtime.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Output",
    "json_bytes",
    "local_time",
    "plural",
    "printable",
    "progress",
    "rich_console",
    "shorten",
    "utc_time",
]

_MAX_ISO_MS: Final = 253_402_300_799_999
_PROSE: Final = ("error", "what", "measured", "what to do", "key", "expected", "found")
_PROSE_CHARS: Final = 20
_GAP_CHARS: Final = 3
_PLAIN_PROGRESS_EVERY_S: Final = 10.0


def plural(count: int, noun: str) -> str:
    """`1 job`, `2 jobs`, `1,000 jobs`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def utc_time(time_ms: int) -> str:
    """ISO 8601 in UTC, for machines; a number that is no time stays one."""
    if not 0 <= time_ms <= _MAX_ISO_MS:
        return f"{time_ms} ms"
    moment = datetime.fromtimestamp(time_ms / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local_time(time_ms: int, timespec: str = "milliseconds") -> str:
    """ISO 8601 in the local time zone, for people; `timespec` as for `datetime.isoformat`."""
    if not 0 <= time_ms <= _MAX_ISO_MS - 86_400_000:
        return f"{time_ms} ms"
    return datetime.fromtimestamp(time_ms / 1000, UTC).astimezone().isoformat(timespec=timespec)


def json_bytes(value: bytes) -> str | dict[str, str]:
    """Bytes for JSON: text when they are UTF-8, else `{"base64": "..."}`."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def shorten(text: str, max_chars: int) -> str:
    """A text on one line; of a long one the end, where a traceback has its error."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= max_chars else "..." + text[3 - max_chars :]


class Output:
    """The output of a command. `as_json` is the user's choice; the rest follows from the terminal."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.is_terminal = sys.stdout.isatty() and not as_json
        # A stream that can't hold every character gets escapes, so that the JSON stays valid.
        self._ascii = "utf" not in (getattr(sys.stdout, "encoding", None) or "").lower()

    def json(self, value: Mapping[str, Any]) -> None:
        """Write one JSON object on a line of its own."""
        print(printable_json(json.dumps(value, ensure_ascii=self._ascii, separators=(",", ":"))))

    def line(self, text: str) -> None:
        """Write one plain line."""
        print(printable(text))

    def flush(self) -> None:
        """Flush what was written, for readers that follow."""
        sys.stdout.flush()

    def facts(self, facts: Sequence[tuple[str, str]]) -> None:
        """Write names and values below each other; further lines of a value stand below its first one."""
        width = max(len(name) for name, _ in facts)
        for name, value in facts:
            for line in value.splitlines() or [""]:
                self.line(f"{name:<{width}}  {line}".rstrip())
                name = ""

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
        """Write rows under headings; the columns named in `right` hold numbers."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
        if self.is_terminal and _fits(columns, widths):
            _rich_table(columns, cells, right)
            return
        for row in (columns, *cells):
            padded = [
                cell.rjust(width) if name in right else cell.ljust(width)
                for cell, width, name in zip(row, widths, columns, strict=True)
            ]
            print("  ".join(padded).rstrip())

    def state(self, text: str, fields: Mapping[str, Any]) -> None:
        """How a service does, at once: a message on stderr, or a JSON object on stdout."""
        if self.as_json:
            self.json(fields)
            self.flush()
        else:
            self.note(text)

    def note(self, text: str) -> None:
        """Write a message beside the results, on stderr."""
        print(f"ledgerq: {printable(text)}", file=sys.stderr)


def _fits(columns: Sequence[str], widths: Sequence[int]) -> bool:
    """Whether nothing but prose must be folded: an id that is cut can't be copied."""
    needed = [
        min(width, _PROSE_CHARS) if name in _PROSE else width for name, width in zip(columns, widths, strict=True)
    ]
    return sum(needed) + _GAP_CHARS * len(needed) <= rich_console().width


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        justify: Literal["right", "left"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, no_wrap=name not in _PROSE, overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    rich_console().print(table)


def rich_console() -> "Console":
    """A rich console on stdout."""
    from rich.console import Console

    return Console()


@contextmanager
def progress(label: str, unit: str = "events", *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr when that is a terminal, else a line now and then; yields `report(done, total)`.

    Nothing at all when `quiet`, for what programs read.
    """
    if quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        yield _plain_progress(label, unit)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        """How many are done in a second, of late."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else f"{task.speed:,.0f} {unit}/s")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _plain_progress(label: str, unit: str) -> Callable[[int, int], None]:
    next_s = time.monotonic() + _PLAIN_PROGRESS_EVERY_S

    def report(done: int, total: int) -> None:
        nonlocal next_s
        now_s = time.monotonic()
        if now_s >= next_s:
            next_s = now_s + _PLAIN_PROGRESS_EVERY_S
            share = f" ({100 * done // total} %)" if total > 0 else ""
            print(f"ledgerq: {label}: {done} of {total} {unit}{share}", file=sys.stderr)

    return report
