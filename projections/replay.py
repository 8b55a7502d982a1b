"""Replay: the log folded again, to the state at any offset or time, or transition by transition."""

import asyncio
from collections.abc import AsyncIterator
from itertools import islice

from ledgerq.eventlog.codec import Head, RecordBatch
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt
from ledgerq.eventlog.log import Chain, LogReader, Progress, Verified
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.runner import ProjectionHost

__all__ = ["fold_to", "fold_verified", "replay"]


async def replay(log: LogReader, start: int = 0, stop: int | None = None) -> AsyncIterator[Transition]:
    """The transitions with `start <= offset < stop`; what came before `start` is folded without being yielded."""
    fold = Fold()
    async for batch in _gapless(log, stop):
        for offset, event, distance in batch.steps():
            if stop is not None and offset >= stop:
                return
            transition = fold.apply(offset, batch.time_ms, event, distance)
            if offset >= start:
                yield transition


async def fold_to(
    log: LogReader, *, offset: int | None = None, time_ms: int | None = None, progress: Progress | None = None
) -> Fold:
    """All jobs and counters as of the log's end, or after the events below `offset`, or with commit times to `time_ms`.

    Raises `InvalidArgument` when both are given or the offset lies beyond the log's end.
    """
    if offset is not None and time_ms is not None:
        raise InvalidArgument("give an offset or a time, not both")
    end = await log.end()
    if time_ms is not None:
        offset = await log.offset_at_time(time_ms)
    stop = end if offset is None else offset
    if not 0 <= stop <= end:
        raise InvalidArgument(f"offset {stop} is not in the log, which holds 0 to {end - 1}: give 0 to {end}")
    fold = Fold()
    if stop == 0:
        return fold
    async for batch in _gapless(log, stop):
        if batch.next_offset <= stop:
            fold.apply_batch(batch)
        else:
            for at, event, distance in islice(batch.steps(), stop - batch.base_offset):
                fold.apply(at, batch.time_ms, event, distance)
        if progress is not None:
            progress(fold.next_offset, stop)
        await asyncio.sleep(0)
    if fold.next_offset < stop:
        raise LogCorrupt(fold.next_offset, "a record batch is missing")
    return fold


async def _gapless(log: LogReader, stop: int | None) -> AsyncIterator[RecordBatch]:
    """The batches from the first one on, without a gap: digests aren't verified here, but a gap would go unnoticed."""
    at = 0
    async for batch in log.batches(0, stop):
        if batch.base_offset != at:
            raise LogCorrupt(at, "a record batch is missing" if batch.base_offset > at else "one was inserted")
        yield batch
        at = batch.next_offset


async def fold_verified(
    log: LogReader,
    *,
    until: int | None = None,
    head: Head | None = None,
    fold: Fold | None = None,
    host: ProjectionHost | None = None,
    rows: dict[bytes, bytes | None] | None = None,
    progress: Progress | None = None,
) -> tuple[Verified, Fold]:
    """Verify the hash chain and fold it in one pass, to the head or to the last batch that ends at or before `until`.

    `head`: another head to end at, that of an earlier view. `fold`: an empty one to fill, else a new one.
    With `host`, the transitions are given to its projections, whose rows are gathered in `rows`.

    Raises `LogCorrupt` with the first offset that is not proven.
    """
    is_bounded = until is not None or head is not None
    if until is not None:
        # What follows may be damaged, but it vouches for the last batch before it.
        head = (await log.verify(until=until)).head
    elif head is None:
        head = await log.head()
    stop = head.next_offset
    chain, fold = Chain(), Fold() if fold is None else fold
    async for batch in log.batches(0, stop if is_bounded else None):
        chain.add(batch)
        if host is None or rows is None:
            fold.apply_batch(batch)
        else:
            transitions = [fold.apply(offset, batch.time_ms, event, before) for offset, event, before in batch.steps()]
            host.project(transitions, batch.next_offset, rows)
        if progress is not None:
            progress(fold.next_offset, stop)
            await asyncio.sleep(0)
    if until is None:
        chain.end(head)
    return chain.proven(), fold
