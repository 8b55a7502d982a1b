"""The writer's state: jobs, counters and ready windows as the staged events leave them, durable or not yet.

Theory of operation.

State held. `claimed` has every claimed job, `windows` the first pending jobs of each queue, `counters` those of every
queue, `durable_counters` their rows as of the last durable commit. `_touched` has each job that an event of the open
commit concerns, with its state before that commit and now; `_in_flight` has the same of each commit that is being
written, oldest first. All other jobs are only in the store, and memory does not grow with them.

Invariants. Every decision is made on the event loop, from this state, without awaiting: `apply` stages an event in the
open commit and evolves its job in the same step, so that the next decision sees it. A job's newest state is in
`_touched`, else in the newest of `_in_flight` that has it, else in `claimed` or the store. The state is ahead of what
is durable by those commits, and no caller learns of what is ahead: calls wait for `EventLog.committed`. A commit
changes, for each job that it touched, exactly the index rows that differ between the states before and after. A hint
may lag and never leads.

Order of steps. `apply` for each event of the open commit; then `fill`, which moves the jobs of that commit from
`_touched` to `_in_flight` before anything is awaited, so that what is staged from then on belongs to the next one; then
`committed`, which drops them. Reads that take time are made safe by `watch`: whatever is staged meanwhile, or was not
durable when the read began, is newer than what the store answers.

What may fail. A log that takes no more events raises in `apply` before anything has changed. A user's projection that
raises is left behind by its host, and the commit goes on. `fill` may be called again for the same commit and adds the
same changes. When a commit fails the queue has failed with it, so the state never goes back; the next writer reads it
anew from the store.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import JobNotFound, LedgerError
from ledgerq.eventlog.events import (
    TEXT_FIELDS,
    Enqueued,
    JobEvent,
    LogEvent,
    Moved,
    QueueEvent,
    ScheduleEvent,
    ValueEvent,
)
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.store import Batch
from ledgerq.eventlog.writer import Commit, EventLog
from ledgerq.projections.fold import Transition
from ledgerq.projections.index_keys import job_key, stats_key
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import Job, born, evolve
from ledgerq.projections.runner import ProjectionHost
from ledgerq.projections.stats import QueueCounters
from ledgerq.worker.engine import commit_rows
from ledgerq.worker.engine.commit_rows import Changes, Touched
from ledgerq.worker.engine.kept_schedules import KeptSchedules
from ledgerq.worker.engine.kept_values import KeptValues
from ledgerq.worker.engine.ready_window import FIRST_POSITION, PayloadBudget, Position, ReadyWindow

__all__ = ["WriterState"]

_WATCH_LIMIT_ROWS: Final = 1000
_HINT_EVERY_CLAIMS: Final = 1000


class Newer:
    """Jobs staged since a group of reads began, or not durable then: newer than what the store answers.

    Making one costs nothing, however much is not durable: a commit keeps its jobs where they are when it is on its way.
    """

    def __init__(self, undurable: list[Touched]) -> None:
        """`undurable`: what each commit that is not durable has touched, oldest first."""
        self.readers = 0
        self.changes: dict[bytes, Job | None] = {}
        self._undurable = undurable

    def __contains__(self, id: bytes) -> bool:
        return id in self.changes or any(id in staged for staged in self._undurable)

    def __getitem__(self, id: bytes) -> Job | None:
        if id in self.changes:
            return self.changes[id]
        return next(touched[id] for touched in reversed(self._undurable) if id in touched)[1]

    def state_of(self, job: Job) -> Job | None:
        """The newest state of a job that was read."""
        if job.id not in self:
            return job
        return self[job.id]

    def values(self) -> Iterable[Job | None]:
        """The newest state of each of these jobs."""
        undurable = {id: after for staged in self._undurable for id, (_, after) in staged.items()}
        return (undurable | self.changes).values()


class _Filled(NamedTuple):
    """A commit in flight: the jobs that it touched, the rows that follow from it, and those of its counters."""

    commit: Commit
    touched: Touched
    changes: Changes
    counted: dict[str, bytes]


class WriterState:
    """The state that a queue's writer keeps in memory, and the log's `CommitHook`."""

    def __init__(self, *, ready_window_rows: int, payload_budget_bytes: int, host: ProjectionHost) -> None:
        self.log: EventLog
        self.host = host
        self.counters: dict[str, QueueCounters] = {}
        self.durable_counters: dict[str, bytes] = {}
        self.claimed: dict[bytes, Job] = {}
        self.windows: dict[str, ReadyWindow] = {}
        self.hints: dict[str, Position] = {}
        self.schedules = KeptSchedules()
        self.values = KeptValues()
        self.on_change: Callable[[Job | None, Job | None], None] = lambda before, after: None
        self.on_commit: Callable[[], None] = lambda: None
        self.on_failure: Callable[[LedgerError], None] = lambda error: None
        self._window_rows = ready_window_rows
        self._budget = PayloadBudget(payload_budget_bytes)
        self._touched: Touched = {}
        self._in_flight: deque[_Filled] = deque()
        self._dirty_queues: dict[str, None] = {}
        self._transitions: list[Transition] = []
        self._watches: list[Newer] = []

    def counters_of(self, queue: str) -> QueueCounters:
        """The counters of a queue, zero at first; its first event was just appended."""
        counters = self.counters.get(queue)
        if counters is None:
            counters = self.counters[queue] = QueueCounters(self.log.next_offset - 1)
        return counters

    def paused(self, queue: str) -> bool:
        """Whether the queue is paused."""
        counters = self.counters.get(queue)
        return counters is not None and counters.paused

    def window(self, queue: str) -> ReadyWindow:
        """The ready window of a queue; that of a queue that never had an event is empty, and not kept."""
        window = self.windows.get(queue)
        if window is None:
            window = ReadyWindow(self._window_rows, self._budget)
            if queue in self.counters:
                window.scan_from = self.hints.get(queue, FIRST_POSITION)
                self.windows[queue] = window
            else:
                window.bound = None
        return window

    # ------------------------------------------------------------------ staging

    def apply(self, before: Job | None, event: JobEvent, payload: PayloadRecord | None = None) -> Job | None:
        """Stage `event` and return the job after it; `payload` comes along when the job may go to the ready window."""
        log = self.log
        if type(event) in TEXT_FIELDS:
            event = log.seal(event)
        offset = log.append(event, None if before is None else before.last_offset)
        time_ms = log.time_ms
        after: Job | None
        if type(event) is Enqueued:
            after = born(event, offset, time_ms)
            id, queue = event.id, event.queue
        else:
            assert before is not None
            after = evolve(before, event, offset, time_ms)
            id, queue = before.spec.id, before.spec.queue
        window = self.windows.get(queue)
        if window is None:
            window = self.windows[queue] = self.window(queue)
        (self.counters.get(queue) or self.counters_of(queue)).apply(before, event, after)
        self._dirty_queues[queue] = None
        if type(event) is Moved and after is not None:
            window = self._arrive(window, after)
        touched = self._touched.get(id)
        self._touched[id] = (before if touched is None else touched[0], after)
        for watch in self._watches:
            watch.changes[id] = after
        if self.host.projections and self.host.active:
            self._transitions.append(Transition(offset, time_ms, event, before, after))
        if after is None and before is not None:
            for at in before.beside:  # a text of this very commit; a stored one is deleted with the index rows
                log.commit().payloads.pop(keys.text_key(at), None)
        if after is not None and after.state == "claimed":
            self.claimed[id] = after
        elif before is not None and before.state == "claimed":
            del self.claimed[id]
        if after is not None and after.state == "pending":
            window.offer(after, payload)
        elif before is not None and before.state == "pending":
            window.drop(id)
        self.on_change(before, after)
        return after

    def apply_ending(self, job: Job, events: Sequence[JobEvent]) -> Job:
        """Stage the events that end a claim; returns the job after them, a dead letter that is moved as it died."""
        ended = job
        for event in events:
            after = self.apply(job, event)
            assert after is not None
            job, ended = after, ended if type(event) is Moved else after
        return ended

    def _arrive(self, left: ReadyWindow, after: Job) -> ReadyWindow:
        """Count a moved job in its new queue, whose window is returned; it leaves the window where it was."""
        left.drop(after.id)
        queue = after.queue
        self.counters_of(queue).arrive(after)
        self._dirty_queues[queue] = None
        return self.window(queue)

    def apply_other(self, event: QueueEvent | LogEvent) -> int:
        """Stage an event that concerns no job; returns its offset."""
        event = self.log.seal(event)
        offset = self.log.append(event)
        if isinstance(event, QueueEvent):
            self.counters_of(event.queue).follow(event, offset)
            self._dirty_queues[event.queue] = None
        if self.host.active:
            self._transitions.append(Transition(offset, self.log.commit().time_ms, event, None, None))
        return offset

    def apply_schedule(self, event: ScheduleEvent) -> None:
        """Stage an event of a schedule."""
        event = self.log.seal(event)
        offset = self.log.append(event)
        self.schedules.apply(event, offset, self.log.commit())
        if self.host.active:
            self._transitions.append(Transition(offset, self.log.time_ms, event, None, None))

    def apply_value(self, event: ValueEvent, sealed: bytes = b"") -> None:
        """Stage the event of a key; `sealed`: salt and value of one that is set."""
        offset = self.log.append(event)
        self.values.apply(event, sealed, offset, self.log.commit())
        if self.host.active:
            self._transitions.append(Transition(offset, self.log.time_ms, event, None, None))

    # ------------------------------------------------------------------ reading

    def undurable(self, id: bytes) -> bool:
        """Whether the newest state of this job is not durable yet."""
        return id in self._touched or any(id in filled.touched for filled in self._in_flight)

    @contextmanager
    def watch(self) -> Iterator[Newer]:
        """Collect, while the block runs, all jobs staged or not yet durable by id: newer than the store's answers."""
        last = self._watches[-1] if self._watches else None
        if last is None or len(last.changes) > _WATCH_LIMIT_ROWS:
            last = Newer([*(filled.touched for filled in self._in_flight), self._touched])
            self._watches.append(last)
        last.readers += 1
        try:
            yield last
        finally:
            last.readers -= 1
            if not last.readers:
                self._watches.remove(last)

    async def job(self, id: bytes) -> Job | None:
        """The newest state of a job, staged or stored; None when there is none."""
        return (await self.jobs([id]))[0]

    async def jobs(self, job_ids: list[bytes]) -> list[Job | None]:
        """The newest states of these jobs, as of the moment this returns."""
        with self.watch() as newer:
            missing = [i for i in job_ids if i not in newer and i not in self.claimed]
            values = await self.log.store.get_many([job_key(i) for i in missing]) if missing else []
            stored = dict(zip(missing, values, strict=True))
            found: list[Job | None] = []
            for id in job_ids:
                if id in newer:
                    found.append(newer[id])
                elif id in self.claimed:
                    found.append(self.claimed[id])
                else:
                    value = stored.get(id)
                    found.append(None if value is None else decode_job(value))
            return found

    async def require(self, id: bytes, text: str) -> Job:
        """Like `job`, and raises `JobNotFound`."""
        job = await self.job(id)
        if job is None:
            raise JobNotFound(f"there is no job {text}: it never was, or it was swept (see its history in the log)")
        return job

    # ------------------------------------------------------------------ the log's commit hook

    def fill(self, commit: Commit, batch: Batch) -> Iterable[Changes] | None:
        """Add index changes, counters, hints and the rows of users' projections.

        Of a commit that touched many jobs the index changes are left for the caller to add, piece by piece. Nothing
        that is staged meanwhile can come into them: the jobs of this commit are put by themselves here and now.
        """
        filled = next((one for one in self._in_flight if one.commit is commit), None)
        if filled is None:
            touched, self._touched = self._touched, {}
            transitions, self._transitions = self._transitions, []
            changes = commit_rows.index_changes(touched) if len(touched) <= commit_rows.PIECE_JOBS else {}
            self.schedules.add_changes(changes)
            filled = _Filled(commit, touched, changes, self._add_queues(changes))
            self._in_flight.append(filled)
            self.host.project(transitions, commit.base_offset + len(commit.events), changes)
        batch.update(filled.changes)
        return (
            None
            if len(filled.touched) <= commit_rows.PIECE_JOBS
            else commit_rows.change_pieces(list(filled.touched.items()))
        )

    def _add_queues(self, changes: Changes) -> dict[str, bytes]:
        """Add the rows of the queues that the commit concerns; returns those of their counters."""
        counted: dict[str, bytes] = {}
        for queue in self._dirty_queues:
            counters = self.counters[queue]
            changes[stats_key(queue)] = counted[queue] = counters.encode()
            window = self.windows.get(queue)
            if window is None:
                continue
            position, hint = window.position_after(), self.hints.get(queue, FIRST_POSITION)
            # A hint must never lead; moving it forward is only worth a write now and then.
            if position < hint or position[0] != hint[0] or position[1] - hint[1] > _HINT_EVERY_CLAIMS:
                self.hints[queue] = position
                changes[keys.hint_key(queue)] = keys.hint_value(position)
        self._dirty_queues = {}
        return counted

    def committed(self, commit: Commit) -> None:
        """Drop the jobs of the oldest commit in flight, which is durable now."""
        self.durable_counters.update(self._in_flight.popleft().counted)
        if self.values.undurable:
            self.values.committed(commit.base_offset + len(commit.events))
        self.on_commit()

    def failed(self, error: LedgerError) -> None:
        """Pass the log's failure on: nothing will be durable any more."""
        self.on_failure(error)
