"""Stores, as commands open them: for reading beside a live writer, or for writing, which takes the store over.

Whoever opens for writing fences the writer before. An operator who cancels a job must not stop a service by that, so
commands look first whether the last writer closed.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogCorrupt, NotRebuilt, StoreNotFound
from ledgerq.tools.render import local_time

if TYPE_CHECKING:
    from ledgerq.eventlog.log import LogReader
    from ledgerq.eventlog.store import Store
    from ledgerq.worker.queue import Queue

__all__ = [
    "ClosedPipe",
    "LastWriter",
    "execute",
    "last_writer",
    "opened_queue",
    "opened_store",
    "reading",
    "refuse_live_writer",
    "refuse_memory",
    "without_stderr",
]

_PIN_TRIES: Final = 3


class ClosedPipe(Exception):
    """Nobody reads the results any more."""


def execute(work: Coroutine[Any, Any, int | None]) -> None:
    """Run a command; what it returns is the exit code, None being 0."""
    try:
        code = asyncio.run(work)
    except BrokenPipeError as error:
        raise ClosedPipe from error
    if code:
        raise typer.Exit(code)


def refuse_memory(url: str) -> None:
    """Raise `InvalidArgument` for a URL that names no place, or none that outlives a process."""
    from ledgerq.eventlog.locations import parse_location

    if parse_location(url).is_memory:
        raise InvalidArgument(
            f"{url}: a store in memory ends with its process, so there is none to open: give a folder or a bucket"
        )


async def _check_quietly(url: str, *, writing: bool) -> None:
    """Meet a damaged manifest before the store is opened: SlateDB prints a panic on stderr, then comes our own line."""
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.eventlog.odd_files import refuse_odd_files
    from ledgerq.eventlog.preflight import PREFLIGHT_LIMIT_S, check_clock
    from ledgerq.eventlog.slate_files import check_files

    location = parse_location(url)
    if location.is_file:
        check_clock(location, writing=False)
        # What can't be looked at is told by the opening itself.
        with suppress(OSError), without_stderr():
            async with asyncio.timeout(PREFLIGHT_LIMIT_S):
                await asyncio.to_thread(refuse_odd_files, location, writing=writing)
                await check_files(location, writing=writing)


@contextmanager
def without_stderr() -> Iterator[None]:
    """Nothing reaches the terminal, whoever writes: for a moment in which only this coroutine runs."""
    kept_fd, null_fd = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null_fd, 2)
        yield
    finally:
        os.dup2(kept_fd, 2)
        os.close(kept_fd)
        os.close(null_fd)


@asynccontextmanager
async def reading(url: str, *, pinned: bool = True) -> AsyncIterator["LogReader"]:
    """The log of the store at `url`, opened read-only: at one commit when `pinned`, else following its writer."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.errors import StoreUnavailable
    from ledgerq.eventlog.log import LogReader
    from ledgerq.eventlog.stores import open_reader

    refuse_memory(url)
    await _check_quietly(url, writing=False)
    for left in reversed(range(_PIN_TRIES)):
        store = await open_reader(url, pinned=pinned, poll_interval_ms=500)
        log = LogReader(store, clock=SystemClock())
        try:
            await log.require_format()
        except BaseException as error:
            await store.close()
            # Beside a busy writer a view may move on while it is being pinned.
            if left and pinned and isinstance(error, StoreUnavailable):
                continue
            raise
        break
    try:
        yield log
    finally:
        await store.close()


class LastWriter(NamedTuple):
    """Who opened the store last, by its own name (host:process), and whether it has closed since."""

    name: str
    opened_ms: int
    is_closed: bool

    @property
    def seems_gone(self) -> bool:
        """It has not closed, and its process is not seen on this machine, which it named as its own.

        A hint for people, no proof: containers may share a host's name and see other processes.
        """
        host, _, pid = self.name.rpartition(":")
        return not self.is_closed and host == socket.gethostname() and pid.isdigit() and not _is_running(int(pid))

    def describe(self) -> str:
        """One line about it."""
        when = f"{self.name}, opened {local_time(self.opened_ms)}"
        if self.is_closed:
            return f"{when}, closed"
        return f"{when}, not closed" + ("; no such process is seen from here, so it may have crashed" * self.seems_gone)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


async def last_writer(log: "LogReader") -> LastWriter | None:
    """The writer that the log's end tells of; None for an empty log."""
    from ledgerq.eventlog.events import Rebuilt, WriterClosed, WriterOpened

    head = await log.head()
    last = await log.batch_at(head.base_offset) if head.next_offset else None
    if last is None:
        return None
    # A clean end is always the writer's last word. A rebuild has no more to say after its one event.
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


async def refuse_live_writer(url: str, *, create: bool = False, rebuilding: bool = False) -> None:
    """Raise `InvalidArgument` when the store's last writer has not closed, `NotRebuilt` in the midst of a rebuild.

    A store that is not there is for the opener to make when `create`. When `rebuilding`, an interrupted rebuild and a
    damaged log are no reason to refuse: mending them is what the rebuild is for.
    """
    from ledgerq.eventlog import keys

    try:
        async with reading(url) as log:
            if not rebuilding and await log.store.get(keys.REBUILD_KEY) is not None:
                raise NotRebuilt(
                    f"a rebuild of {url} is under way or was interrupted: wait for it, or run rebuild-projections again"
                )
            writer = await last_writer(log)
    except StoreNotFound:
        if not create:
            raise
        return
    except LogCorrupt:
        if not rebuilding:
            raise
        return
    if writer is not None and not writer.is_closed:
        raise InvalidArgument(
            f"{url} seems to be in use, and opening it for writing would stop that writer ({writer.describe()}): "
            "stop it first, or add --take-over"
        )


@asynccontextmanager
async def opened_store(
    url: str, *, take_over: bool, create: bool = False, rebuilding: bool = False
) -> AsyncIterator["Store"]:
    """The store at `url` opened for writing, which fences its writer: refused for a live one unless `take_over`."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.stores import open_store

    refuse_memory(url)
    if not take_over:
        await refuse_live_writer(url, create=create, rebuilding=rebuilding)
    await _check_quietly(url, writing=True)
    store = await open_store(url, clock=SystemClock(), create=create)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def opened_queue(
    url: str, *, take_over: bool, create: bool = False, accept_rollback: bool = False
) -> AsyncIterator["Queue"]:
    """A queue on the store at `url`; see `opened_store`. It is closed at the end, also when that fails."""
    from ledgerq.worker.queue import Queue

    async with opened_store(url, take_over=take_over, create=create) as store:
        queue = await Queue.open(url, store=store, accept_rollback=accept_rollback)
        try:
            yield queue
        except BaseException:
            # The first error says more.
            with suppress(LedgerError):
                await queue.close()
            raise
        await queue.close()
