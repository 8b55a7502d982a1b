"""Observers in a simulated world: they read jobs, pages, counters, payloads, histories and the log as it grows.

An answer to a reader must be durable by then, and as new as what was durable when the call began. The audit is run
beside the writer, and must never find a difference.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import JobNotFound, LedgerError, PayloadMissing
from ledgerq.eventlog.events import STATES, LeaseExpired, Nacked, Record, State
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.projections.audit import audit
from ledgerq.projections.job import MAX_OFFSETS, Job
from tests.model.job import UNFINISHED, ModelJob, Violation
from tests.simulation.claimers import Calls
from tests.simulation.process import Process
from tests.simulation.projection import NAME, SimProjection

__all__ = ["Observers"]

_PAGE_ROWS: Final = 5
_MAX_PAGES: Final = 50


class Observers(Calls):
    """The observers of a simulated world."""

    def _some_job(self, which: int) -> bytes | None:
        created = self._oracle.created
        return created[which % len(created)] if created else None

    def _job_is(self, job: Job, before: ModelJob | None, length: int) -> None:
        """Check a `job` that was read: it must be as after one of its durable events, not before the `length`-th."""
        model = self._oracle.model.jobs.get(job.id)
        lives = [one for one in (model, before) if one is not None and one.offset == job.offset]
        offsets = (job.offset, *job.offsets)
        if lives and len(job.offsets) < MAX_OFFSETS:
            life, least = lives[0].life, length if lives[0] is before else 1
            moment = life[len(offsets) - 1] if len(offsets) <= len(life) else None
            told = (*offsets, job.state, job.attempt, job.changed_ms)
            places = tuple(one.offset for one in life[: len(offsets)])
            if moment is not None and told == (*places, moment.state, moment.attempt, moment.time_ms):
                errors = [
                    getattr(one.event, "error", getattr(one.event, "reason", ""))
                    for one in life[: len(offsets)]
                    if isinstance(one.event, Nacked | LeaseExpired)
                ]
                if not self._world.ledger.side.is_said(job.last_error, errors[-1] if errors else ""):
                    raise Violation("text", f"{job.job_id} is shown with the error {job.last_error}, not {errors[-1:]}")
                if len(offsets) >= least:
                    return
                raise Violation("stale", f"{job.job_id} is shown as of {offsets[-1]}, which was over")
        raise Violation("too early", f"{job.job_id} is shown as {job.state} after {offsets}, which is not durable")

    async def _observe(self, process: Process, queue: str, which: int, state: State | None) -> None:
        await self._observe_stats(process, queue)
        await self._observe_pages(process, queue, state)
        id = self._some_job(which)
        if id is not None:
            await self._observe_job(process, id)
            await self._observe_history(process, id)

    async def _observe_stats(self, process: Process, queue: str) -> None:
        counts = self._oracle.model.counts(queue)
        before = dict(counts.totals)
        stats = await self.call(process, "stats", self._queue(process).stats(queue))
        for name, count in stats.totals.items():
            if not before.get(name, 0) <= count <= counts.totals.get(name, 0):
                raise Violation("counters", f"stats said {count} {name}: {before.get(name)} to {counts.totals}")
        if before == counts.totals and any(getattr(stats, name) != counts.states.get(name, 0) for name in STATES):
            raise Violation("counters", f"stats said {stats}, has {counts.states}")
        names = {name for name, one in self._oracle.model.queues.items() if one.first_offset >= 0}
        found = await self.call(process, "queues", self._queue(process).queues())
        known = {name for name, one in self._oracle.model.queues.items() if one.first_offset >= 0}
        if found != sorted(found) or not names <= set(found) <= known:
            raise Violation("counters", f"queues() said {found}, there are {sorted(known)}")

    async def _observe_pages(self, process: Process, queue: str, state: State | None) -> None:
        """All pages of a listing: what did not change meanwhile is there once, and in order."""
        model = self._oracle.model
        before = {job.id: (job, len(job.life)) for job in model.jobs.values() if job.queue == queue}
        shown: list[Job] = []
        after: str | None = None
        for _ in range(_MAX_PAGES):
            call = self._queue(process).jobs(queue, state=state, limit=_PAGE_ROWS, after=after)
            page = await self.call(process, f"jobs {queue} {state}", call)
            for job in page.jobs:
                if job.queue != queue or state not in (None, job.state):
                    raise Violation("page", f"a page of {queue}, {state} shows {job.job_id}, {job.queue}, {job.state}")
                self._job_is(job, *before.get(job.id, (None, 0)))
            shown += page.jobs
            after = page.next
            if after is None:
                break
        else:
            return
        still = [
            job
            for job, length in before.values()
            if model.jobs.get(job.id) is job and len(job.life) == length and job.state != "gone"
            if state in (None, job.state)
        ]
        found = [job.id for job in shown]
        if any(found.count(job.id) != 1 for job in still):
            raise Violation("page", f"the pages of {queue}, {state} show {len(found)} jobs, {len(still)} are there")
        unchanged = {job.id for job in still}
        places = [(job.priority, job.offset) for job in shown if job.id in unchanged]
        if state == "pending" and places != sorted(places):
            raise Violation("page", f"the pending jobs of {queue} are shown in the order {places}")

    async def _observe_job(self, process: Process, id: bytes) -> None:
        before = self._oracle.model.jobs[id]
        length = len(before.life)
        try:
            job = await self.call(process, "get", self._queue(process).get(job_id_text(id)))
        except JobNotFound:
            self._must_be_gone(before, "get")
            return
        self._job_is(job, before, length)
        if before.state == "gone":
            return
        try:
            payload = await self.call(process, "payload", self._queue(process).payload(job_id_text(id)))
        except (JobNotFound, PayloadMissing):
            self._must_be_gone(before, "payload")
            return
        if self._oracle.model.jobs[id] is before and payload != self._oracle.payloads[id]:
            raise Violation("payload", f"the payload of {job.job_id} is another one")

    def _must_be_gone(self, before: ModelJob, what: str) -> None:
        if before.state != "gone":
            raise Violation("lost", f"{what}: job {before.id.hex()} is {before.state} and was not found")

    async def _observe_history(self, process: Process, id: bytes) -> None:
        before = self._oracle.model.jobs[id]
        length = len(before.life)
        try:
            records = await self.call(process, "history", self._queue(process).history(job_id_text(id)))
        except JobNotFound as error:
            raise Violation("lost", f"job {id.hex()} has no history") from error
        ledger = self._world.ledger
        first = records[0].offset if records else -1
        # An id that was used again has several lives; another one may have been read.
        life = [record for record in ledger.records[max(first, 0) :] if getattr(record.event, "id", None) == id]
        is_told = len(records) <= len(life) and all(map(ledger.side.is_told, records, life))
        if not records or not is_told or (first == before.offset and len(records) < length):
            raise Violation("history", f"the history of {id.hex()} is read as {records}, not {life}")

    async def _follow(self, process: Process, start: int, for_ms: int, apart: bool) -> None:
        """Follow the log from some offset on, for a while; `apart`: as a reader of the disk."""
        world, records = self._world, self._world.ledger.records
        start %= len(records) + 1
        log = LogReader(MemoryReader(world.disk), clock=world.clock) if apart else self._queue(process).log
        seen: list[Record] = []

        async def follow() -> None:
            async for record in log.tail(start):
                seen.append(record)
                at = start + len(seen) - 1
                if at >= len(records) or record != records[at]:
                    raise Violation("tail", f"at {at} the log is read as {record}")

        task = asyncio.ensure_future(self._calling(process, "follow", follow))
        try:
            await asyncio.wait({task}, timeout=for_ms / 1000)
            calm_ms, now_ms = world.calm_since_ms(process), world.loop.now_ms()
            if task.done():
                task.result()
            elif calm_ms is not None and calm_ms < now_ms - world.patience_ms and for_ms > world.patience_ms:
                missed = records[start + len(seen) :]
                if missed and missed[0].time_ms < world.clock.now_ms() - world.patience_ms:
                    raise Violation("tail", f"a follower has seen nothing of {missed[0]}")
        finally:
            task.cancel()

    async def _drain(self, process: Process, queues: Sequence[str], for_ms: int) -> None:
        """Wait until nothing is left, but not for ever."""
        queue = self._queue(process)
        task = asyncio.ensure_future(self._calling(process, "drained", lambda: queue.drained(queues)))
        task.add_done_callback(lambda done: self._drained(done, queues))
        try:
            await asyncio.wait({task}, timeout=for_ms / 1000)
            if task.done():
                task.result()
                return
            calm_ms, now_ms = self._world.calm_since_ms(process), self._world.loop.now_ms()
            long_ago_ms = now_ms - self._world.patience_ms
            jobs = [job for job in self._oracle.model.jobs.values() if job.queue in queues]
            busy = any(job.state in UNFINISHED or job.changed_at_ms > long_ago_ms for job in jobs)
            if not busy and calm_ms is not None and calm_ms < long_ago_ms and for_ms > self._world.patience_ms:
                raise Violation("drained", f"{queues} have been drained for long, and no watcher was called")
        finally:
            task.cancel()

    async def _calling(self, process: Process, what: str, call: Callable[[], Awaitable[None]]) -> None:
        """Call in a task of its own; one that is cancelled before it begins leaves nothing behind."""
        await self.call(process, what, call())

    def _drained(self, done: "asyncio.Task[None]", queues: Sequence[str]) -> None:
        if not done.cancelled() and done.exception() is None:
            try:
                self._oracle.drained(queues)
            except Violation as violation:
                self._world.break_(violation)

    async def _audit(self, deep: bool) -> None:
        """Audit what is durable now, beside any writer."""
        world = self._world
        if not world.ledger.records:
            return
        reader = MemoryReader(world.disk, pinned=True)
        # An old store that no writer has opened yet has no rows of it.
        is_kept = world.plan.settings["projection"] == "always" and keys.projection_key(NAME) in world.disk.rows
        projections: list[Any] = [SimProjection()] if is_kept else []
        world.say("an audit begins")
        try:
            report = await audit(reader, clock=world.clock, deep=deep, projections=projections)
        except LedgerError as error:
            raise Violation("audit", f"the audit reports: {error}") from error
        if not report.clean:
            raise Violation("audit", f"the audit found {report.differences[:3]}")
