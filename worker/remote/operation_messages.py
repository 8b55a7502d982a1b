"""The messages for operators: changes of many jobs at once, and schedules. The others are in wire.py."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ledgerq.eventlog.events import BulkKind, State
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.selection import Filter
from ledgerq.worker.bulk import BulkResult
from ledgerq.worker.remote import wire

__all__ = ["BulkAnswer", "BulkBody", "BulksAnswer", "FilterBody", "ScheduleAnswer", "SchedulesAnswer", "StartedAnswer"]

Count = Annotated[int, Meta(ge=0)]


class FilterBody(wire.Message):
    """The jobs of a queue that are meant: those to which all of this applies, see `Filter`."""

    state: State | None = None
    task: str | None = None
    error_type: str | None = None
    error: str | None = None
    before: datetime | None = None
    after: datetime | None = None


class BulkBody(wire.ReasonBody, kw_only=True):
    """A change of many jobs, as of `Queue.bulk`. With `dry_run` nothing is changed; `to`: where they are moved."""

    what: BulkKind
    filter: FilterBody
    dry_run: bool = True
    expect: Count | None = None
    token: Count | None = None
    to: str | None = None


class BulkAnswer(wire.Message):
    """What came of it; see `BulkResult`."""

    what: BulkKind
    queue: str
    filter: FilterBody
    count: int
    skipped: int
    examples: list[dict[str, Any]]
    token: int
    offset: int | None = None


class BulksAnswer(wire.Message):
    """What came of those that were interrupted."""

    bulks: list[BulkAnswer]


class ScheduleAnswer(wire.Message):
    """A schedule as it is now."""

    schedule: dict[str, Any]


class SchedulesAnswer(wire.Message):
    """All schedules, in order of their names."""

    schedules: list[dict[str, Any]]


class StartedAnswer(wire.Message):
    """The job that was added."""

    id: str


def filter_body(filter: Filter) -> FilterBody:
    """A filter as a message, without its queue."""
    return FilterBody(**{name: value for name, value in asdict(filter).items() if name != "queue"})


def filter_of(queue: str, body: FilterBody) -> Filter:
    """The filter of `filter_body`; raises `InvalidArgument`."""
    return Filter(queue=queue, **{name: getattr(body, name) for name in body.__struct_fields__})


def bulk_answer(result: BulkResult) -> BulkAnswer:
    """A result as a message."""
    return BulkAnswer(
        what=result.what,
        queue=result.filter.queue,
        filter=filter_body(result.filter),
        count=result.count,
        skipped=result.skipped,
        examples=[{"id": job.job_id, **wire.fields_of(job)} for job in result.examples],
        token=result.token,
        offset=result.offset,
    )


def bulk_result(answer: BulkAnswer) -> BulkResult:
    """The result of `bulk_answer`, as msgpack has it."""
    examples = [wire.job_of(fields) for fields in answer.examples]
    filter = filter_of(answer.queue, answer.filter)
    return BulkResult(answer.what, filter, answer.count, answer.skipped, examples, answer.token, answer.offset)


def schedule_fields(schedule: Schedule) -> dict[str, Any]:
    """A schedule by the names of its fields; its arguments are not shown."""
    return wire.fields_of(schedule) | {"setting": wire.fields_of(schedule.setting)}


def schedule_of(fields: dict[str, Any]) -> Schedule:
    """The schedule of `schedule_fields`, as msgpack has it."""
    return msgspec.convert([*(fields | {"setting": [*fields["setting"].values()]}).values()], Schedule)
