"""Queries for what counters don't hold: how long pending jobs wait, what is due next, how far projections are.

Each query is bounded: a few rows of each queue that has pending jobs, within a time limit. The longest waiting job is
sought among the first rows of each priority, for within one priority jobs are in the order in which they were enqueued;
a retried job has waited less long than its position suggests, so a few behind it are read, too.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.index_keys import SCHEDULED, job_key, leading_ms, pending_key, pending_position, pending_prefix
from ledgerq.projections.indexes import decode_job

__all__ = ["Position", "hints", "next_due_ms", "oldest_pending_ms", "projection_offsets"]

Position = tuple[int, int]
"""(priority, offset) in the pending range."""

_ROWS: Final = 8
_PRIORITIES: Final = 8


async def oldest_pending_ms(store: ReadStore, queue: str, start: Position) -> int | None:
    """Since when the longest waiting of the jobs read can be claimed, in ms since the Unix epoch; None: no job.

    `start` is the queue's hint: no pending job stands before it.
    """
    found: int | None = None
    stop = keys.after_prefix(pending_prefix(queue))
    for _ in range(_PRIORITIES):
        rows = await _first_page(store, pending_key(queue, *start), stop, _ROWS)
        if not rows:
            break
        priority = pending_position(rows[0][0])[0]
        ids = [id for key, id in rows if pending_position(key)[0] == priority]
        for value in await store.get_many([job_key(id) for id in ids]):
            job = None if value is None else decode_job(value)
            if job is not None and job.state == "pending" and (found is None or job.since_ms < found):
                found = job.since_ms
        if priority == keys.MAX_PRIORITY or (len(rows) < _ROWS and len(ids) == len(rows)):
            break
        start = pending_position(rows[len(ids)][0]) if len(ids) < len(rows) else (priority + 1, 0)
    return found


async def next_due_ms(store: ReadStore) -> int | None:
    """When the next scheduled job of any queue is due, in ms since the Unix epoch; None when none is scheduled."""
    rows = await _first_page(store, SCHEDULED, keys.after_prefix(SCHEDULED), 1)
    return leading_ms(rows[0][0], SCHEDULED) if rows else None


async def projection_offsets(store: ReadStore) -> dict[str, int]:
    """The offset of each user's projection that ever followed this log."""
    prefix = keys.PROJECTION_PREFIX
    return {
        key[len(prefix) :].decode("utf-8", "replace"): int.from_bytes(value)
        async for rows in store.scan(prefix, keys.after_prefix(prefix))
        for key, value in rows
    }


async def hints(store: ReadStore, queues: Iterable[str]) -> Mapping[str, Position]:
    """The position at which the pending scan of each of these queues may start."""
    wanted = list(queues)
    values = await store.get_many([keys.hint_key(queue) for queue in wanted])
    return {queue: keys.hint_position(value or b"") for queue, value in zip(wanted, values, strict=True)}


async def _first_page(store: ReadStore, start: bytes, stop: bytes, limit: int) -> list[tuple[bytes, bytes]]:
    async for rows in store.scan(start, stop, page_rows=limit):
        return rows
    return []
