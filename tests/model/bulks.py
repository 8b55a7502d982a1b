"""The reference model of bulk changes: which jobs each may change, and that it leaves none of them."""

from typing import Any, Final

from ledgerq.eventlog.events import (
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    DeadLettered,
    Deleted,
    LeaseExpired,
    Moved,
    Nacked,
    Requeued,
)
from tests.model.records import UNFINISHED, ModelBulk, ModelJob, QueueCounts, Violation

__all__ = ["begin_bulk", "change_in_bulk", "end_bulk"]

_KINDS: Final[dict[str, tuple[type[Any], ...]]] = {
    "requeue": (Requeued,),
    "cancel": (Cancelled, CancelRequested),
    "delete": (Deleted,),
    "move": (Moved,),
}
_STATES: Final = {"requeue": ("dead",), "cancel": UNFINISHED, "delete": (), "move": ()}


def begin_bulk(counts: QueueCounts, offset: int, event: BulkBegan) -> None:
    """A bulk begins."""
    if counts.bulk is not None:
        raise Violation("bulk", f"a bulk begins at {offset} while that of {counts.bulk.offset} is open")
    if event.until > offset:
        raise Violation("bulk", f"the bulk at {offset} is about what comes later, up to {event.until}")
    error = str(event.reason)[-1 - event.error_chars : -1] if event.error_chars else ""
    counts.bulk = ModelBulk(offset, event, error)


def change_in_bulk(counts: QueueCounts, job: ModelJob, offset: int, event: Any, at: int) -> None:
    """A job is about to be changed by an event whose reason came with the event `at`."""
    bulk = counts.bulk
    if bulk is None or bulk.offset != at or job.id in bulk.asked:
        return
    if not isinstance(event, _KINDS[bulk.event.what]) or not _is_meant(bulk, job):
        raise Violation("bulk", f"{event} at {offset}, of {job.state}, is none that {bulk.event} is to bring")
    if isinstance(event, Moved) and event.queue != bulk.event.to:
        raise Violation("bulk", f"{event} at {offset} is not to where {bulk.event} moves jobs")
    if isinstance(event, CancelRequested):
        bulk.asked.add(job.id)
    bulk.changed += 1


def end_bulk(counts: QueueCounts, jobs: list[ModelJob], offset: int, event: BulkEnded) -> None:
    """A bulk ends: nothing that it was to change may be left."""
    bulk, counts.bulk = counts.bulk, None
    if bulk is None or (bulk.offset, bulk.changed) != (event.at, event.changed):
        raise Violation("bulk", f"{event} at {offset}, and {bulk} is open")
    if bulk.event.what == "cancel" and bulk.event.state is not None:
        return  # a job may have come into that state since
    left = [job for job in jobs if _is_meant(bulk, job) and not job.stop_asked]
    is_start = bulk.event.what in ("requeue", "move")
    excused = sum(
        (job.starts_before_ms > 0 and is_start) or (bulk.event.what == "requeue" and _wants_key(job)) for job in left
    )
    if len(left) > excused or len(left) > event.skipped:
        raise Violation("bulk", f"{event} at {offset} leaves {[(job.id.hex(), job.state) for job in left[:5]]}")


def _wants_key(job: ModelJob) -> bool:
    return job.unique_key is not None and job.until == "finished"


def _is_meant(bulk: ModelBulk, job: ModelJob) -> bool:
    what, state = bulk.event.what, bulk.event.state
    states = _STATES[what] if state is None else (state,)
    place = job.offset if what == "cancel" else job.life[-1].offset
    return job.state in states and place < bulk.event.until and bulk.error in _last_error(job)


def _last_error(job: ModelJob) -> str:
    for moment in reversed(job.life):
        event = moment.event
        if isinstance(event, Nacked):
            return str(event.error)
        if isinstance(event, LeaseExpired | DeadLettered):
            return event.reason
    return ""
