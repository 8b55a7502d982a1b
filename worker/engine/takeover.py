"""The takeover at opening: read the store's state, become its writer, and end the claims that the last one left.

Those of holders in other processes, which go on, are kept.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import NotRebuilt
from ledgerq.eventlog.events import FilesSetAside, Rebuilt, WriterClosed, WriterOpened
from ledgerq.eventlog.runtime.commands import rebuild_command
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.side_records import read_secret
from ledgerq.eventlog.store import Anchor, Row, Store
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.index_keys import CLAIMED
from ledgerq.projections.job import Job
from ledgerq.projections.view import LedgerView
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.job_logging import say_interrupted
from ledgerq.worker.options import QueueOptions

__all__ = ["Opening", "take_over"]

_MAX_NAMES: Final = 100


async def take_over(
    log: EventLog,
    writer_state: WriterState,
    *,
    clock: Clock,
    options_of: Callable[[str], QueueOptions],
    writer: str,
    version: str,
    accept_rollback: bool,
) -> None:
    """Bring `writer_state` to the state of the log, and commit that this writer is the one now.

    A job found claimed belongs to a writer that is gone: its lease ends with the reason `interrupted`, unless the claim
    is kept. Kept claims are in `writer_state.claimed` afterwards, without leases yet.
    """
    store = log.store
    # First of all: an interrupted cut may have left the anchor ahead of the log, which its end puts right.
    if await store.get(keys.REBUILD_KEY) is not None:
        raise NotRebuilt(
            f"a rebuild of {store.location} was interrupted, its indexes are incomplete: "
            f"run {rebuild_command(store.location)} again"
        )
    if 0 < (found := await log.format_version()) < keys.FORMAT_VERSION:
        raise NotRebuilt(
            f"{store.location} has format {found}, and its indexes are to be brought to format {keys.FORMAT_VERSION}: "
            f"run `{rebuild_command(store.location)}` once (the log stays as it is)"
        )
    if found and await read_secret(store) is None:
        raise NotRebuilt(
            f"the secret of {store.location} is missing: run {rebuild_command(store.location)}, which makes a new one; "
            "unique keys of unfinished jobs are not recognised then"
        )
    rolled_back_from = await log.start(accept_rollback=accept_rollback)
    view = LedgerView(log)
    writer_state.counters = dict(await view.counters())
    writer_state.durable_counters = {queue: counters.encode() for queue, counters in writer_state.counters.items()}
    async for rows in _rows_of(store, keys.HINT_PREFIX):
        for key, value in rows:
            # A damaged name is no queue's; its hint is found by the audit.
            writer_state.hints[keys.hint_queue(key, "replace")] = keys.hint_position(value)
    await writer_state.schedules.read(store)
    await writer_state.limits.read(store)
    head = log.durable_head
    await writer_state.host.restore(store)
    anchor = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
    await writer_state.host.catch_up(log, store, anchor)
    found_claimed = await _claimed(writer_state)
    # No holder of a kept claim was in the writer's process: what ended that says nothing of their jobs.
    interrupted = [job for job in found_claimed if not job.kept]
    crashed = decisions.counts_as_crash(len(interrupted), orderly=await _ended_well(log))
    writer_state.claimed = {job.id: job for job in found_claimed}
    moved = await store.set_aside()
    # What tries of the writer before have reported counts for nothing any more.
    reports = [key async for rows in _rows_of(store, keys.PROGRESS_PREFIX) for key, _ in rows]
    writer_state.apply_other(WriterOpened(writer, version, rolled_back_from))
    log.commit().payloads.update(dict.fromkeys(reports))
    for folder, names in moved:
        writer_state.apply_other(FilesSetAside(folder, len(names), tuple(names[:_MAX_NAMES])))
    ended: list[Job] = []
    for job in interrupted:
        if log.full:
            await log.until_not_full()
        options, now_ms = options_of(job.spec.queue), clock.now_ms()
        events = decisions.expire(job, options=options, now_ms=now_ms, reason=decisions.INTERRUPTED, crashed=crashed)
        ended.append(writer_state.apply_ending(job, events))
    await log.committed()
    for folder, _ in moved:
        await store.set_aside_recorded(folder)
    say_interrupted(ended)


def _rows_of(store: Store, prefix: bytes) -> AsyncIterator[list[Row]]:
    return store.scan(prefix, keys.after_prefix(prefix))


async def _ended_well(log: EventLog) -> bool:
    """Whether the writer before closed: that is always its last event. A rebuild, after which it is not known, too."""
    head = log.durable_head
    last = await log.batch_at(head.base_offset) if head.next_offset else None
    return last is None or isinstance(last.events[-1], WriterClosed | Rebuilt)


async def _claimed(writer_state: WriterState) -> list[Job]:
    found: list[Job] = []
    async for rows in _rows_of(writer_state.log.store, CLAIMED):
        jobs = await writer_state.jobs([key[len(CLAIMED) :] for key, _ in rows])
        found += [job for job in jobs if job is not None and job.state == "claimed"]
    return found


class _Closable(Protocol):
    async def close(self) -> None: ...


T = TypeVar("T", bound=_Closable)


class Opening(Generic[T]):
    """The result of `open`: `await` it for the opened object, or use `async with`, which closes that at the end."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        running_loop()
        return self._make().__await__()

    async def __aenter__(self) -> T:
        running_loop()
        self._opened = await self._make()
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()
