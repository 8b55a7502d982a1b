"""The records of the reference model: jobs as their events make them, the counters of their queues."""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.events import BulkBegan
from tests.model.measures import Measures

__all__ = ["UNFINISHED", "ModelBulk", "ModelJob", "Moment", "QueueCounts", "Violation"]

UNFINISHED: Final = ("scheduled", "pending", "claimed")


class Violation(Exception):
    """A promise was broken. `kind` is which one, in a word or two; the text is the details."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class Moment(NamedTuple):
    """A durable event of a job, and what the job was after it."""

    offset: int
    time_ms: int
    event: Any
    state: str
    attempt: int


@dataclass
class ModelJob:
    """A job as its events make it. Times are ms since the Unix epoch."""

    id: bytes
    queue: str
    priority: int
    offset: int
    max_attempts: int
    unique_key: bytes | None
    until: str
    state: str
    enqueued_ms: int
    due_ms: int = 0
    since_ms: int = 0
    attempt: int = 0
    claim_offset: int = -1
    claim_ms: int = 0
    lease_ms: int = 0
    sweep_at_ms: int = 0
    stop_asked: bool = False
    stop_asked_at_ms: int = 0  # like each `_at_ms` by the clock of the simulation
    changed_at_ms: int = 0
    key_held: bool = False
    hold_ms: int = 0
    ends: int = 0
    requeues: int = 0
    moves: int = 0  # of a dead letter to another queue
    starts_before_ms: int = 0
    crashes: int = 0
    snoozes: int = 0
    steps: dict[str, int | None] = field(default_factory=dict)
    kept: bool = False
    life: list[Moment] = field(default_factory=list)

    def gives_key_up(self, time_ms: int) -> bool:
        """Whether another job may take its key, whose period is over."""
        begun, ended = self.claim_offset >= 0, self.state in ("done", "dead", "cancelled")
        is_over = self.until == "period" or (begun if self.until == "claimed" else ended)
        return self.key_held and 0 < self.hold_ms <= time_ms and is_over


@dataclass
class ModelBulk:
    """An open bulk of a queue, and what it did so far."""

    offset: int
    event: BulkBegan
    error: str
    changed: int = 0
    asked: set[bytes] = field(default_factory=set)


@dataclass
class QueueCounts:
    """The expected counters of a queue."""

    states: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    paused: bool = False
    bulk: ModelBulk | None = None
    first_offset: int = -1
    measures: Measures = field(default_factory=Measures)

    def move(self, left: str, entered: str) -> None:
        """A job left one state for another."""
        self.states[left] = self.states.get(left, 0) - 1
        self.states[entered] = self.states.get(entered, 0) + 1

    def count(self, what: str) -> None:
        """One more of these."""
        self.totals[what] = self.totals.get(what, 0) + 1
