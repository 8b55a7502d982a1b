"""The ready window of one queue against a naive model: every pending job, sorted."""

from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.job import Job, born
from ledgerq.worker.engine.ready_window import FIRST_POSITION, PayloadBudget, Position, ReadyJob, ReadyWindow
from tests.support.histories import START_MS, enqueued, job_id, some

PAYLOAD: Final = PayloadRecord(bytes(16), None, b"x")
SIZE_BYTES: Final = 10


def pending(number: int, priority: int = 0, size_bytes: int = SIZE_BYTES) -> Job:
    """A pending job, enqueued at the offset of its number."""
    return born(enqueued(number, priority=priority, payload_bytes=size_bytes), number, START_MS)


def place_of(job: Job) -> Position:
    """Where it stands."""
    return (job.priority, job.offset)


def window_of(limit_rows: int = 10, limit_bytes: int = 1000, *, known: bool = True) -> ReadyWindow:
    """A window of a queue that has no pending jobs in the store, or of which nothing is known yet."""
    window = ReadyWindow(limit_rows, PayloadBudget(limit_bytes))
    if known:
        window.bound = None
    return window


class Model:
    """All pending jobs of a queue, and a window on them that must agree."""

    def __init__(self, limit_rows: int, limit_bytes: int, stored: Sequence[int]) -> None:
        self.budget = PayloadBudget(limit_bytes)
        self.window = ReadyWindow(limit_rows, self.budget)
        self.made = 0
        self.pending: dict[bytes, Job] = {}
        self.away: dict[bytes, Job] = {}
        for priority in stored:
            self._add(self._make(priority))
        if not stored:
            self.window.bound = None

    def _make(self, priority: int) -> Job:
        self.made += 1
        return pending(self.made, priority, SIZE_BYTES * (self.made % 3))

    def _add(self, job: Job) -> Job:
        self.pending[job.id] = job
        return job

    def step(self, what: str, chance: int) -> None:
        """Do one thing to both, and compare."""
        getattr(self, what)(chance)
        self.check()

    def enqueue(self, chance: int) -> None:
        """A new job."""
        self.window.offer(self._add(self._make(chance % 3)), PAYLOAD if chance % 2 else None)

    def come_back(self, chance: int) -> None:
        """A job that was claimed, or dead, is pending again in its old place."""
        if self.away:
            job = self.away.pop(sorted(self.away)[chance % len(self.away)])
            self.window.offer(self._add(job), PAYLOAD if chance % 2 else None)

    def cancel(self, chance: int) -> None:
        """A pending job leaves without having been handed out."""
        if self.pending:
            job = self.pending.pop(sorted(self.pending)[chance % len(self.pending)])
            self.away[job.id] = job
            self.window.drop(job.id)

    def claim(self, chance: int) -> None:
        """The first job is handed out, after its payload was loaded if need be."""
        window = self.window
        first = window.first()
        if first is None:
            assert window.take() is None
            return
        if first.payload is None:
            assert window.take() is None
            assert window.to_load(1, 0) == [first]
            window.insert(ReadyJob(first.job, PAYLOAD), urgent=True)
        taken = window.take()
        assert taken is not None
        assert taken.job == min(self.pending.values(), key=place_of)
        assert taken.payload is PAYLOAD
        self.away[taken.job.id] = self.pending.pop(taken.job.id)

    def refill(self, chance: int) -> None:
        """What the refiller does: scan from where the window ends."""
        window, page_rows = self.window, 1 + chance % 4
        if window.bound is None or not window.low:
            return
        start = max((window.bound[0], window.bound[1] + 1), window.scan_from)
        rows = sorted((place_of(job), job) for job in self.pending.values() if place_of(job) >= start)[:page_rows]
        window.bound = None if len(rows) < page_rows else rows[-1][0]
        window.scan_from = window.bound or window.scan_from
        for _, job in rows:
            window.insert(ReadyJob(job, PAYLOAD if chance % 2 else None))

    def check(self) -> None:
        """Check the invariant stated in the module ready_window."""
        window = self.window
        bound = window.bound
        inside = {job.id for job in self.pending.values() if bound is None or place_of(job) <= bound}
        assert window.jobs.keys() == inside, "every pending job at or before the bound is in the window"
        outside = [place_of(job) for job in self.pending.values() if job.id not in inside]
        assert all(position >= window.scan_from for position in outside), "a scan would miss a job"
        assert all(position >= window.position_after() for position in map(place_of, self.pending.values())), (
            "the hint leads"
        )
        first = window.first()
        assert (first.job if first else None) == min((self.pending[i] for i in inside), key=place_of, default=None)
        held = [ready.job.spec.payload_bytes for ready in window.jobs.values() if ready.payload is not None]
        assert self.budget.used_bytes == sum(held)
        assert len(window) <= 2 * window.limit_rows + 4
        assert len(window._heap) <= 4 * len(window) + 64


STEPS: Final = ("enqueue", "enqueue", "enqueue", "come_back", "cancel", "claim", "claim", "refill")


@some
@given(
    st.integers(1, 4),
    st.integers(0, 60),
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 23)), min_size=25, max_size=60),
)
def test_a_window_agrees_with_the_sorted_backlog(
    limit_rows: int, limit_bytes: int, stored: list[int], steps: list[tuple[str, int]]
) -> None:
    model = Model(limit_rows, limit_bytes, stored)
    for what, chance in steps:
        model.step(what, chance)


def test_jobs_are_handed_out_by_priority_then_in_order_of_enqueueing() -> None:
    window = window_of()
    for number, priority in ((1, 5), (2, 0), (3, 5), (4, 0)):
        assert window.offer(pending(number, priority), PAYLOAD)
    taken = [window.take() for _ in range(5)]
    assert [ready and ready.job.offset for ready in taken] == [2, 4, 1, 3, None]


def test_a_growing_backlog_stays_outside() -> None:
    window = window_of(limit_rows=3)
    assert [window.offer(pending(number), PAYLOAD) for number in range(1, 7)] == [True] * 3 + [False] * 3
    assert (len(window), window.bound, window.scan_from) == (3, (0, 3), (0, 4))
    assert window.offer(replace(pending(7), spec=enqueued(7, priority=0), offset=2), PAYLOAD)  # an old place


def test_urgent_jobs_that_push_in_make_the_window_shrink() -> None:
    window = window_of(limit_rows=2)
    window.offer(pending(1, 9), PAYLOAD)
    window.offer(pending(2, 9), PAYLOAD)
    for number in (3, 4, 5):
        assert window.offer(pending(number, 1), PAYLOAD)
    assert sorted(ready.position for ready in window.jobs.values()) == [(1, 3), (1, 4)]
    assert (window.bound, window.scan_from) == ((1, 4), (1, 5))


def test_a_window_that_knows_nothing_takes_nothing_in() -> None:
    window = window_of(known=False)
    assert not window.offer(pending(1), PAYLOAD)
    assert window.low
    assert window.position_after() == FIRST_POSITION
    assert window.first() is window.take() is None


@pytest.mark.parametrize(("limit_rows", "held", "low"), [(1, 0, True), (1, 1, False), (8, 1, True), (8, 2, False)])
def test_a_window_is_low_below_a_quarter_of_its_limit(limit_rows: int, held: int, low: bool) -> None:
    window = window_of(limit_rows)
    for number in range(1, held + 1):
        window.offer(pending(number), None)
    assert not window.low  # it holds everything there is
    window.bound = (0, held)
    assert window.low == low


def test_the_place_after_an_empty_window_is_behind_the_last_job() -> None:
    window = window_of()
    window.offer(pending(5, 3), PAYLOAD)
    assert window.position_after() == (3, 5)
    window.take()
    assert window.position_after() == (3, 6)


def test_the_place_after_a_full_window_that_was_emptied_is_the_first_job_outside() -> None:
    window = window_of(limit_rows=2)
    for number in (1, 2, 5):
        window.offer(pending(number), PAYLOAD)
    assert window.position_after() == (0, 1)
    assert [window.take() is None for _ in range(3)] == [False, False, True]
    assert window.position_after() == (0, 5)


# Payloads


def test_payloads_are_held_as_far_as_the_shared_budget_goes() -> None:
    budget = PayloadBudget(25)
    one, other = ReadyWindow(10, budget), ReadyWindow(10, budget)
    one.bound = other.bound = None
    one.offer(pending(1), PAYLOAD)
    other.offer(pending(2), PAYLOAD)
    one.offer(pending(3), PAYLOAD)
    assert [ready.payload for ready in one.jobs.values()] == [PAYLOAD, None]
    assert budget.used_bytes == 20
    other.drop(job_id(2))
    assert budget.used_bytes == 10
    other.drop(job_id(2))
    assert budget.used_bytes == 10


def test_what_the_next_claim_waits_for_is_loaded_in_spite_of_the_budget() -> None:
    window = window_of(limit_bytes=5)
    window.offer(pending(1), PAYLOAD)
    assert window.take() is None
    window.insert(ReadyJob(pending(1), PAYLOAD), urgent=True)
    taken = window.take()
    assert taken is not None
    assert taken.payload is PAYLOAD


def test_a_newer_state_of_a_job_replaces_the_older() -> None:
    window = window_of()
    window.offer(pending(1), PAYLOAD)
    newer = replace(pending(1), last_error="boom")
    window.insert(ReadyJob(newer, PAYLOAD))
    assert window._budget.used_bytes == SIZE_BYTES
    assert window.take() == ReadyJob(newer, PAYLOAD)
    assert window.take() is None
    assert window._budget.used_bytes == 0


def test_payloads_are_loaded_for_the_first_entries_and_bounded_in_bytes() -> None:
    window = window_of(limit_bytes=0)
    for number in range(1, 8):
        window.offer(pending(number), None)
    window.drop(job_id(2))
    window.insert(ReadyJob(pending(3), PAYLOAD), urgent=True)

    def asked(limit_rows: int, limit_bytes: int) -> list[int]:
        return [ready.job.offset for ready in window.to_load(limit_rows, limit_bytes)]

    assert asked(10, 1000) == [1, 4, 5, 6, 7]
    assert asked(3, 1000) == [1, 4]
    assert asked(10, 25) == [1, 4]
    assert asked(10, 0) == [1]  # at least one, however large
    assert asked(0, 1000) == []
    assert [window.jobs[job_id(n)].job.offset for n in (1, 3, 4, 5, 6, 7)] == [1, 3, 4, 5, 6, 7]
    first = window.first()
    assert first is not None
    assert first.job.offset == 1


def test_jobs_that_come_and_go_behind_the_first_leave_nothing_behind() -> None:
    window = window_of()
    window.offer(pending(1, 0), PAYLOAD)
    for number in range(2, 2000):
        window.offer(pending(number, 9), PAYLOAD)
        window.drop(job_id(number))
    assert len(window) == 1
    assert len(window._heap) <= 100
    assert window._budget.used_bytes == SIZE_BYTES


def test_a_job_that_left_and_came_back_is_not_lost_when_the_window_shrinks() -> None:
    window = window_of(limit_rows=2)
    window.offer(pending(1, 9), PAYLOAD)
    window.offer(pending(2, 1), PAYLOAD)
    window.drop(job_id(2))
    window.offer(pending(2, 1), PAYLOAD)
    for number, priority in ((3, 0), (4, 5), (5, 5)):
        window.offer(pending(number, priority), PAYLOAD)
    assert window.bound == (1, 2)
    taken = [window.take() for _ in range(3)]
    assert [ready and ready.job.offset for ready in taken] == [3, 2, None]
