"""Opening stores for commands: for reading beside a live writer, or for writing once there is none.

An operator who cancels a job must not stop a service by that: where the store's writer shares it, that does what a
command asks for. One that does not is taken over only with --take-over, and --wait gives it time to end.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogCorrupt, LogPoisoned, RowUnreadable
from ledgerq.tools.console.output import local_time

if TYPE_CHECKING:
    from pathlib import Path

    from ledgerq.eventlog.log import LogReader
    from ledgerq.eventlog.store import Store
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.remote.remote_queue import RemoteQueue

__all__ = [
    "NOT_IN_USE",
    "Access",
    "ClosedPipe",
    "LastWriter",
    "execute",
    "last_writer",
    "opened_queue",
    "opened_store",
    "reading",
    "refuse_memory",
    "require_queue",
    "without_stderr",
]

_NAMED_QUEUES: Final = 10
# A writer that opens a large store answers once it is ready.
_PATIENCE_S: Final = 15.0


class Access(NamedTuple):
    """The options about a live writer: wait for its end for so many seconds, then fence it if `take_over`."""

    take_over: bool = False
    wait_s: float = 0.0


NOT_IN_USE: Final = Access()
"""The default: refuse at once."""


class ClosedPipe(Exception):
    """The reader of the results has gone."""


def execute(work: Coroutine[Any, Any, int | None]) -> None:
    """Run a command; what it returns is the exit code, None being 0."""
    try:
        code = asyncio.run(work)
    except BrokenPipeError as error:
        raise ClosedPipe from error
    if code:
        raise typer.Exit(code)


def refuse_memory(url: str) -> None:
    """Raise `InvalidArgument` for a URL that names no store, or none that outlives a process."""
    from ledgerq.eventlog.locations import parse_location

    if parse_location(url).is_memory:
        raise InvalidArgument(
            f"{url}: a store in memory ends with its process, so there is none to open: give a folder or a bucket"
        )


async def _check_quietly(url: str, *, writing: bool) -> None:
    """Read the manifest before the store is opened: of a damaged one SlateDB prints a panic before our error."""
    from ledgerq.eventlog.files.file_checks import check_files
    from ledgerq.eventlog.files.odd_files import refuse_odd_files
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.eventlog.slate.preflight import PREFLIGHT_LIMIT_S, check_clock

    location = parse_location(url)
    if location.is_file:
        check_clock(location, writing=False)
        # What can't be read is reported by the opening itself; damaged payloads prevent no opening.
        with suppress(OSError, RowUnreadable), without_stderr():
            async with asyncio.timeout(PREFLIGHT_LIMIT_S):
                await asyncio.to_thread(refuse_odd_files, location, writing=writing)
                await check_files(location, writing=writing)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Silence stderr, also for native code: for a moment in which only this coroutine runs."""
    kept_fd, null_fd = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_fd, 2)
        yield
    finally:
        os.dup2(kept_fd, 2)
        os.close(kept_fd)
        os.close(null_fd)


@asynccontextmanager
async def reading(url: str, *, pinned: bool = True, may_be_damaged: bool = False) -> AsyncIterator["LogReader"]:
    """The log of the store at `url`, opened read-only: at one commit when `pinned`, else following its writer.

    Its format is known to be one of ours, unless it `may_be_damaged` and can't be read.
    """
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.stores import open_log

    refuse_memory(url)
    await _check_quietly(url, writing=False)
    with LogCorrupt.locating(url):
        log = await open_log(url, clock=SystemClock(), pinned=pinned, may_be_damaged=may_be_damaged)
        try:
            yield log
        finally:
            await log.store.close()


def require_queue(url: str, queue: str, known: Sequence[str]) -> None:
    """Raise `InvalidArgument` for a queue that never had an event: most likely its name is mistyped."""
    if queue not in known:
        names = ", ".join(known[:_NAMED_QUEUES]) or "none yet"
        more = ", ..." if len(known) > _NAMED_QUEUES else ""
        raise InvalidArgument(f"there is no queue {queue!r} in {url}; its queues: {names}{more}")


class LastWriter(NamedTuple):
    """The last writer of the store, by its own name (host:process), and whether it has closed since."""

    name: str
    opened_ms: int
    is_closed: bool

    def describe(self) -> str:
        """One line about it."""
        when = f"{self.name}, opened {local_time(self.opened_ms)}"
        return f"{when}, closed" if self.is_closed else f"{when}, not closed"


async def last_writer(log: "LogReader") -> LastWriter | None:
    """The last writer by the events at the log's end; None for an empty log."""
    from ledgerq.eventlog.events import Rebuilt, WriterClosed, WriterOpened

    head = await log.head()
    last = await log.batch_at(head.base_offset) if head.next_offset else None
    if last is None:
        return None
    # A clean end is always the writer's last event. A rebuild stages nothing after its one event.
    is_closed = isinstance(last.events[-1], WriterClosed | Rebuilt)
    low, high = 0, last.base_offset
    while low < high:
        batch = await log.batch_at((low + high) // 2)
        if batch is None or batch.epoch < last.epoch:
            low = (low + high) // 2 + 1 if batch is None else batch.next_offset
        else:
            high = batch.base_offset
    first = await log.batch_at(low) or last
    names = [event.writer for event in first.events if isinstance(event, WriterOpened)]
    return LastWriter(names[0] if names else "a rebuild", first.time_ms, is_closed)


@asynccontextmanager
async def opened_store(
    url: str, access: Access, *, create: bool = False, share: bool = False
) -> AsyncIterator["Store"]:
    """The store at `url` opened for writing. Raises `StoreInUse` for one whose writer lives, unless that is fenced.

    `share`: it is served to other processes of this machine.
    """
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.stores import open_store

    refuse_memory(url)
    quietly: AbstractContextManager[None] = nullcontext()
    try:
        await _check_quietly(url, writing=True)
    except LogPoisoned:
        # Opening sets such files aside, or refuses: the error is the same then.
        quietly = without_stderr()
    with quietly:
        store = await open_store(
            url, clock=SystemClock(), create=create, take_over=access.take_over, wait=access.wait_s, share=share
        )
    # Where stderr was left alone, the log record has reported it.
    for folder, names in [] if isinstance(quietly, nullcontext) else await store.set_aside():
        typer.echo(
            f"{url}: {len(names)} files kept it from being opened and are in {folder} now; none is needed", err=True
        )
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_queue(
    url: str, access: Access, *, create: bool = False, accept_rollback: bool = False
) -> AsyncIterator["Queue | RemoteQueue"]:
    """The queue of the store at `url`: of the process that shares it, where there is one, else opened for this command.

    See `opened_store`. It is closed at the end, also when that fails.
    """
    from ledgerq.worker.queue import Queue

    async with AsyncExitStack() as ending:
        queue: Queue | RemoteQueue
        if (folder := await _shared_folder(url, access)) is not None:
            queue = await _connected(url, folder)
        else:
            store = await ending.enter_async_context(opened_store(url, access, create=create))
            queue = await Queue.open(url, store=store, accept_rollback=accept_rollback)
        try:
            yield queue
        except BaseException:
            # The first error is the more useful one.
            with suppress(LedgerError):
                await queue.close()
            raise
        await queue.close()


async def _shared_folder(url: str, access: Access) -> "Path | None":
    """The folder of the store, where its writer takes calls of other processes of this machine, and may go on."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.eventlog.single_writer.hold import current_writer

    location = parse_location(url)
    if access.take_over or not location.is_file:
        return None
    writer = await current_writer(location, SystemClock())
    return location.folder if writer is not None and writer.shares else None


async def _connected(url: str, folder: "Path") -> "RemoteQueue":
    try:
        from ledgerq.worker.remote.remote_queue import connect
    except ImportError as error:
        raise InvalidArgument(
            f"another process writes {url}, and a client is needed to have it do this: pip install 'ledgerq[client]'"
        ) from error
    return await connect(f"unix:{folder}", token=None, tasks=None, patience=_PATIENCE_S)
