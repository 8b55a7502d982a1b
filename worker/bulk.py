"""Changes of many jobs at once: requeue, cancel, delete or move all jobs that match, a thousand of them at a time.

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

from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.events import BulkBegan, BulkEnded, BulkKind
from ledgerq.projections.job import Job
from ledgerq.projections.selection import Filter, bulk_states, check_move, matching, survey
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.bulk_change import Changing, OpenBulk, changed_before, in_scope, meaning, open_bulk
from ledgerq.worker.engine.core import Core

__all__ = ["Bulk", "BulkResult"]

_ERROR_OPENS: Final = " (jobs whose error has: "


@dataclass(frozen=True, slots=True)
class BulkResult:
    """The result of a bulk, or of a dry run.

    `count`: jobs that match (of a dry run), or that were changed. `skipped`: jobs that match and could not be changed,
    since another one holds their unique key, or they may not be started any more. `examples`: the first 20, as they
    were. `token`: the offset of the log's end when it began; give it to the real call, and no job that has changed
    since is touched. `offset`: that of the event with which it began; None when nothing was changed.
    """

    what: BulkKind
    filter: Filter
    count: int
    skipped: int
    examples: list[Job]
    token: int
    offset: int | None


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

    async def move(
        self,
        filter: Filter,
        to: str,
        *,
        actor: str,
        reason: str,
        dry_run: bool = True,
        expect: int | None = None,
        token: int | None = None,
    ) -> BulkResult:
        """Move jobs (of one state: dead, pending or scheduled) to another queue, where no attempts count.

        Dead ones are pending there. A unique key is given up.
        """
        check_move(filter, to)
        return await self._run("move", filter, actor, reason, dry_run, expect, token, to)

    async def resume(self) -> list[BulkResult]:
        """Finish the bulks that were interrupted; their results count all jobs that they changed since they began."""
        core = self._core
        core.log.check()
        results: list[BulkResult] = []
        async with core.bulk_lock:
            for queue in [queue for queue, counters in core.writer_state.counters.items() if counters.bulk]:
                results.append(await self._finish(await open_bulk(core, queue)))
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
        to: str = "",
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
                opened = await open_bulk(core, filter.queue)
                if (opened.what, opened.to) != (what, to) or meaning(opened.filter) != meaning(filter):
                    raise InvalidState(
                        f"the bulk that began at offset {opened.offset} ({opened.what}, by {opened.actor}) was "
                        f"interrupted: finish it first, with resume"
                    )
                return await self._finish(opened)
            until = core.log.next_offset if token is None else min(token, core.log.next_offset)
            await core.log.committed()
            if expect is not None and (count := await self._count(what, filter, until)) > expect:
                raise InvalidState(f"{count} jobs match now, more than the {expect} expected: look at them again")
            return await self._begin(what, filter, until, actor, reason, to)

    async def _count(self, what: BulkKind, filter: Filter, until: int) -> int:
        count = 0
        async for jobs in matching(self._core.log.store, filter, bulk_states(what, filter)):
            count += sum(in_scope(what, job, until) for job in jobs)
        return count

    async def _begin(self, what: BulkKind, filter: Filter, until: int, actor: str, reason: str, to: str) -> BulkResult:
        """Begin a bulk, unless there is no job for it."""
        core = self._core
        async with aclosing(matching(core.log.store, filter, bulk_states(what, filter))) as pages:
            is_any = False
            async for jobs in pages:
                if is_any := any(in_scope(what, job, until) for job in jobs):
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
            filter.task or "",
            to,
        )
        offset = core.writer_state.apply_other(event)
        return await self._finish(OpenBulk(offset, what, filter, until, actor, event.reason, to), is_new=True)

    async def _finish(self, opened: OpenBulk, *, is_new: bool = False) -> BulkResult:
        """Change all jobs that are left, and end the bulk."""
        changing = Changing(self._core, opened)
        if not is_new:
            changing.changed = await changed_before(self._core, opened)
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


def _check_number(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise InvalidArgument(f"{name} is a whole number from 0 on, not {value!r}")
