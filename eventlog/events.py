"""The event catalogue: every fact that a ledger can hold.

An event carries every fact that a decision took from configuration, clock or chance, so a fold needs only the log.
Ids are 16-byte ULIDs, times are ms since the Unix epoch, and the time of the event itself is its commit's.
An event is immutable; `msgspec.structs.replace` makes a changed copy. Its bytes are the array of its fields in order.
Next: codec.py turns them into bytes; projections/job.py has what follows from them.
"""

from typing import Any, Final, NamedTuple

from ledgerq.eventlog.facts import Sealed, Text
from ledgerq.eventlog.job_events import (
    STATES,
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Expired,
    JobEvent,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    Replaced,
    Requeued,
    State,
    Swept,
    UniqueReleased,
    UniqueUntil,
)
from ledgerq.eventlog.limit_events import Held, HoldReleased, LimitEvent, LimitsSet
from ledgerq.eventlog.log_events import Checkpointed, FilesSetAside, LogEvent, Rebuilt, WriterClosed, WriterOpened
from ledgerq.eventlog.queue_events import BulkBegan, BulkEnded, BulkKind, QueueEvent, QueuePaused, QueueResumed
from ledgerq.eventlog.schedule_events import (
    MissedPolicy,
    OverlapPolicy,
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Ticked,
    TickReason,
)
from ledgerq.eventlog.step_events import StepDone
from ledgerq.eventlog.value_events import KvDeleted, KvSet, ValueEvent

__all__ = [
    "Acked",
    "BulkBegan",
    "BulkEnded",
    "BulkKind",
    "CancelRequested",
    "Cancelled",
    "Checkpointed",
    "Claimed",
    "DeadLettered",
    "Deleted",
    "Enqueued",
    "Event",
    "Expired",
    "FilesSetAside",
    "Held",
    "HoldReleased",
    "JobEvent",
    "KvDeleted",
    "KvSet",
    "LeaseExpired",
    "LimitEvent",
    "LimitsSet",
    "LogEvent",
    "MissedPolicy",
    "Moved",
    "Nacked",
    "OverlapPolicy",
    "Promoted",
    "QueueEvent",
    "QueuePaused",
    "QueueResumed",
    "Rebuilt",
    "Record",
    "Replaced",
    "Requeued",
    "SECRET",
    "STATES",
    "ScheduleEvent",
    "SchedulePaused",
    "ScheduleRemoved",
    "ScheduleResumed",
    "ScheduleSet",
    "Sealed",
    "State",
    "StepDone",
    "Swept",
    "TEXT_FIELDS",
    "Text",
    "TickReason",
    "Ticked",
    "UniqueReleased",
    "UniqueUntil",
    "ValueEvent",
    "WriterClosed",
    "WriterOpened",
]


Event = JobEvent | QueueEvent | ScheduleEvent | ValueEvent | LimitEvent | LogEvent

SECRET: Final = "the secret"  # noqa: S105 - a name
"""The name in `Rebuilt` for the store's secret; no projection can have it."""

TEXT_FIELDS: Final[dict[type[Any], str]] = {
    Nacked: "error",
    **dict.fromkeys(
        (CancelRequested, Cancelled, Requeued, Deleted, Moved, QueuePaused, QueueResumed, BulkBegan), "reason"
    ),
    **dict.fromkeys((ScheduleSet, ScheduleRemoved, SchedulePaused, ScheduleResumed, Ticked), "reason"),
    **dict.fromkeys((LimitsSet, Held, HoldReleased), "reason"),
}
"""The field of an event in which somebody's own words stand."""


class Record(NamedTuple):
    """An event with its offset in the log, its commit's time (ms) and its writer's epoch."""

    offset: int
    time_ms: int
    epoch: int
    event: Event
