"""Counters: how many jobs are in each state now, and how many transitions there ever were."""

from collections import Counter

import pytest
from hypothesis import given

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import LogCorrupt, ProjectionDrift
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Event,
    Expired,
    JobEvent,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Replaced,
    Requeued,
    StepDone,
    Swept,
    UniqueReleased,
)
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.job import TRANSITIONS, born
from ledgerq.projections.stats import TOTALS, QueueCounters, stats_delta
from tests.support.histories import QUEUES, START_MS, enqueued, histories, job_id, quick, some

TOTAL_OF: dict[type[JobEvent], str] = {
    Enqueued: "enqueued",
    Promoted: "promoted",
    Claimed: "claimed",
    Acked: "acked",
    Nacked: "nacked",
    LeaseExpired: "lease_expired",
    CancelRequested: "cancel_requested",
    Cancelled: "cancelled",
    Requeued: "requeued",
    Swept: "swept",
    DeadLettered: "dead_lettered",
    Deleted: "deleted",
    Expired: "expired",
    Moved: "moved_out",
    StepDone: "step_done",
    Replaced: "replaced",
    UniqueReleased: "unique_released",
}


def folded(history: list[Transition]) -> Fold:
    """The fold of a history."""
    fold = Fold()
    for transition in history:
        fold.apply(transition.offset, transition.time_ms, transition.event)
    return fold


@some
@given(histories())
def test_counters_are_the_jobs_there_are_and_the_events_there_were(history: list[Transition]) -> None:
    fold = folded(history)
    for queue in QUEUES:
        states = Counter(job.state for job in fold.jobs.values() if job.queue == queue)
        events: Counter[str] = Counter()
        paused = False
        for transition in history:
            event, job = transition.event, transition.before or transition.after
            events["moved_in"] += isinstance(event, Moved) and event.queue == queue
            if isinstance(event, QueuePaused | QueueResumed):
                paused = isinstance(event, QueuePaused) if event.queue == queue else paused
            elif job is not None and job.queue == queue:
                assert isinstance(event, JobEvent)
                events[TOTAL_OF[type(event)]] += 1
                events["released"] += isinstance(event, Nacked) and event.released
                events["dead"] += getattr(event, "to", "") == "dead" or isinstance(event, DeadLettered)
        view = fold.counters_of(queue).view(queue)
        assert {state: getattr(view, state) for state in STATES} == {state: states[state] for state in STATES}
        assert view.totals == {name: events[name] for name in TOTALS}
        assert (view.queue, view.paused) == (queue, paused)


@quick
@given(histories())
def test_a_row_is_read_back_as_it_was(history: list[Transition]) -> None:
    for queue_counters in folded(history).counters.values():
        again = QueueCounters.decode(queue_counters.encode())
        assert (again.now, again.totals, again.paused) == (
            queue_counters.now,
            queue_counters.totals,
            queue_counters.paused,
        )
        assert (again.first_offset, again.measures()) == (queue_counters.first_offset, queue_counters.measures())


@some
@given(histories())
def test_what_is_counted_in_place_is_what_the_delta_says(history: list[Transition]) -> None:
    queue_counters, plain = QueueCounters(), QueueCounters()
    for _, _, event, before, after in history:
        if before is not None or after is not None:
            assert not isinstance(event, QueuePaused | QueueResumed)
            queue_counters.apply(before, event, after)  # type: ignore[arg-type]
            plain.add(stats_delta(before, event, after))  # type: ignore[arg-type]
    assert (queue_counters.now, queue_counters.totals) == (plain.now, plain.totals)


def test_every_job_event_has_a_total() -> None:
    assert set(TOTAL_OF) == set(TRANSITIONS)
    assert set(TOTALS) == {*TOTAL_OF.values(), "dead", "released", "moved_in"}


def test_a_job_that_stays_in_its_state_is_counted_once() -> None:
    fold = Fold()
    events: list[Event] = [enqueued(), Claimed(job_id(1), 1, 1, None), CancelRequested(job_id(1), "ann", "x")]
    for offset, event in enumerate(events):
        fold.apply(offset, START_MS, event)
    view = fold.counters_of("mail").view("mail")
    assert (view.claimed, view.totals["claimed"], view.totals["cancel_requested"]) == (1, 1, 1)


def test_the_bytes_of_a_row_never_change() -> None:
    queue_counters = QueueCounters()
    queue_counters.add(stats_delta(None, enqueued(), born(enqueued(), 0, START_MS)))
    queue_counters.paused = True
    counters = "96000100000000" + "9c010000000000000000000000" + "c3"
    durations = "dc0014" + 20 * "00"
    assert queue_counters.encode().hex() == "95" + counters + "00" + "94" + 3 * durations + "99" + 9 * "00"
    assert queue_counters.encode(1).hex() == "93" + counters


def test_a_row_of_format_1_has_no_histograms() -> None:
    queue_counters = QueueCounters()
    for number in range(3):
        queue_counters.add(stats_delta(None, enqueued(number), born(enqueued(number), 0, START_MS)))
    old = QueueCounters.decode(queue_counters.encode(1))
    assert (old.now, old.totals, old.first_offset) == (queue_counters.now, queue_counters.totals, 0)
    assert [view.count for view in old.measures().values()] == [0, 0, 0, 0]
    assert old.encode(1) == queue_counters.encode(1)


def test_a_row_with_fewer_totals_is_from_before_the_others_existed() -> None:
    queue_counters = QueueCounters.decode(pack(([0, 1, 0, 0, 0, 0], [5, 4], False)))
    assert queue_counters.totals == [5, 4, *[0] * (len(TOTALS) - 2)]
    assert queue_counters.view("mail").totals["promoted"] == 4


def test_a_row_with_more_totals_is_from_a_later_version_and_keeps_them() -> None:
    queue_counters = QueueCounters()
    queue_counters.totals = [5] * (len(TOTALS) + 2)
    row = queue_counters.encode()
    assert list(QueueCounters.decode(row).view("mail").totals) == list(TOTALS)
    assert QueueCounters.decode(row).encode() == row


def test_empty_counters_are_all_zero() -> None:
    view = QueueCounters().view("mail")
    assert [getattr(view, state) for state in STATES] == [0] * len(STATES)
    assert set(view.totals.values()) == {0}
    assert not view.paused


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        pack(5),
        pack([]),
        pack([[0] * 6, [0] * 12]),
        pack([[0] * 5, [0] * 12, False]),
        pack([[0] * 5 + ["x"], [0] * 12, False]),
        pack([[0] * 6, [0] * 11 + [None], False]),
        pack([0, 0, 0]),
        pack([[0] * 6, [0] * 12, False, 0]),
        pack([[0] * 6, [0] * 12, False, 0, []]),
        pack([[0] * 6, [0] * 12, False, None, [[0] * 20] * 3 + [[0] * 9]]),
        pack([[0] * 6, [0] * 12, False, 0, [[0] * 20] * 4]),
        pack([[0] * 6, [0] * 12, False, 0, [[0] * 20] * 3 + [[0] * 8 + [None]]]),
        pack([[0] * 6, [0] * 12, False, 0, [[0] * 20] * 3 + [5]]),
        pack([[0] * 6, [0] * 12, False, 0, [[0] * 20] * 3 + [[0] * 9], None]),
    ],
)
def test_a_malformed_row_is_drift(value: bytes) -> None:
    with pytest.raises(ProjectionDrift, match="rebuild-projections"):
        QueueCounters.decode(value)


def test_a_row_holds_where_the_open_bulk_began_and_nothing_once_it_is_over() -> None:
    fold = Fold()
    fold.apply(0, START_MS, enqueued())
    before = fold.counters_of("mail").encode()
    fold.apply(1, START_MS, BulkBegan("mail", "cancel", None, "", 0, 0, 0, 1, "ann", "x"))
    row = fold.counters_of("mail").encode()
    assert unpack(row) == (*unpack(before), 1)
    assert QueueCounters.decode(row).bulk == 1
    fold.apply(2, START_MS, BulkEnded("mail", 1, 0, 0))
    assert fold.counters_of("mail").encode() == before
    assert QueueCounters.decode(before).bulk == 0


@pytest.mark.parametrize(
    "events",
    [
        [BulkEnded("mail", 0, 0, 0)],
        [BulkBegan("mail", "cancel", None, "", 0, 0, 0, 2, "ann", "x")],
        [BulkBegan("mail", "cancel", None, "", 0, 0, 0, 0, "ann", "x")] * 2,
        [BulkBegan("mail", "cancel", None, "", 0, 0, 0, 0, "ann", "x"), BulkEnded("mail", 0, 0, 0)],
        [BulkBegan("mail", "cancel", None, "", 0, 0, 0, 0, "ann", "x"), BulkEnded("bill", 1, 0, 0)],
        [BulkBegan("", "cancel", None, "", 0, 0, 0, 0, "ann", "x")],
    ],
)
def test_a_bulk_that_no_writer_records_is_corrupt(events: list[Event]) -> None:
    fold = Fold()
    with pytest.raises(LogCorrupt):
        for offset, event in enumerate(events, 1):
            fold.apply(offset, START_MS, event)


def test_a_row_is_longer_only_once_a_payload_was_lost() -> None:
    """Rows that were written before lost payloads were counted are the same today, byte for byte."""
    fold = Fold()
    fold.apply(0, START_MS, enqueued())
    before = [len(unpack(fold.counters_of("mail").encode(version))[1]) for version in (1, 2)]
    fold.apply(1, START_MS, DeadLettered(job_id(1), START_MS, "ann", "the payload is lost"))
    after = [len(unpack(fold.counters_of("mail").encode(version))[1]) for version in (1, 2)]
    assert (before, after) == ([12, 12], [12, 13])
    again = QueueCounters.decode(fold.counters_of("mail").encode()).view("mail")
    assert (again.dead, again.totals["dead"], again.totals["dead_lettered"]) == (1, 1, 1)
