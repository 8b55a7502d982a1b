"""The soak's own book of what was promised to whom, kept outside the queue and its process.

The processes under load write a fact to a file after each call that returned (`FACTS`); this book follows the log by
its own small rules, which share nothing with the state machine of projections/job.py, and says where the two differ.
It remembers the jobs that are alive and those swept lately, so its size does not go with the length of the run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Enqueued,
    Event,
    LeaseExpired,
    LogEvent,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Record,
    Requeued,
    Swept,
)

__all__ = ["FACTS", "Book"]

FACTS: Final[dict[str, str]] = {
    "E": "was enqueued",
    "C": "was claimed",
    "A": "was acked",
    "N": "was nacked",
    "R": "was released",
    "L": "had lost its claim",
    "X": "was cancelled",
    "Q": "was requeued",
    "!": "saw something wrong",
}
"""The first word of each line of facts. A job's id follows, then the offset of the claim, where there is one."""

_MAX_BROKEN: Final = 50
_UNFINISHED: Final = ("scheduled", "pending", "claimed")


@dataclass(slots=True)
class _Job:
    """What the log says of one job. `claims`: offset of the claimed event -> how it ended, "" while it holds."""

    queue: str
    state: str
    attempts: int
    max_attempts: int
    unique_key: bytes | None
    claims: dict[int, str] = field(default_factory=dict)
    claim: int = -1
    cancelled: bool = False
    requeued: int = 0
    swept: int = 0


class Book:
    """Facts and log, side by side. `broken` holds one line for each promise that was not kept (the first 50)."""

    def __init__(self) -> None:
        self.next_offset = 0
        self.broken: list[str] = []
        self.broken_count = 0
        self.facts = 0
        self.events: Counter[str] = Counter()
        self._jobs: dict[str, _Job] = {}
        self._unique: dict[tuple[str, bytes], str] = {}
        self._paused: dict[str, bool] = {}
        self._round = 0

    @property
    def unfinished(self) -> int:
        """How many jobs still wait or are worked on."""
        return sum(job.state in _UNFINISHED for job in self._jobs.values())

    @property
    def alive(self) -> int:
        """How many jobs are not swept yet."""
        return sum(not job.swept for job in self._jobs.values())

    # ------------------------------------------------------------------ the log

    def follow(self, record: Record) -> None:
        """Take the next record of the log."""
        if record.offset != self.next_offset:
            self._break(f"the log goes on at offset {record.offset} instead of {self.next_offset}")
        self.next_offset = record.offset + 1
        event = record.event
        self.events[type(event).__name__] += 1
        if isinstance(event, Enqueued):
            self._born(event, record.offset)
        elif isinstance(event, QueuePaused | QueueResumed):
            self._paused[event.queue] = isinstance(event, QueuePaused)
        elif not isinstance(event, LogEvent):
            self._change(job_id_text(event.job_id), event, record.offset)

    def _born(self, event: Enqueued, offset: int) -> None:
        job_id = job_id_text(event.job_id)
        if job_id in self._jobs:
            self._break(f"job {job_id} was enqueued a second time at offset {offset}")
        if event.unique_key is not None:
            holder = self._unique.get((event.queue, event.unique_key))
            if holder is not None:
                self._break(f"offset {offset}: the unique key of job {job_id} is held by unfinished job {holder}")
            self._unique[event.queue, event.unique_key] = job_id
        state = "scheduled" if event.due_ms else "pending"
        self._jobs[job_id] = _Job(event.queue, state, 0, event.max_attempts, event.unique_key)

    def _change(self, job_id: str, event: Event, offset: int) -> None:
        job = self._jobs.get(job_id)
        if job is None or job.swept:
            self._break(f"offset {offset}: {type(event).__name__} of job {job_id}, which is gone")
            return
        before = job.state
        allowed: tuple[str, ...] = ()
        match event:
            case Promoted():
                allowed, job.state = ("scheduled",), "pending"
            case Claimed():
                allowed, job.state = ("pending",), "claimed"
                self._claimed(job_id, job, event, offset)
            case Acked():
                allowed, job.state = ("claimed",), "done"
                job.claims[job.claim] = "A"
            case Nacked():
                allowed, job.state = ("claimed",), event.to
                job.claims[job.claim] = "R" if event.released else "N"
                job.attempts -= event.released
            case LeaseExpired():
                allowed, job.state = ("claimed",), event.to
                job.claims[job.claim] = "L"
            case CancelRequested():
                allowed = ("claimed",)
            case Cancelled():
                allowed, job.state = ("pending", "scheduled"), "cancelled"
                job.cancelled = True
            case Requeued():
                allowed, job.state = ("dead",), "pending"
                job.attempts = 0
                job.requeued += 1
            case DeadLettered():
                self._break(f"offset {offset}: the payload of job {job_id} was lost: {event.reason}")
                return
            case Swept():
                allowed, job.swept = ("done", "dead", "cancelled"), self._round + 1
        if before not in allowed:
            self._break(f"offset {offset}: {type(event).__name__} of job {job_id}, which was {before}")
        self._hold_key(job_id, job, before, offset)

    def _claimed(self, job_id: str, job: _Job, event: Claimed, offset: int) -> None:
        job.attempts += 1
        job.claim = offset
        job.claims[offset] = ""
        if event.attempt != job.attempts or job.attempts > job.max_attempts:
            self._break(
                f"offset {offset}: try {event.attempt} of job {job_id}, which had {job.attempts - 1} of "
                f"{job.max_attempts} tries before"
            )

    def _hold_key(self, job_id: str, job: _Job, before: str, offset: int) -> None:
        """A key is held while its job is unfinished: given up at the end, taken again by a requeue."""
        if job.unique_key is None or (before in _UNFINISHED) == (job.state in _UNFINISHED):
            return
        key = (job.queue, job.unique_key)
        if job.state not in _UNFINISHED:
            self._unique.pop(key, None)
        elif (holder := self._unique.setdefault(key, job_id)) != job_id:
            self._break(f"offset {offset}: job {job_id} was requeued while job {holder} held its unique key")

    # ------------------------------------------------------------------ the facts

    def compare(self, facts: Iterable[str]) -> None:
        """Hold the facts against the log, which was followed to a place after the last of them."""
        for line in facts:
            self.facts += 1
            kind, _, rest = line.partition(" ")
            if kind == "!":
                self._break(rest)
                continue
            job_id, _, offset = rest.partition(" ")
            job = self._jobs.get(job_id)
            if job is None or kind not in FACTS:
                self._break(f"job {job_id} {FACTS.get(kind, kind)}, but the log has no such job")
            elif not _holds(job, kind, int(offset or -1)):
                self._break(f"job {job_id} {FACTS[kind]} (claim {offset or '-'}), but the log does not say so")

    def compare_counts(self, counts: Mapping[str, Mapping[str, int]], paused: Mapping[str, bool]) -> None:
        """Hold the queues' own counters, by queue and state, and their paused flags, against this book."""
        own: dict[str, Counter[str]] = {queue: Counter() for queue in counts}
        for job in self._jobs.values():
            if not job.swept:
                own.setdefault(job.queue, Counter())[job.state] += 1
        for queue, counted in own.items():
            there = {state: count for state, count in counts.get(queue, {}).items() if count}
            if there != dict(counted):
                self._break(f"queue {queue!r} counts {there}, but the log makes it {dict(counted)}")
            if paused.get(queue, False) != self._paused.get(queue, False):
                self._break(f"queue {queue!r} says paused={paused.get(queue)}, but the log does not")

    def turn(self) -> None:
        """Forget the jobs that were swept a round ago: no fact about them can arrive any more."""
        self._round += 1
        self._jobs = {job_id: job for job_id, job in self._jobs.items() if not job.swept or job.swept >= self._round}

    def _break(self, text: str) -> None:
        self.broken_count += 1
        if len(self.broken) < _MAX_BROKEN:
            self.broken.append(text)


def _holds(job: _Job, kind: str, claim: int) -> bool:
    match kind:
        case "E":
            return True
        case "C":
            return claim in job.claims
        case "X":
            return job.cancelled
        case "Q":
            return job.requeued > 0
        case "L":
            # An acknowledged claim can't have been lost; one that ended in any other way can.
            return claim in job.claims and job.claims[claim] != ""
    return job.claims.get(claim) == kind
