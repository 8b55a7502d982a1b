"""The fold of a stretch of the log, in memory. Replay, audit, rebuild and as-of all use it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from ledgerq.eventlog.blobs import decode_blob
from ledgerq.eventlog.codec import RecordBatch
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import (
    SECRET,
    TEXT_FIELDS,
    Acked,
    BulkBegan,
    BulkEnded,
    Checkpointed,
    Claimed,
    DeadLettered,
    Enqueued,
    Event,
    Expired,
    JobEvent,
    LimitEvent,
    Moved,
    QueueEvent,
    Rebuilt,
    Replaced,
    ScheduleEvent,
    ScheduleSet,
    Sealed,
    StepDone,
    Ticked,
    UniqueReleased,
    ValueEvent,
)
from ledgerq.eventlog.keys import MAX_PRIORITY, MAX_QUEUE_NAME_BYTES
from ledgerq.eventlog.terms import decode_terms
from ledgerq.projections.job import TRANSITIONS, Job, born, evolve, holds_key
from ledgerq.projections.job_table import JobTable
from ledgerq.projections.limits import LimitTable, limits_fault
from ledgerq.projections.schedule import Schedule, evolve_schedule, schedule_fault
from ledgerq.projections.stats import QueueCounters
from ledgerq.projections.values import SetKeys

__all__ = ["Fold", "Transition"]

_TRANSITIONS: Final[dict[type[Event], Mapping[str, tuple[str, ...]]]] = dict(TRANSITIONS.items())
_OF_KEYS: Final = frozenset((Replaced, UniqueReleased))


@lru_cache(1000)
def _is_name(queue: str) -> bool:
    return 1 <= len(queue.encode()) <= MAX_QUEUE_NAME_BYTES and "\0" not in queue


def _check_terms(offset: int, terms: bytes) -> None:
    try:
        if blob := decode_terms(terms).blob:
            decode_blob(blob)
    except ValueError as error:
        raise LogCorrupt(offset, str(error)) from error


def _check_bulk(offset: int, event: BulkBegan | BulkEnded, open_at: int) -> None:
    """Raise `LogCorrupt` for what no writer records: a queue has one open bulk at a time."""
    wrong = open_at or event.until > offset if isinstance(event, BulkBegan) else not open_at or event.at != open_at
    if wrong:
        raise LogCorrupt(offset, f"the event {type(event).__name__} makes no sense where the open bulk is {open_at}")


def _check_step(offset: int, job: Job, name: str) -> None:
    """Raise `LogCorrupt` for a step that is done twice."""
    if any(step == name for step, _ in job.steps):
        raise LogCorrupt(offset, f"the job's step {name[:40]!r} is done for the second time")


def _check_tree(offset: int, event: Checkpointed, before: Checkpointed | None) -> None:
    """Raise `LogCorrupt` for a tree of events that the log did not have yet, or one that shrank."""
    is_smaller = before is not None and (event.tree_size < before.tree_size or event.next_offset < before.next_offset)
    if is_smaller or not 0 < event.next_offset <= offset:
        raise LogCorrupt(offset, f"the checkpoint of {event.origin!r} is of a tree that this log can't have had")


def _check_start(offset: int, time_ms: int, job: Job, event: JobEvent) -> None:
    """Raise `LogCorrupt` for a claim of a job that has expired, and for one that expired before its time."""
    is_claim = type(event) is Claimed
    if is_claim or type(event) is Expired:
        before_ms = job.starts_before_ms
        if (time_ms >= before_ms > 0) if is_claim else not time_ms >= before_ms > 0:
            what = "was claimed at" if is_claim else "expired at"
            raise LogCorrupt(offset, f"the job {what} {time_ms} ms, and is to start before {before_ms or 'no time'}")


def _check_unique(offset: int, time_ms: int, job: Job, event: JobEvent) -> None:
    """Raise `LogCorrupt` for a unique key that is given up, or for another time, before its period is over."""
    if type(event) is UniqueReleased and (not job.unique_held or holds_key(job, time_ms)):
        raise LogCorrupt(offset, f"the job gave up its unique key at {time_ms} ms, and holds it until {job.hold_ms}")
    if type(event) is Replaced:
        if event.terms is not None:
            _check_terms(offset, event.terms)
        hold_ms = 0 if event.terms is None else decode_terms(event.terms).hold_ms
        if not job.unique_held or job.steps or job.blob or hold_ms != job.hold_ms:
            raise LogCorrupt(offset, f"the job was replaced, and its unique key would be held until {hold_ms} ms")


class Transition(NamedTuple):
    """One event with the job before and after it; both None for events that concern no job."""

    offset: int
    time_ms: int
    event: Event
    before: Job | None
    after: Job | None


class Fold:
    """All jobs not yet swept, all counters, schedules, limits and keys with values, after the events so far.

    Memory goes with the jobs and the keys, a quarter of a kilobyte for each.
    """

    def __init__(self) -> None:
        self.jobs = JobTable()
        self.counters: dict[str, QueueCounters] = {}
        self.schedules: dict[str, Schedule] = {}
        self.values = SetKeys()
        self.limits = LimitTable()
        # Of the jobs that are there, those whose payload the log records as lost.
        self.without_payload: set[bytes] = set()
        # By offset, the texts that stand beside the log: of the jobs and schedules that are there, and of other events.
        self.texts: dict[int, Sealed] = {}
        # Unique keys in events before it were digested with a secret that is lost.
        self.secret_since = 0
        # The last noted checkpoint of each published tree.
        self.trees: dict[str, Checkpointed] = {}
        self.next_offset = 0
        self.time_ms = 0

    def counters_of(self, queue: str) -> QueueCounters:
        """The counters of `queue`, zero at first."""
        counters = self.counters.get(queue)
        if counters is None:
            counters = self.counters[queue] = QueueCounters(max(self.next_offset - 1, 0))
        return counters

    def apply(self, offset: int, time_ms: int, event: Event, distance: int | None = None) -> Transition:
        """Apply one event; raises `LogCorrupt` for one that the state machine doesn't allow in this state.

        And for one that no writer made, since the job's index rows could not hold it, or whose `distance` (see
        codec.py) does not lead to the job's event before: one was left out or put in between.
        """
        before, after = self._apply(offset, time_ms, event, distance)
        self.jobs.pack_some()
        return Transition(offset, time_ms, event, before, after)

    def apply_batch(self, batch: RecordBatch) -> None:
        """Apply a whole record batch."""
        apply, time_ms = self._apply, batch.time_ms
        for offset, event, distance in batch.steps():
            apply(offset, time_ms, event, distance)
        self.jobs.pack_some()

    def _apply(self, offset: int, time_ms: int, event: Event, distance: int | None) -> tuple[Job | None, Job | None]:
        self.next_offset = offset + 1
        self.time_ms = time_ms
        states = _TRANSITIONS.get(type(event))
        if type(event) is Acked:
            if event.result is not None:
                self._add_text(offset, event.result)
        elif type(event) is StepDone:
            self._add_text(offset, event.value)
        elif (name := TEXT_FIELDS.get(type(event))) is not None:
            self._add_text(offset, getattr(event, name))
        if states is None:
            if distance:
                raise LogCorrupt(offset, f"the event {type(event).__name__} names one before it, and is of no job")
            self._apply_other(offset, time_ms, event)
            return None, None
        if TYPE_CHECKING:
            assert isinstance(event, JobEvent)
        id = event.id
        jobs = self.jobs
        before = jobs.recent.get(id)
        if before is None and jobs.rows:
            before = jobs.find(id)
        allowed = states.get("new" if before is None else before.state)
        if allowed is None:
            state = "unknown" if before is None else before.state
            raise LogCorrupt(offset, f"the event {type(event).__name__} makes no sense for a job that is {state}")
        if distance is not None and distance != (0 if before is None else offset - before.last_offset):
            what = f"the event {type(event).__name__} names offset {offset - distance} as the job's event before it"
            raise LogCorrupt(offset, f"{what}, and that is {'none' if before is None else before.last_offset}")
        after: Job | None
        if before is None:
            assert isinstance(event, Enqueued)
            if not (_is_name(event.queue) and 0 <= event.priority <= MAX_PRIORITY):
                raise LogCorrupt(offset, "the enqueued job's queue name or priority is none that a job can have")
            if event.terms is not None:
                _check_terms(offset, event.terms)
            queue, after = event.queue, born(event, offset, time_ms)
        else:
            if before.spec.terms is not None:
                _check_start(offset, time_ms, before, event)
            if type(event) in _OF_KEYS:
                _check_unique(offset, time_ms, before, event)
            queue, after = before.spec.queue, evolve(before, event, offset, time_ms)
            if type(event) is StepDone:
                _check_step(offset, before, event.name)
        if ("gone" if after is None else after.state) not in allowed:
            raise LogCorrupt(offset, f"the event {type(event).__name__} leads to a state that it can't lead to")
        if after is not None and (after.due_ms | after.sweep_at_ms) < 0:
            raise LogCorrupt(offset, f"the event {type(event).__name__} names a time before 1970")
        self.counters_of(queue).apply(before, event, after)
        if type(event) is Moved and after is not None:
            if not _is_name(event.queue) or event.queue == queue:
                raise LogCorrupt(offset, f"a job can't be moved from queue {queue!r} to {event.queue[:40]!r}")
            self.counters_of(event.queue).arrive(after)
        if self.limits.by_queue and type(event) is Claimed:
            self.limits.claimed(queue, time_ms)
        if before is not None and before.texts and after is not None and after.texts != before.texts:
            for at in set(before.texts).difference(after.texts):
                self.texts.pop(at, None)
        if after is None:
            for at in () if before is None else before.beside:
                self.texts.pop(at, None)
            jobs.remove(id)
            self.without_payload.discard(id)
        else:
            jobs.recent[id] = after
            if type(event) is DeadLettered:
                self.without_payload.add(id)
        return before, after

    def _apply_other(self, offset: int, time_ms: int, event: Event) -> None:
        """Apply an event of no job."""
        if isinstance(event, QueueEvent):
            if not _is_name(event.queue):
                raise LogCorrupt(offset, f"{event.queue[:40]!r} is no queue's name")
            counters = self.counters_of(event.queue)
            if isinstance(event, BulkBegan | BulkEnded):
                _check_bulk(offset, event, counters.bulk)
            counters.follow(event, offset)
        elif isinstance(event, ScheduleEvent):
            self._apply_schedule(offset, time_ms, event)
        elif isinstance(event, LimitEvent):
            if fault := limits_fault(event):
                raise LogCorrupt(offset, fault)
            self.limits.apply(event)
        elif isinstance(event, ValueEvent):
            self.values.apply(offset, event)
        elif type(event) is Rebuilt and SECRET in event.names:
            self.secret_since = offset
        elif type(event) is Checkpointed:
            _check_tree(offset, event, self.trees.get(event.origin))
            self.trees[event.origin] = event

    def _apply_schedule(self, offset: int, time_ms: int, event: ScheduleEvent) -> None:
        before = self.schedules.get(event.name)
        if fault := schedule_fault(before, event):
            raise LogCorrupt(offset, fault)
        if isinstance(event, Ticked) and event.job is not None and self.has(event.job):
            job = self.jobs.find(event.job)
            if job is None or job.offset != offset - 1:
                raise LogCorrupt(offset, f"the tick of schedule {event.name!r} names a job that was not enqueued by it")
        after = evolve_schedule(before, event, offset, time_ms)
        if before is not None and before.text_at is not None and (after is None or isinstance(event, ScheduleSet)):
            self.texts.pop(before.text_at, None)
        if after is None:
            del self.schedules[event.name]
        else:
            self.schedules[event.name] = after

    def has(self, id: bytes) -> bool:
        """Whether this fold is one of this job too."""
        return True

    def _add_text(self, offset: int, text: object) -> None:
        if type(text) is Sealed:
            if text.at > offset:
                raise LogCorrupt(offset, "the event names a text or a result of a later one")
            if text.at == offset:
                self.texts[offset] = text
