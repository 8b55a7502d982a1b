"""The jobs of one bulk change: which are meant, and how they are changed, a few in each turn of the event loop.

worker/bulk.py begins it and ends it.
"""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import BulkBegan, BulkKind, CancelRequested, JobEvent, Sealed, Text
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.selection import EXAMPLES, Filter, bulk_states, matching, with_error
from ledgerq.projections.texts import text_of
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core

__all__ = ["Changing", "OpenBulk", "changed_before", "in_scope", "meaning", "open_bulk"]

_COMMIT_JOBS: Final = 1000
_PIECE_JOBS: Final = 50
_MOVED_JOBS: Final = 1000


class OpenBulk(NamedTuple):
    """A bulk that has begun, and what its jobs' events have in common."""

    offset: int
    what: BulkKind
    filter: Filter
    until: int
    actor: str
    reason: Text
    to: str = ""
    """The queue to which jobs are moved."""
    is_lost: bool = False
    """The text that errors have to contain is gone, so no further job can be told to match."""


async def open_bulk(core: Core, queue: str) -> OpenBulk:
    """The open bulk of a queue, read from the log and its text beside it."""
    log = core.log
    await log.committed()
    offset = core.writer_state.counters[queue].bulk
    batch = await log.batch_at(offset)
    event = None if batch is None or offset >= batch.next_offset else batch.events[offset - batch.base_offset]
    if not isinstance(event, BulkBegan):
        raise LogCorrupt(offset, f"the counters of queue {queue!r} name it as where a bulk began")
    text = await text_of(log.store, event.reason) if event.error_chars else ""
    error = text[-1 - event.error_chars : -1] if text else None
    filter = Filter(
        queue=queue,
        state=event.state,
        task=event.task or None,
        error_type=event.error_type or None,
        error=error,
        before=_moment(event.before_ms),
        after=_moment(event.after_ms),
    )
    return OpenBulk(offset, event.what, filter, event.until, event.actor, event.reason, event.to, text is None)


class Changing:
    """The work of one bulk: it goes through the jobs that match, and changes those in its scope."""

    def __init__(self, core: Core, opened: OpenBulk) -> None:
        self.changed = 0
        self.skipped = 0
        self.examples: list[Job] = []
        self._core = core
        self._opened = opened
        self._staged = 0
        self._moved: dict[bytes, Job] = {}

    async def go_through(self) -> None:
        """Change the jobs that match."""
        core, opened = self._core, self._opened
        if opened.what == "cancel":
            core.on_move = self._note
        try:
            await core.log.committed()
            states = bulk_states(opened.what, opened.filter)
            async with aclosing(matching(core.log.store, opened.filter, states)) as pages:
                async for jobs in pages:
                    await self._change_all([job for job in jobs if in_scope(opened.what, job, opened.until)])
                    if len(self._moved) >= _MOVED_JOBS:
                        await self._change_moved()
        finally:
            core.on_move = None
        await self._change_moved()
        await core.log.committed()

    def _note(self, job: Job) -> None:
        if job.state not in FINISHED and job.cancel_request is None and self._is_meant(job):
            self._moved[job.id] = job
        else:
            self._moved.pop(job.id, None)

    async def _change_moved(self) -> None:
        """Change those that went from a state that was to be looked at to one that had been: they were in no page."""
        moved, self._moved = [*self._moved.values()], {}
        await self._core.log.committed()  # so that the texts of their errors are there
        await self._change_all(await with_error(self._core.log.store, moved, self._opened.filter.error))

    async def _change_all(self, jobs: list[Job]) -> None:
        for at in range(0, len(jobs), _PIECE_JOBS):
            await self._change(jobs[at : at + _PIECE_JOBS])
            if self._staged >= _COMMIT_JOBS:
                self._staged = 0
                await self._core.log.committed()
            await asyncio.sleep(0)

    async def _change(self, jobs: list[Job]) -> None:
        """Change these jobs, whose errors have been looked at; one that has another error by now is left alone."""
        core, looks_at_error = self._core, self._opened.filter.error is not None
        seen = {job.id: job.last_error for job in jobs}
        await core.log.until_not_full()
        core.log.check()
        keys = await self._unique_keys(jobs)
        async with core.admission.reserved([key for some in keys.values() for key in some]) as holders:
            newest = await core.writer_state.jobs([job.id for job in jobs])
            # From here to the end of the loop nothing is awaited, so these states are the newest.
            core.log.check()
            for job in newest:
                if job is None or not self._is_meant(job) or (looks_at_error and job.last_error != seen[job.id]):
                    continue
                wanted = keys.get(job.id, [])
                if any(holders[key] not in (None, job.id) for key in wanted):
                    self.skipped += 1
                elif self._stage(job) and wanted:
                    holders[wanted[0]] = job.id
        core.dispatcher.serve()

    def _stage(self, job: Job) -> bool:
        core, opened = self._core, self._opened
        event = decisions.in_bulk(
            opened.what,
            job,
            options=core.options(job.queue),
            now_ms=core.clock.now_ms(),
            actor=opened.actor,
            reason=opened.reason,
            to=opened.to,
        )
        if event is None:
            self.skipped += opened.what in ("requeue", "move") and decisions.is_too_late(job, core.clock.now_ms())
            return False
        if len(self.examples) < EXAMPLES:
            self.examples.append(job)
        after = core.writer_state.apply(job, event)
        if after is not None:
            core.admission.requeued(after)
        self.changed += 1
        self._staged += 1
        return True

    async def _unique_keys(self, jobs: list[Job]) -> dict[bytes, list[bytes]]:
        """Of each job that would take a unique key again, the index keys that must be free."""
        core = self._core
        if self._opened.what != "requeue":
            return {}
        return {job.id: await core.admission.keys_of(job) for job in jobs if job.spec.unique_key is not None}

    def _is_meant(self, job: Job) -> bool:
        """Whether a job that matched by its row in the store does so as it is now."""
        opened = self._opened
        states = bulk_states(opened.what, opened.filter)
        return in_scope(opened.what, job, opened.until) and opened.filter.fits(job, states)


def in_scope(what: BulkKind, job: Job, until: int) -> bool:
    """Whether a bulk of this scope is about the job at all, as it is now."""
    return (job.offset if what == "cancel" else job.last_offset) < until


def meaning(filter: Filter) -> tuple[object, ...]:
    """What makes two filters the same one in the log."""
    return (filter.queue, filter.state, filter.task, filter.error_type, filter.error, filter.after_ms, filter.before_ms)


async def changed_before(core: Core, opened: OpenBulk) -> int:
    """How many jobs an interrupted bulk has changed, counted by their events in the log."""
    reason, count = opened.reason, 0
    asked: set[bytes] = set()  # as many at most as were claimed at a time
    assert isinstance(reason, Sealed)
    async for batch in core.log.batches(opened.offset, about=reason.digest):
        for event in batch.events:
            if not isinstance(event, JobEvent) or getattr(event, "reason", None) != reason:
                continue
            # What follows a request to stop has the same reason.
            count += event.id not in asked
            if type(event) is CancelRequested:
                asked.add(event.id)
    return count


def _moment(time_ms: int) -> datetime | None:
    return datetime.fromtimestamp(time_ms / 1000, UTC) if time_ms else None
