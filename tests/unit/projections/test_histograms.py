"""Times and attempts are measured from the events, and every number can be found again in the log."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog.events import (
    Acked,
    CancelRequested,
    Claimed,
    Enqueued,
    Event,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    Replaced,
    Requeued,
)
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.histograms import ATTEMPT_BOUNDS, DURATION_BOUNDS_MS, MEASURES, Histogram, HistogramView
from ledgerq.projections.stats import QueueCounters
from tests.support.histories import QUEUES, START_MS, enqueued, histories, job_id, some

ID = job_id(1)
ALL_IN_ONE = {"waiting": "claimed", "life": "acked", "attempts": "acked"}


def measured(*events: tuple[int, Event]) -> QueueCounters:
    """The counters after these events, each at so many ms after the start."""
    fold = Fold()
    for offset, (after_ms, event) in enumerate(events):
        fold.apply(offset, START_MS + after_ms, event)
    return fold.counters_of("mail")


def test_a_bucket_holds_what_is_at_most_its_bound() -> None:
    histogram = Histogram((10, 20))
    values = (-3, 0, 10, 11, 20, 21, 1000, 1001)
    for value in values:
        histogram.add(value, ID, START_MS)
    assert histogram.view() == HistogramView((10, 20), (3, 2, 3), 0 + 0 + 10 + 11 + 20 + 21 + 1000 + 1001)
    assert histogram.view().count == 8
    assert [last and last.value for last in histogram.exemplars()] == [10, 20, 1001]
    assert Histogram.decode((10, 20), histogram.encode()).view() == histogram.view()


@given(st.lists(st.integers(0, 100_000_000)))
def test_what_is_counted_without_exemplars_falls_into_the_same_buckets(values: list[int]) -> None:
    counted, added = Histogram(DURATION_BOUNDS_MS), Histogram(DURATION_BOUNDS_MS)
    for value in values:
        counted.count(value)
        added.add(value, ID, START_MS)
    assert counted.view() == added.view()
    below = [sum(value <= bound for value in values) for bound in DURATION_BOUNDS_MS]
    assert [sum(counted.counts[: at + 1]) for at in range(len(DURATION_BOUNDS_MS))] == below


def test_the_bounds_are_part_of_the_format() -> None:
    assert MEASURES == ("waiting", "running", "life", "attempts")
    assert ATTEMPT_BOUNDS == (1, 2, 3, 4, 5, 10, 20)
    assert [bound / 1000 for bound in DURATION_BOUNDS_MS] == [
        *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        *(60, 300, 900, 3600, 21600, 86400),
    ]


def test_a_job_done_at_once_is_measured_from_enqueued_to_acked() -> None:
    counters = measured((0, enqueued()), (30, Claimed(ID, 1, 1000, None)), (230, Acked(ID, START_MS + 9000)))
    assert (counters.waiting.sum, counters.running.sum, counters.life.sum, counters.attempts.sum) == (30, 200, 230, 1)


def test_waiting_begins_when_a_job_is_due_and_not_when_a_writer_noticed() -> None:
    due = (0, enqueued(due_ms=START_MS + 1000))
    counters = measured(due, (1400, Promoted(ID)), (1500, Claimed(ID, 1, 1000, None)), (1600, Acked(ID, 0)))
    assert (counters.waiting.sum, counters.running.sum, counters.life.sum) == (500, 100, 1600)


def test_each_retry_waits_anew_from_when_it_is_due() -> None:
    counters = measured(
        (0, enqueued()),
        (10, Claimed(ID, 1, 1000, None)),
        (60, Nacked(ID, "scheduled", START_MS + 1000, 0, False, "boom")),
        (1001, Promoted(ID)),
        (1005, Claimed(ID, 2, 1000, None)),
        (1105, Acked(ID, 0)),
    )
    assert (counters.waiting.sum, counters.waiting.view().count) == (10 + 5, 2)
    assert (counters.running.sum, counters.running.view().count) == (50 + 100, 2)
    assert (counters.life.sum, counters.attempts.sum) == (1105, 2)


def test_a_cancel_request_does_not_move_the_beginning_of_the_claim() -> None:
    claimed: list[tuple[int, Event]]
    claimed = [(0, enqueued()), (10, Claimed(ID, 1, 1000, None)), (500, CancelRequested(ID, "ann", "x"))]
    counters = measured(*claimed, (600, Nacked(ID, "pending", 0, 0, False, "stopped")))
    assert counters.running.sum == 590


@pytest.mark.parametrize(
    "end", [Nacked(ID, "pending", 0, 0, True, "released"), LeaseExpired(ID, "pending", 0, "interrupted")]
)
def test_a_claim_that_its_worker_did_not_settle_says_nothing_of_the_work(end: Event) -> None:
    counters = measured((0, enqueued()), (10, Claimed(ID, 1, 1000, None)), (999_999, end))
    assert counters.running.view().count == 0
    again = measured(
        (0, enqueued()),
        (10, Claimed(ID, 1, 1000, None)),
        (20, end),
        (70, Claimed(ID, 2, 1000, None)),
        (75, Acked(ID, 0)),
    )
    assert (again.waiting.sum, again.running.sum) == (10 + 50, 5)


def test_a_requeued_job_waits_from_then_on_and_lives_from_its_first_day() -> None:
    dead: list[tuple[int, Event]] = [
        (0, enqueued()),
        (5, Claimed(ID, 1, 1000, None)),
        (10, Nacked(ID, "dead", 0, START_MS + 99_999, False, "x")),
    ]
    again: list[tuple[int, Event]]
    again = [(5000, Requeued(ID, "ann", "x")), (5100, Claimed(ID, 1, 1000, None)), (5200, Acked(ID, 0))]
    counters = measured(*dead, *again)
    assert (counters.waiting.sum, counters.running.sum, counters.life.sum, counters.attempts.sum) == (105, 105, 5200, 1)


def test_a_commit_that_opened_before_the_job_was_due_counts_as_no_wait() -> None:
    due = (0, enqueued(due_ms=START_MS + 1000))
    counters = measured(due, (998, Promoted(ID)), (998, Claimed(ID, 1, 1000, None)))
    assert (counters.waiting.sum, counters.waiting.counts[0]) == (0, 1)


def test_an_exemplar_is_the_last_job_of_its_bucket() -> None:
    events: list[tuple[int, Event]] = []
    for number in range(3):
        job = job_id(number)
        events += [(100 * number, enqueued(number)), (100 * number + 3, Claimed(job, 1, 1, None))]
    last = measured(*events).waiting.exemplars()
    assert last[0] == (job_id(2), 3, START_MS + 203)
    assert not any(last[1:])


def expected(history: list[Transition], queue: str) -> dict[str, list[int]]:
    """What a plain reading of the history measures: nothing but the events, their times and who they are about."""
    found: dict[str, list[int]] = defaultdict(list)
    born: dict[bytes, tuple[str, int]] = {}
    since: dict[bytes, int] = {}
    tries: dict[bytes, int] = {}
    for _, time_ms, event, _, after in history:
        if isinstance(event, Enqueued):
            born[event.id] = (event.queue, time_ms)
            since[event.id], tries[event.id] = event.due_ms or time_ms, 0
        if isinstance(event, Claimed) and born[event.id][0] == queue:
            found["waiting"].append(max(0, time_ms - since[event.id]))
        if isinstance(event, Acked | Nacked) and born[event.id][0] == queue:
            if not (isinstance(event, Nacked) and event.released):
                found["running"].append(time_ms - since[event.id])
            if isinstance(event, Acked):
                found["life"].append(time_ms - born[event.id][1])
                found["attempts"].append(tries[event.id])
        if isinstance(event, Claimed):
            tries[event.id], since[event.id] = event.attempt, time_ms
        elif isinstance(event, Nacked | LeaseExpired | Requeued):
            since[event.id] = (event.due_ms if isinstance(event, Nacked) else 0) or time_ms
        elif isinstance(event, Replaced):
            since[event.id], tries[event.id] = event.due_ms or time_ms, 0
        elif isinstance(event, Moved):
            assert after is not None
            born[event.id], tries[event.id] = (event.queue, born[event.id][1]), 0
            since[event.id] = after.due_ms or time_ms
    return found


@some
@given(histories())
def test_what_is_measured_is_what_the_log_says(history: list[Transition]) -> None:
    fold = Fold()
    for transition in history:
        fold.apply(transition.offset, transition.time_ms, transition.event)
    for queue in QUEUES:
        counters, plain = fold.counters_of(queue), expected(history, queue)
        totals = counters.view(queue).totals
        for name, view in counters.measures().items():
            assert (view.sum, view.count) == (sum(plain[name]), len(plain[name])), name
            below = [sum(value <= bound for value in plain[name]) for bound in view.bounds]
            assert [sum(view.counts[: at + 1]) for at in range(len(view.bounds))] == below, name
            if name in ALL_IN_ONE:
                assert view.count == totals[ALL_IN_ONE[name]]
        running = totals["acked"] + totals["nacked"] - totals["released"]
        assert counters.running.view().count == running


@some
@given(histories())
def test_a_queue_knows_where_its_first_event_stands(history: list[Transition]) -> None:
    fold, first = Fold(), dict[str, int]()
    for transition in history:
        fold.apply(transition.offset, transition.time_ms, transition.event)
        job = transition.after or transition.before
        queue = getattr(transition.event, "queue", None) or (job and job.queue)
        if queue:
            first.setdefault(queue, transition.offset)
    assert {queue: counters.first_offset for queue, counters in fold.counters.items()} == first
