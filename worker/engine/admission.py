"""The admission of jobs: enqueued events are staged, and ids and unique keys stay unique during look-ups."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import DuplicateJobId, UniqueKeyHeld
from ledgerq.eventlog.events import UniqueReleased
from ledgerq.eventlog.keys import payload_key
from ledgerq.eventlog.runtime.waits import to_the_end
from ledgerq.eventlog.side_records import decode_payload, key_digest
from ledgerq.projections.index_keys import job_key, unique_key
from ledgerq.projections.job import Job, holds_key
from ledgerq.projections.payloads import read_payload
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.engine.new_job import KeyLocks, Prepared
from ledgerq.worker.engine.newer import Newer
from ledgerq.worker.engine.unique_keys import has_key, refuse_held, replaced
from ledgerq.worker.engine.writer_state import WriterState

__all__ = ["Admission"]

T = TypeVar("T")

Holders = dict[bytes, Job | None]
"""The job that has each unique index key."""

_FORGET_ROWS: Final = 1000
# So many jobs are staged in one turn of the event loop.
_PIECE_JOBS: Final = 50


class Admission:
    """The stage of prepared jobs; it remembers unique keys whose enqueued events may not be in the store yet."""

    def __init__(self, writer_state: WriterState, *, serve: Callable[[], None]) -> None:
        """Stage in `writer_state`; `serve` gives new pending jobs to claims that wait for some."""
        self._writer_state = writer_state
        self._serve = serve
        self._locks = KeyLocks()
        self._held: dict[bytes, bytes] = {}
        self._forget_at_rows = _FORGET_ROWS

    def stage(self, prepared: Prepared) -> EnqueueResult:
        """Stage a job that needs no look-up."""
        event = prepared.event
        log = self._writer_state.log
        offset = log.next_offset
        self._writer_state.apply(None, event, prepared.record if not event.due_ms else None)
        log.append_payload(offset, prepared.sealed)
        return EnqueueResult(event.id, True)

    async def stage_all(self, batch: Sequence[Prepared]) -> list[EnqueueResult]:
        """Stage all of them in one commit, or none: raises `DuplicateJobId`, `UniqueKeyHeld`."""
        # No other call stages the keys of these while they are looked up.
        async with self.looked_up(batch) as stage:
            return await self.together(batch, stage)

    @asynccontextmanager
    async def looked_up(
        self, batch: Sequence[Prepared], *, ending: bytes | None = None
    ) -> AsyncIterator[Callable[[Prepared], EnqueueResult]]:
        """Reserve the ids and unique keys of these jobs while the block runs; yields what stages each, once.

        `ending`: a job that is finished before they are staged. Waits until the log takes more. Raises
        `DuplicateJobId`, and `UniqueKeyHeld` where that was asked for; what stages them raises neither.
        """
        lock_keys = [key for prepared in batch for key in _keys(prepared)]
        if not lock_keys:
            yield self.stage
            return
        async with self._locks.hold(lock_keys):
            with self._writer_state.watch() as newer:
                holders, taken = await self._look_up(batch)
                own_ids = [p.event.id for p in batch if p.own_id]
                if taken:
                    raise _duplicate(next(id for id in own_ids if id in taken))
                if len(set(own_ids)) < len(own_ids):
                    raise _duplicate(Counter(own_ids).most_common(1)[0][0])
                self._check_keys(batch, holders, ending)
                yield lambda prepared: self._stage_unique(prepared, holders, newer)

    def _check_keys(self, batch: Sequence[Prepared], holders: Holders, ending: bytes | None) -> None:
        """Raise `UniqueKeyHeld` for the first job that may not be added while its key is held.

        While the keys are reserved jobs can give them up, and none can take one but these, in their order.
        """
        by_ms = self._writer_state.log.next_time_ms
        before: dict[bytes, Job | None] = {}
        for prepared in batch:
            if (wanted := _unique(prepared)) and prepared.conflict.what == "raise":
                held = [job for one in wanted if (job := holders[one]) is not None and holds_key(job, by_ms)]
                holder = next((job for job in held if job.id != ending or job.hold_ms > by_ms), None)
                if holder is not None:
                    refuse_held(holder)
                if wanted[0] in before:
                    raise UniqueKeyHeld("two jobs of one call have the same unique key; nothing was written")
            before |= dict.fromkeys(wanted)

    async def stage_each(self, batch: Sequence[Prepared]) -> list[EnqueueResult | DuplicateJobId | UniqueKeyHeld]:
        """Stage each of them by itself: one that is refused is answered with the error, and the others are staged.

        Their look-ups are made together, in a few reads of the store.
        """
        async with self._locks.hold([key for prepared in batch for key in _keys(prepared)]):
            with self._writer_state.watch() as newer:
                holders, taken = await self._look_up(batch)

                def stage(prepared: Prepared) -> EnqueueResult | DuplicateJobId | UniqueKeyHeld:
                    id = prepared.event.id
                    if prepared.own_id and id in taken:
                        return _duplicate(id)
                    try:
                        result = self._stage_unique(prepared, holders, newer)
                    except UniqueKeyHeld as error:
                        return error
                    if prepared.own_id and result.created:
                        taken.add(id)
                    return result

                return await self.together(batch, stage)

    async def _look_up(self, batch: Sequence[Prepared]) -> tuple[Holders, set[bytes]]:
        """The holders of their unique keys, and which of their own ids are in use, when the log takes more events."""
        own_ids = [p.event.id for p in batch if p.own_id]
        while True:
            holders = await self.holders([key for p in batch for key in _unique(p)])
            jobs = await self._writer_state.jobs(own_ids)
            if not self._writer_state.log.full:
                break
            await self._writer_state.log.until_not_full()
        self._writer_state.log.check()
        return holders, {id for id, job in zip(own_ids, jobs, strict=True) if job is not None}

    def _stage_unique(self, prepared: Prepared, holders: Holders, newer: Newer) -> EnqueueResult:
        """Stage a job unless its unique key is held; then it holds that. `newer`: what changed since the look-up."""
        wanted = _unique(prepared)
        if not wanted:
            return self.stage(prepared)
        by_ms = self._writer_state.log.next_time_ms
        found = {one: newer.state_of(job) for one in wanted if (job := holders[one]) is not None}
        having = [job for one, job in found.items() if job is not None and has_key(job, one)]
        if (holder := next((job for job in having if holds_key(job, by_ms)), None)) is not None:
            return self._met(prepared, holder, by_ms)
        for job in having:
            self._writer_state.apply(job, UniqueReleased(job.id))
        result = self.stage(prepared)
        holders[wanted[0]] = newer[prepared.event.id]
        self.hold(wanted[0], prepared.event.id)
        return result

    def _met(self, prepared: Prepared, holder: Job, by_ms: int) -> EnqueueResult:
        """Do what the caller wants for a key that `holder` has: raises `UniqueKeyHeld` when that is asked for."""
        if prepared.conflict.what == "raise":
            refuse_held(holder)
        log = self._writer_state.log
        event = replaced(holder, prepared.event, prepared.conflict, by_ms)
        if event is None:
            return EnqueueResult(holder.id, False)
        offset = log.next_offset
        self._writer_state.apply(holder, event, None if event.due_ms else prepared.record)
        # Of this very commit it would be written; one in the store is deleted with the index rows.
        log.commit().payloads.pop(payload_key(holder.payload_offset), None)
        log.append_payload(offset, prepared.sealed)
        return EnqueueResult(holder.id, False, True)

    async def together(
        self, batch: Sequence[Prepared], stage: Callable[[Prepared], T], first: Callable[[], None] = lambda: None
    ) -> list[T]:
        """Stage all in one commit: many of them a few at a time, to the end also when the caller is cancelled.

        And `first` is called right before, in the same commit; when it raises, no job is staged.
        """
        if len(batch) <= _PIECE_JOBS:
            first()
            return [stage(prepared) for prepared in batch]

        async def in_pieces() -> list[T]:
            first()
            results: list[T] = []
            for at, prepared in enumerate(batch):
                if at and at % _PIECE_JOBS == 0:
                    await asyncio.sleep(0)
                results.append(stage(prepared))
            # Here, so that it happens for a caller that is gone too, and the claims are in the same commit.
            self._serve()
            return results

        async with self._writer_state.log.gathering():
            return await to_the_end(in_pieces())

    @asynccontextmanager
    async def unique(self, job: Job) -> AsyncIterator[bytes | None]:
        """Reserve the unique key of `job` while the block runs; yields the id of another one that has it, if any."""
        wanted = await self.keys_of(job)
        if not wanted:
            yield None
            return
        async with self.reserved(wanted) as holders:
            yield next((id for one in wanted if (id := holders[one]) not in (None, job.id)), None)

    @asynccontextmanager
    async def reserved(self, keys: Sequence[bytes]) -> AsyncIterator[dict[bytes, bytes | None]]:
        """Reserve these unique index keys while the block runs; yields their holders."""
        async with self._locks.hold(keys):
            holders = await self.holders(keys) if keys else {}
            yield {key: None if job is None else job.id for key, job in holders.items()}

    async def keys_of(self, job: Job) -> list[bytes]:
        """The unique index keys that must be free for a job that gets a new start: its own one, and what is equal."""
        key = job.spec.unique_key
        if key is None or job.spec.unique_until != "finished":
            return []
        plain = await self._plain_key(job) or key
        # Up to format 2 a job had its key itself; and the store's secret may be another than when this one was made.
        kinds = dict.fromkeys((key, plain, key_digest(plain, self._writer_state.log.secret)))
        return [unique_key(job.spec.queue, one) for one in kinds]

    async def _plain_key(self, job: Job) -> bytes | None:
        value, _ = await read_payload(self._writer_state.log.store, job)
        return None if value is None else decode_payload(value).unique_key

    def requeued(self, job: Job) -> None:
        """Remember that a requeued job holds its unique key again."""
        if job.unique_held and job.spec.unique_key is not None:
            self.hold(unique_key(job.spec.queue, job.spec.unique_key), job.id)

    async def holders(self, wanted: Sequence[bytes]) -> Holders:
        """The job that has each unique index key, as of when this returns: two reads of the store.

        It may be one that needs to give it up to another: see `holds_key`.
        """
        found = {key: id for key in wanted if (id := self._held.get(key)) is not None}
        unknown = [key for key in dict.fromkeys(wanted) if key not in found]
        values = await self._writer_state.log.store.get_many(unknown) if unknown else []
        found |= {key: id for key, id in zip(unknown, values, strict=True) if id is not None}
        jobs = dict(zip(found, await self._writer_state.jobs(list(found.values())), strict=True))
        return {key: job if has_key(job := jobs.get(key), key) else None for key in wanted}

    def hold(self, key: bytes, id: bytes) -> None:
        """Remember the holder until it is surely in the store; a stale entry does no harm, it is looked up."""
        if len(self._held) >= self._forget_at_rows:
            self._held = {k: i for k, i in self._held.items() if self._writer_state.undurable(i)}
            # Twice what can't be forgotten yet: a large commit must not go through all of it for each of its jobs.
            self._forget_at_rows = max(_FORGET_ROWS, 2 * len(self._held))
        self._held[key] = id


def _duplicate(id: bytes) -> DuplicateJobId:
    return DuplicateJobId(f"job id {job_id_text(id)} is in use; nothing was written. Leave job_id out for a new one")


def _unique(prepared: Prepared) -> list[bytes]:
    """The index keys of a job's unique key: its own, and that of a job enqueued with the same key up to format 2."""
    event, plain = prepared.event, prepared.record.unique_key
    if event.unique_key is None or plain is None:
        return []
    return [unique_key(event.queue, event.unique_key), unique_key(event.queue, plain)]


def _keys(prepared: Prepared) -> list[bytes]:
    return _unique(prepared) + ([job_key(prepared.event.id)] if prepared.own_id else [])
