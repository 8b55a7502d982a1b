"""The pace of commits: the credit that lets few go at once and many almost at once, and when two overlap."""

from itertools import pairwise

import pytest

from ledgerq.eventlog.pace import CommitPace
from ledgerq.eventlog.runtime.meters import CommitTimes

INTERVAL_S = 0.05


def closed_at(pace: CommitPace, asked_s: float, events: int) -> float:
    """When a commit asked for at `asked_s` is closed, if nothing joins it."""
    now_s = asked_s + max(0.0, pace.wait_s(asked_s, events))
    assert pace.wait_s(now_s, events) <= 1e-9
    pace.closed(now_s, events, in_flight=0)
    return now_s


def test_a_job_after_a_quiet_time_waits_for_nothing_nor_does_the_answer_to_it() -> None:
    pace = CommitPace(INTERVAL_S)
    for begun_s in (100.0, 101.0, 102.0):
        assert closed_at(pace, begun_s, 2) == begun_s
        assert closed_at(pace, begun_s + 0.02, 1) == begun_s + 0.02


def test_single_events_without_end_go_once_in_each_interval() -> None:
    pace = CommitPace(INTERVAL_S)
    times = [closed_at(pace, 100.0, 1)]
    for _ in range(100):
        times.append(closed_at(pace, times[-1] + 0.001, 1))
    steps = [later - earlier for earlier, later in pairwise(times[5:])]
    assert all(abs(step - INTERVAL_S) < 1e-6 for step in steps)


def test_a_hundred_events_wait_for_a_hundredth_of_an_interval() -> None:
    pace = CommitPace(INTERVAL_S)
    times = [closed_at(pace, 100.0, 100)]
    for _ in range(1000):
        times.append(closed_at(pace, times[-1], 100))
    assert times[-1] - times[-2] == pytest.approx(INTERVAL_S / 100)


@pytest.mark.parametrize("events", [1, 3, 10, 1000])
def test_no_more_commits_than_the_credit_pays_for(events: int) -> None:
    pace = CommitPace(INTERVAL_S)
    times = [closed_at(pace, 100.0, events)]
    while times[-1] < 110.0:
        times.append(closed_at(pace, times[-1] + 0.0001, events))
    elapsed_s = times[-1] - times[0]
    # Two intervals' worth may come at once.
    assert len(times) <= (elapsed_s / INTERVAL_S + 2) * events + 1


def test_enough_events_end_the_wait() -> None:
    pace = CommitPace(INTERVAL_S)
    for _ in range(2):
        closed_at(pace, 100.0, 1)
    assert pace.wait_s(100.0, 1) > 0
    pace.waits(100.02)
    enough = pace.enough_events
    assert pace.wait_s(100.02, int(enough) + 1) <= 0
    assert pace.wait_s(100.02, int(enough) - 1) > 0


def test_a_fixed_interval_is_a_plain_pause() -> None:
    pace = CommitPace(INTERVAL_S, is_fixed=True)
    assert closed_at(pace, 100.0, 1) == 100.0
    for events in (1, 100):
        assert pace.wait_s(100.01, events) == pytest.approx(0.04)
    pace.waits(100.01)
    assert pace.enough_events == float("inf")


def test_no_interval_is_no_wait() -> None:
    for is_fixed in (True, False):
        pace = CommitPace(0.0, is_fixed=is_fixed)
        assert [closed_at(pace, 100.0, 1) for _ in range(5)] == [100.0] * 5


@pytest.mark.parametrize(
    ("flush_s", "event_s", "events", "overlaps"),
    [
        (0.0, 20e-6, 100, False),  # in memory: nothing to wait for
        (0.001, 20e-6, 1000, True),  # a disk, bulk calls
        (0.001, 20e-6, 50, False),  # a disk, some callers
        (0.02, 20e-6, 100, False),  # an object store: its time is better shared by all
        (0.02, 20e-6, 3000, True),
    ],
)
def test_commits_overlap_when_two_flushes_take_less_than_the_work_of_a_round(
    flush_s: float, event_s: float, events: int, overlaps: bool
) -> None:
    cpu = [0.0]
    pace = CommitPace(overlap=None, cpu_s=lambda: cpu[0])
    for _ in range(200):
        cpu[0] += 0.00025 + events * event_s
        pace.closed(0.0, events, in_flight=0)
        pace.landed(CommitTimes(0.0001, flush_s, None), events)
    assert pace.overlaps(events) is overlaps


def test_a_cohort_is_half_of_all_events_under_way_and_the_next_one_as_large() -> None:
    pace = CommitPace(overlap=True)
    pace.landed(None, 100)
    assert pace.enough_events == 50
    pace.closed(0.0, 50, in_flight=0)
    assert pace.enough_events == 50
    pace.closed(0.0, 50, in_flight=1)
    assert pace.enough_events == float("inf")


def test_the_choice_can_be_made_for_it() -> None:
    assert CommitPace(overlap=True).overlaps(1)
    assert not CommitPace(overlap=False).overlaps(10**6)
