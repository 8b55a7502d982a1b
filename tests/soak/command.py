"""The long run: a mixed load with everything that can go wrong in it, restarted every minute, audited, and judged.

    python -m tests.soak --minutes 20 [--url URL] [--rate JOBS_PER_S] [--seed N]

It fails, with a line for each reason and exit code 1, when an audit finds anything, when something that a caller was
promised does not hold, when a process under load complains, or when memory, open files, tasks, threads, the objects of
the store, the backlog or a latency drift upward. The rule that separates drift from noise is in drift.py, the tolerance
of each series in report.py. The load is paced well below what the queue can do, or drift would mean nothing. What grows
on purpose is the log: its share is taken off the store's bytes. Memory is measured with two heaps of the C library
(MALLOC_ARENA_MAX=2), unless the environment says otherwise.

Next: conductor.py (the run), child.py and load.py (the processes under load), oracle.py and
auditor.py (what was promised, and whether it holds).
"""

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.locations import parse_location
from ledgerq.tools.console.opening import refuse_memory
from ledgerq.tools.console.output import printable
from tests.soak.conductor import Conductor, Plan

__all__ = ["main", "soak"]

_USAGE: Final = 2


@contextmanager
def _place(url: str | None) -> Iterator[tuple[Path, str]]:
    """A folder for the run's own files, and the location of its store: in there too, unless a URL is given."""
    folder = Path(tempfile.mkdtemp(prefix="ledgerq-soak-"))
    try:
        if url is None:
            yield folder, (folder / "store").as_uri()
        else:
            refuse_memory(url)
            yield folder, f"{url.rstrip('/')}/soak-{os.getpid()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(plan: Plan, folder: Path) -> int:
    conductor = Conductor(plan, folder, lambda line: print(printable(line) if line[:1] != "\n" else line, flush=True))
    loop = asyncio.get_running_loop()
    # The first Ctrl-C ends the run in good order, with its summary; the second one ends it at once.
    loop.add_signal_handler(signal.SIGINT, _interrupted, conductor, loop)
    return await conductor.run()


def _interrupted(conductor: Conductor, loop: asyncio.AbstractEventLoop) -> None:
    conductor.stopping.set()
    loop.remove_signal_handler(signal.SIGINT)


def soak(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long the load lasts.")],
    url: Annotated[
        str | None,
        typer.Option(help="Folder or bucket below which a new store is made, and stays; default: a temporary folder."),
    ] = None,
    seed: Annotated[int, typer.Option(help="What mixes the load.")] = 1,
    rate: Annotated[float, typer.Option(min=1, help="Jobs enqueued a second.")] = 150.0,
    restart_every: Annotated[float, typer.Option(min=0.5, help="Seconds between restarts.")] = 60.0,
    report_every: Annotated[float, typer.Option(min=0.1, help="Seconds between samples.")] = 10.0,
    max_store_mib: Annotated[int, typer.Option(min=1, help="A larger store ends the run, as a failure.")] = 4096,
) -> None:
    """Put a queue under load for a long time, restart it again and again, and fail when anything breaks or drifts."""
    try:
        if url is not None:
            parse_location(url)
        with _place(url) as (folder, store):
            plan = Plan(store, minutes * 60, rate, seed, restart_every, report_every, max_store_mib)
            code = asyncio.run(_run(plan, folder))
    except InvalidArgument as error:
        print(f"ledgerq: {printable(str(error))}", file=sys.stderr)
        code = _USAGE
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    raise typer.Exit(code)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with these arguments, or those of the process; ends with SystemExit like every program."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(soak)
    app(args=None if arguments is None else list(arguments), prog_name="python -m tests.soak")
