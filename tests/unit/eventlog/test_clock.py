"""Clocks: a manual one that moves when set, the system's that never rings early, and sleeping on either."""

import asyncio
import time

import pytest

from ledgerq.eventlog.clock import ManualClock, SystemClock, sleep_until, time_text
from ledgerq.eventlog.errors import ClockWentBack
from tests.support.loops import settle

START_MS = ManualClock().now_ms()
DAY_S = 86_400
LIMIT_S = 60.0


def test_a_manual_clock_stands_still() -> None:
    clock = ManualClock(5)
    assert (clock.now_ms(), clock.now_ms()) == (5, 5)
    clock.advance(seconds=0.007)
    assert clock.now_ms() == 12
    clock.set(3)
    assert clock.now_ms() == 3


def test_a_manual_clock_moves_by_seconds_to_the_millisecond() -> None:
    clock = ManualClock(1_000)
    clock.advance(seconds=1.2345678)
    assert clock.now_ms() == 2_235
    with pytest.raises(TypeError):
        clock.advance(1000)  # type: ignore[call-arg]  # a number alone says no unit


def test_callbacks_run_in_the_order_of_their_times() -> None:
    clock, rung = ManualClock(0), list[str]()
    for when_ms, name in ((30, "c"), (10, "a"), (20, "b"), (10, "a2"), (31, "late")):
        clock.call_at(when_ms, lambda name=name: rung.append(name))  # type: ignore[misc]
    clock.advance(seconds=0.009)
    assert rung == []
    clock.advance(seconds=0.021)
    assert rung == ["a", "a2", "b", "c"]
    clock.advance(seconds=1)
    assert rung == ["a", "a2", "b", "c", "late"]


def test_a_cancelled_timer_does_not_ring() -> None:
    clock, rung = ManualClock(0), list[int]()
    timer = clock.call_at(10, lambda: rung.append(10))
    clock.call_at(20, lambda: rung.append(20))
    timer.cancel()
    timer.cancel()
    assert clock.next_due_ms() == 20
    clock.advance(seconds=0.1)
    assert rung == [20]
    assert clock.next_due_ms() is None


def test_going_back_rings_nothing_and_makes_no_wait_longer() -> None:
    clock, rung = ManualClock(100), list[int]()
    clock.call_at(110, lambda: rung.append(1))
    clock.call_at(100 + 3600, lambda: rung.append(2))
    clock.set(50)
    assert rung == []
    assert clock.next_due_ms() == 60
    clock.advance(seconds=0.009)
    assert rung == []
    clock.advance(seconds=0.001)
    assert rung == [1]
    clock.set(50 + 3599)
    assert rung == [1]
    clock.advance(seconds=0.001)
    assert rung == [1, 2]


async def test_a_timer_that_is_due_already_rings_on_the_next_turn() -> None:
    clock, rung = ManualClock(100), list[int]()
    clock.call_at(100, lambda: rung.append(1))
    assert rung == []
    await settle(1)
    assert rung == [1]


async def test_a_callback_may_set_and_cancel_other_timers() -> None:
    clock, rung = ManualClock(0), list[str]()
    other = clock.call_at(20, lambda: rung.append("other"))

    def ring() -> None:
        rung.append("first")
        other.cancel()
        clock.call_at(15, lambda: rung.append("new"))

    clock.call_at(10, ring)
    clock.advance(seconds=0.017)
    # The one made on the way was due as well.
    assert rung == ["first", "new"]


async def test_sleeping_ends_when_the_time_has_come() -> None:
    clock = ManualClock()
    sleep = asyncio.create_task(sleep_until(clock, START_MS + 10))
    await settle()
    clock.advance(seconds=0.009)
    await settle()
    assert not sleep.done()
    clock.advance(seconds=0.001)
    await sleep
    await sleep_until(clock, START_MS - 5)


async def test_a_sleep_that_is_cancelled_leaves_no_timer() -> None:
    clock = ManualClock()
    sleep = asyncio.create_task(sleep_until(clock, START_MS + 10))
    await settle()
    sleep.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleep
    assert clock.next_due_ms() is None


def test_the_systems_clock_tells_the_wall_time_in_ms() -> None:
    before = time.time_ns() // 1_000_000
    assert before <= SystemClock().now_ms() <= time.time_ns() // 1_000_000


async def test_a_system_timer_rings_once_and_never_early() -> None:
    clock, rung = SystemClock(), list[int]()
    due_ms = clock.now_ms() + 3
    clock.call_at(due_ms, lambda: rung.append(clock.now_ms()))
    cancelled = clock.call_at(due_ms, lambda: rung.append(-1))
    cancelled.cancel()
    await sleep_until(clock, due_ms + 2)
    assert len(rung) == 1
    assert rung[0] >= due_ms


async def test_a_system_timer_of_the_past_rings_on_a_later_turn() -> None:
    clock, rung = SystemClock(), list[int]()
    clock.call_at(0, lambda: rung.append(1))
    assert rung == []
    await sleep_until(clock, 0)
    assert rung == [1]


class WallClock:
    """The wall clock of `time`, which can be set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_ns = 0
        real_ns = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + self._ahead_ns)
        monkeypatch.setattr(time, "time", lambda: (real_ns() + self._ahead_ns) / 1e9)

    def set(self, seconds: float) -> None:
        """Set it forward, or back."""
        self._ahead_ns += int(seconds * 1e9)


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


async def test_a_system_timer_does_not_wait_for_a_clock_that_was_set_back(wall: WallClock) -> None:
    clock = SystemClock()
    began_s = time.monotonic()
    sleep = asyncio.create_task(sleep_until(clock, clock.now_ms() + 50))
    await settle(1)
    wall.set(-3 * DAY_S)
    async with asyncio.timeout(LIMIT_S):
        await sleep
    # A whole millisecond of the clock may be nearly over when it is read.
    assert time.monotonic() - began_s >= 0.048


async def test_a_system_timer_set_after_the_clock_went_back_goes_by_the_new_time(wall: WallClock) -> None:
    clock, rung = SystemClock(), list[int]()
    wall.set(-3 * DAY_S)
    due_ms = clock.now_ms() + 3
    clock.call_at(due_ms + 3 * DAY_S * 1000, lambda: rung.append(-1))
    clock.call_at(due_ms, lambda: rung.append(clock.now_ms()))
    await sleep_until(clock, due_ms + 2)
    assert len(rung) == 1
    assert rung[0] >= due_ms


def test_before_1970_the_systems_clock_stands_at_its_beginning(wall: WallClock) -> None:
    wall.set(-2 * time.time())
    assert SystemClock().now_ms() == 0


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (0, "1970-01-01 00:00:00 UTC"),
        (START_MS, "2023-11-14 22:13:20 UTC"),
        (253_402_300_799_999, "9999-12-31 23:59:59 UTC"),
        (253_402_300_800_000, "253402300800000 ms"),
        (-1, "-1 ms"),
    ],
)
def test_times_in_messages(time_ms: int, text: str) -> None:
    assert time_text(time_ms) == text


def test_a_clock_that_went_back_is_told_with_both_times_and_the_ways_out() -> None:
    error = ClockWentBack(START_MS, START_MS + 3 * DAY_S * 1000 + 500)
    assert str(error) == (
        "the clock shows 2023-11-14 22:13:20 UTC, but the store was last written at 2023-11-17 22:13:20 UTC, "
        "3 days, 0:00:00.500000 later. Set the clock right, or wait until it has caught up; if it is right now and was "
        "wrong then, copy the store: rebuild-projections URL --into NEW"
    )
    assert (error.now_ms, error.last_ms) == (START_MS, START_MS + 3 * DAY_S * 1000 + 500)
    assert not error.permanent


def test_a_time_that_no_calendar_has_is_told_in_milliseconds() -> None:
    assert f"{2**63 - 1 - START_MS} ms later" in str(ClockWentBack(START_MS, 2**63 - 1))
