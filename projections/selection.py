"""The selection of many jobs of a queue by what they are: for bulk changes, and to see beforehand what one would do.

The jobs are found by the indexes of the queue and its states, a page at a time, so memory does not go with how many
there are.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, get_args

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument
from ledgerq.eventlog.events import STATES, BulkKind, State
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.index_keys import job_key
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import Job
from ledgerq.projections.texts import jobs_with_texts
from ledgerq.projections.view import LedgerView, listing_prefix

__all__ = [
    "BULK_STATES",
    "EXAMPLES",
    "Filter",
    "Survey",
    "bulk_states",
    "check_move",
    "matching",
    "survey",
    "with_error",
]

EXAMPLES: Final = 20
# To decode so many jobs, or texts of errors, holds the event loop for less than a millisecond.
_PAGE_ROWS: Final = 200
_TEXTS_AT_ONCE: Final = 10

BULK_STATES: Final[dict[BulkKind, tuple[State, ...]]] = {
    "requeue": ("dead",),
    "cancel": ("scheduled", "pending", "claimed"),
    "delete": ("done", "dead", "cancelled"),
    "move": ("scheduled", "pending", "dead"),
}
"""The states of the jobs that can be changed so, in the order in which a job comes into them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The jobs of one queue to which all of this applies; None: that does not matter.

    `state`: theirs now; `task`: the name of the task that they are for; `error_type`: the class of the exception by
    which the last try failed, exactly; `error`: a text that the last error contains, upper and lower case as given;
    `before` and `after`: aware times, of when the job last changed (when it died, say): before the one, not before the
    other.
    """

    queue: str
    state: State | None = None
    task: str | None = None
    error_type: str | None = None
    error: str | None = None
    before: datetime | None = None
    after: datetime | None = None

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for a value that can match nothing."""
        keys.queue_name_bytes(self.queue)
        if self.state is not None and self.state not in STATES:
            raise InvalidArgument(f"state {self.state!r} is none of {', '.join(STATES)}")
        for name in ("task", "error_type", "error"):
            text = getattr(self, name)
            if text is not None and (not isinstance(text, str) or not 1 <= len(text) <= _MAX_TEXT_CHARS):
                raise InvalidArgument(f"{name} is text of 1 to {_MAX_TEXT_CHARS} characters, not {text!r}")
        for name in ("before", "after"):
            moment = getattr(self, name)
            if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
                raise InvalidArgument(f"{name} is a datetime with a time zone, not {moment!r}: add tzinfo, say UTC")

    @property
    def after_ms(self) -> int:
        """`after` in ms since the Unix epoch, 0 for no limit."""
        return _ms(self.after)

    @property
    def before_ms(self) -> int:
        """`before` in ms since the Unix epoch, 0 for no limit."""
        return _ms(self.before)

    def fits(self, job: Job, states: Sequence[State]) -> bool:
        """Whether a job in one of these states fits, as far as that can be told without the text of its error."""
        return (
            job.state in states
            and job.spec.queue == self.queue
            and (self.task is None or _task(job) == self.task)
            and (self.error_type is None or job.error_type == self.error_type)
            and job.changed_ms >= self.after_ms
            and (self.before is None or job.changed_ms < self.before_ms)
        )


_MAX_TEXT_CHARS: Final = 1000


def _task(job: Job) -> str | None:
    try:
        return job.task
    except (ValueError, FormatTooNew):
        return None  # terms that can't be read name none


def _ms(moment: datetime | None) -> int:
    return 0 if moment is None else max(0, round(moment.timestamp() * 1000))


@dataclass(frozen=True, slots=True)
class Survey:
    """How many jobs match, and the first of them; `token` is the offset of the log's end when it was made."""

    count: int
    examples: list[Job]
    token: int


def bulk_states(what: BulkKind, filter: Filter) -> tuple[State, ...]:
    """The states in which the jobs are looked for; raises `InvalidArgument` for one that `what` does not apply to."""
    if what not in get_args(BulkKind):
        raise InvalidArgument(f"a bulk can {', '.join(get_args(BulkKind))}, and not {what!r}")
    if not isinstance(filter, Filter):
        raise InvalidArgument(f"the jobs are chosen by a Filter, not {filter!r}")
    if filter.state is None:
        if what in ("delete", "move"):
            raise InvalidArgument(f"say which jobs to {what}: state={', '.join(BULK_STATES[what])}")
        return BULK_STATES[what]
    if filter.state not in BULK_STATES[what]:
        raise InvalidArgument(f"jobs that are {filter.state} can't be changed so ({what}): {BULK_STATES[what]} can")
    return (filter.state,)


def check_move(filter: Filter, to: str) -> None:
    """Raise `InvalidArgument` where jobs can't be moved to."""
    bulk_states("move", filter)
    keys.queue_name_bytes(to)
    if to == filter.queue:
        raise InvalidArgument(f"the jobs are in queue {to!r} already: name another one")


async def matching(store: ReadStore, filter: Filter, states: Sequence[State]) -> AsyncGenerator[list[Job], None]:
    """The jobs that match, by the rows of the store, a page at a time; a page may be empty.

    One that changes its state meanwhile may come twice, or not at all.
    """
    for state in states:
        prefix = listing_prefix(filter.queue, state)
        start = prefix
        while rows := await _page(store, start, prefix):
            yield await _fitting(store, [value or key[-16:] for key, value in rows], filter, states)
            start = rows[-1][0] + b"\0"
            await asyncio.sleep(0)  # a store in memory answers at once


async def _page(store: ReadStore, start: bytes, prefix: bytes) -> list[tuple[bytes, bytes]]:
    # A scan of its own for each page: what is done with one may take long, and a scan that is open holds files.
    async for rows in store.scan(start, keys.after_prefix(prefix), page_rows=_PAGE_ROWS):
        return rows[:_PAGE_ROWS]
    return []


async def _fitting(store: ReadStore, ids: list[bytes], filter: Filter, states: Sequence[State]) -> list[Job]:
    values = await store.get_many([job_key(id) for id in ids])
    jobs = [decode_job(value) for value in values if value is not None]
    found = [job for job in jobs if filter.fits(job, states)]
    return await with_error(store, found, filter.error)


async def with_error(store: ReadStore, jobs: list[Job], wanted: str | None) -> list[Job]:
    """Those of the jobs whose last error contains this text; None: all."""
    if wanted is None or not jobs:
        return jobs
    shown: list[Job] = []
    for at in range(0, len(jobs), _TEXTS_AT_ONCE):
        shown += await jobs_with_texts(store, jobs[at : at + _TEXTS_AT_ONCE])
        await asyncio.sleep(0)
    return [job for job, with_text in zip(jobs, shown, strict=True) if wanted in with_text.error]


async def survey(view: LedgerView, what: BulkKind, filter: Filter) -> Survey:
    """Count the jobs that a bulk would change, and show the first 20."""
    states, token = bulk_states(what, filter), await view.log.end()
    count, examples = 0, list[Job]()
    async for jobs in matching(view.store, filter, states):
        count += len(jobs)
        examples += jobs[: EXAMPLES - len(examples)]
    return Survey(count, await jobs_with_texts(view.store, examples), token)
