"""Changes of many jobs at once: requeue, cancel or delete all jobs that match, a thousand of them at a time.

Theory of operation.

A bulk begins with one event, which has what it does, to which jobs, and who wants it and why; each job has its own
event, as if it were changed alone, and an event with the counts ends it. Between the two it is open: a queue has one
open bulk at most, and its counters hold the offset where it began. So a bulk whose process ended is not lost: `resume`
finds it there and goes on, by the same filter.

Which jobs are meant is decided once: those that match and have not changed since the offset `until`, which is fixed
when the bulk begins. (A cancellation: that were enqueued before it, since jobs that are waited for by workers change
all the time.) A job that was changed by the bulk has a later event, so none is changed twice, and a job that is
requeued and dies again is not requeued without an end. So no cursor is needed: to go on is to look from the front.

Few jobs are read and staged in one turn of the event loop, and at most a thousand are on their way to the log.
"""

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument, InvalidState, LogCorrupt
from ledgerq.eventlog.events import BulkBegan, BulkEnded, BulkKind, CancelRequested, JobEvent, Sealed, Text
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.selection import EXAMPLES, Filter, bulk_states, matching, survey
from ledgerq.projections.texts import text_of
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core

__all__ = ["Bulk", "BulkResult"]

_COMMIT_JOBS: Final = 1000
_PIECE_JOBS: Final = 50
_ERROR_OPENS: Final = " (jobs whose error has: "


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The result of a bulk, or of a dry run.

    `count`: jobs that match (of a dry run), or that were changed. `skipped`: jobs that match and could not be changed,
    since another one holds their unique key. `examples`: the first 20, as they were. `token`: the offset of the log's
    end when it began; give it to the real call, and no job that has changed since is touched. `offset`: that of the
    event with which it began; None when nothing was changed.
    """

    what: BulkKind
    filter: Filter
    count: int
    skipped: int
    examples: list[Job]
    token: int
    offset: int | None


class _Open(NamedTuple):
    """A bulk that has begun, and what its jobs' events have in common."""

    offset: int
    what: BulkKind
    filter: Filter
    until: int
    actor: str
    reason: Text
    is_lost: bool = False
    """The text that errors have to contain is gone, so no further job can be told to match."""


class Bulk:
    """The bulk changes of one queue object, `queue.bulk`: a dry run unless `dry_run=False`.

    `expect`: the number of jobs that the dry run found: the call is refused when more match now. `token`: that of the
    dry run: only jobs that have not changed since. One bulk runs at a time; others wait. When the caller is cancelled,
    or the process ends, the bulk stays open: `resume` finishes it, and so does the same call.

    Each raises `InvalidArgument`, and `InvalidState` when more match than expected, or while another bulk of the
    queue is open.
    """

    def __init__(self, core: Core) -> None:
        """Not called by users: see `Queue.bulk`."""
        self._core = core

    async def requeue(
        self,
        filter: Filter,
        *,
        actor: str,
        reason: str,
        dry_run: bool = True,
        expect: int | None = None,
        token: int | None = None,
    ) -> BulkResult:
        """Give dead jobs a new start. One whose unique key another job holds is skipped."""
        return await self._run("requeue", filter, actor, reason, dry_run, expect, token)

    async def cancel(
        self,
        filter: Filter,
        *,
        actor: str,
        reason: str,
        dry_run: bool = True,
        expect: int | None = None,
        token: int | None = None,
    ) -> BulkResult:
        """Cancel jobs that wait, and ask the workers of claimed ones to stop."""
        return await self._run("cancel", filter, actor, reason, dry_run, expect, token)

    async def delete(
        self,
        filter: Filter,
        *,
        actor: str,
        reason: str,
        dry_run: bool = True,
        expect: int | None = None,
        token: int | None = None,
    ) -> BulkResult:
        """Delete finished jobs (of one state) before their retention is over: records, payloads, errors and results."""
        return await self._run("delete", filter, actor, reason, dry_run, expect, token)

    async def resume(self) -> list[BulkResult]:
        """Finish the bulks that were interrupted; their results count all jobs that they changed since they began."""
        core = self._core
        core.log.check()
        results: list[BulkResult] = []
        async with core.bulk_lock:
            for queue in [queue for queue, counters in core.writer_state.counters.items() if counters.bulk]:
                results.append(await self._finish(await self._opened(queue)))
        return results

    async def _run(
        self,
        what: BulkKind,
        filter: Filter,
        actor: str,
        reason: str,
        dry_run: bool,
        expect: int | None,
        token: int | None,
    ) -> BulkResult:
        core = self._core
        core.log.check()
        bulk_states(what, filter)
        actor, reason = decisions.operator(actor, reason)
        _check_number("expect", expect)
        _check_number("token", token)
        if dry_run:
            found = await core.durably(survey(core.view, what, filter))
            return BulkResult(what, filter, found.count, 0, found.examples, found.token, None)
        async with core.bulk_lock:
            core.log.check()
            if (counters := core.writer_state.counters.get(filter.queue)) is not None and counters.bulk:
                opened = await self._opened(filter.queue)
                if opened.what != what or _meaning(opened.filter) != _meaning(filter):
                    raise InvalidState(
                        f"the bulk that began at offset {opened.offset} ({opened.what}, by {opened.actor}) was "
                        f"interrupted: finish it first, with resume"
                    )
                return await self._finish(opened)
            until = core.log.next_offset if token is None else min(token, core.log.next_offset)
            await core.log.committed()
            if expect is not None and (count := await self._count(what, filter, until)) > expect:
                raise InvalidState(f"{count} jobs match now, more than the {expect} expected: look at them again")
            return await self._begin(what, filter, until, actor, reason)

    async def _count(self, what: BulkKind, filter: Filter, until: int) -> int:
        count = 0
        async for jobs in matching(self._core.log.store, filter, bulk_states(what, filter)):
            count += sum(_in_scope(what, job, until) for job in jobs)
        return count

    async def _begin(self, what: BulkKind, filter: Filter, until: int, actor: str, reason: str) -> BulkResult:
        """Begin a bulk, unless there is no job for it."""
        core = self._core
        async with aclosing(matching(core.log.store, filter, bulk_states(what, filter))) as pages:
            is_any = False
            async for jobs in pages:
                if is_any := any(_in_scope(what, job, until) for job in jobs):
                    break
        if not is_any:
            return BulkResult(what, filter, 0, 0, [], until, None)
        await core.log.until_not_full()
        core.log.check()
        error = filter.error or ""
        text = f"{reason}{_ERROR_OPENS}{error})" if error else reason
        event = BulkBegan(
            filter.queue,
            what,
            filter.state,
            filter.error_type or "",
            len(error),
            filter.after_ms,
            filter.before_ms,
            until,
            actor,
            core.log.put_beside(text),
        )
        offset = core.writer_state.apply_other(event)
        return await self._finish(_Open(offset, what, filter, until, actor, event.reason), is_new=True)

    async def _opened(self, queue: str) -> _Open:
        """The open bulk of a queue, read from the log and its text beside it."""
        log = self._core.log
        await log.committed()
        offset = self._core.writer_state.counters[queue].bulk
        batch = await log.batch_at(offset)
        event = None if batch is None or offset >= batch.next_offset else batch.events[offset - batch.base_offset]
        if not isinstance(event, BulkBegan):
            raise LogCorrupt(offset, f"the counters of queue {queue!r} name it as where a bulk began")
        text = await text_of(log.store, event.reason) if event.error_chars else ""
        error = text[-1 - event.error_chars : -1] if text else None
        filter = Filter(
            queue=queue,
            state=event.state,
            error_type=event.error_type or None,
            error=error,
            before=_moment(event.before_ms),
            after=_moment(event.after_ms),
        )
        return _Open(offset, event.what, filter, event.until, event.actor, event.reason, is_lost=text is None)

    async def _finish(self, opened: _Open, *, is_new: bool = False) -> BulkResult:
        """Change all jobs that are left, and end the bulk."""
        changing = _Changing(self._core, opened)
        if not is_new:
            changing.changed = await _changed_before(self._core, opened)
        if not opened.is_lost:
            await changing.go_through()
        log, state = self._core.log, self._core.writer_state
        await log.until_not_full()
        log.check()
        state.apply_other(BulkEnded(opened.filter.queue, opened.offset, changing.changed, changing.skipped))
        await log.committed()
        examples = [await self._core.view.with_texts(job) for job in changing.examples]
        what, filter = opened.what, opened.filter
        return BulkResult(what, filter, changing.changed, changing.skipped, examples, opened.until, opened.offset)


class _Changing:
    """The work of one bulk: it goes through the jobs that match, and changes those in its scope."""

    def __init__(self, core: Core, opened: _Open) -> None:
        self.changed = 0
        self.skipped = 0
        self.examples: list[Job] = []
        self._core = core
        self._opened = opened
        self._staged = 0

    async def go_through(self) -> None:
        """Change the jobs that match."""
        core, opened = self._core, self._opened
        moved: dict[bytes, None] = {}
        if opened.what == "cancel":
            core.on_move = lambda job: self._note(job, moved)
        try:
            await core.log.committed()
            states = bulk_states(opened.what, opened.filter)
            async with aclosing(matching(core.log.store, opened.filter, states)) as pages:
                async for jobs in pages:
                    await self._change_all([job.id for job in jobs if _in_scope(opened.what, job, opened.until)])
        finally:
            core.on_move = None
        # A job that went from a state that was to be looked at to one that had been was in no page.
        await self._change_all([*moved])
        await core.log.committed()

    def _note(self, job: Job, moved: dict[bytes, None]) -> None:
        if job.state not in FINISHED and job.cancel_request is None and self._is_meant(job):
            moved[job.id] = None
        else:
            moved.pop(job.id, None)

    async def _change_all(self, ids: list[bytes]) -> None:
        for at in range(0, len(ids), _PIECE_JOBS):
            await self._change(ids[at : at + _PIECE_JOBS])
            if self._staged >= _COMMIT_JOBS:
                self._staged = 0
                await self._core.log.committed()
            await asyncio.sleep(0)

    async def _change(self, ids: list[bytes]) -> None:
        core = self._core
        await core.log.until_not_full()
        core.log.check()
        keys = await self._unique_keys(ids)
        async with core.admission.reserved([key for some in keys.values() for key in some]) as holders:
            # From here to the end of the loop nothing is awaited, so these states are the newest.
            for job in await core.writer_state.jobs(ids):
                if job is None or not self._is_meant(job):
                    continue
                wanted = keys.get(job.id, [])
                if any(holders[key] is not None for key in wanted):
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
        )
        if event is None:
            return False
        if len(self.examples) < EXAMPLES:
            self.examples.append(job)
        after = core.writer_state.apply(job, event)
        if after is not None:
            core.admission.requeued(after)
        self.changed += 1
        self._staged += 1
        return True

    async def _unique_keys(self, ids: list[bytes]) -> dict[bytes, list[bytes]]:
        """Of each job that would take a unique key again, the index keys that must be free."""
        core = self._core
        if self._opened.what != "requeue":
            return {}
        jobs = [job for job in await core.writer_state.jobs(ids) if job is not None and job.spec.unique_key is not None]
        return {job.id: await core.admission.keys_of(job) for job in jobs}

    def _is_meant(self, job: Job) -> bool:
        """Whether a job that matched by its row in the store does so as it is now."""
        opened = self._opened
        states = bulk_states(opened.what, opened.filter)
        return _in_scope(opened.what, job, opened.until) and opened.filter.fits(job, states)


def _in_scope(what: BulkKind, job: Job, until: int) -> bool:
    return (job.offset if what == "cancel" else job.last_offset) < until


def _meaning(filter: Filter) -> tuple[object, ...]:
    """What makes two filters the same one in the log."""
    return (filter.queue, filter.state, filter.error_type, filter.error, filter.after_ms, filter.before_ms)


async def _changed_before(core: Core, opened: _Open) -> int:
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


def _check_number(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidArgument(f"{name} is a whole number from 0 on, not {value!r}")


def _moment(time_ms: int) -> datetime | None:
    return datetime.fromtimestamp(time_ms / 1000, UTC) if time_ms else None
