"""Getting a job ready: each argument's limits and its error; and the locks that keep keys unique."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.entropy import SeededEntropy, job_id_ms
from ledgerq.eventlog.errors import InvalidArgument, PayloadTooLarge
from ledgerq.eventlog.keys import MAX_PRIORITY
from ledgerq.eventlog.side_records import decode_payload, key_digest
from ledgerq.worker.engine.new_job import KeyLocks, Prepared, due_ms_of, prepare
from ledgerq.worker.options import MAX_TIME_MS, QueueOptions
from tests.support.histories import START_MS, quick
from tests.support.loops import settle

OPTIONS = QueueOptions(priority=7, max_attempts=4, max_payload_bytes=20)
SECRET = bytes(32)
ULID = "01HF7YAT000000000000000001"


def prepared(payload: Any = b"x", **given: Any) -> Prepared:
    """A job prepared now, with these arguments."""
    defaults: dict[str, Any] = {"options": OPTIONS, "entropy": SeededEntropy(1), "secret": SECRET}
    return prepare("mail", payload, now_ms=START_MS, **(defaults | given))


def test_what_is_left_open_comes_from_the_queues_options() -> None:
    event = prepared().event
    assert (event.queue, event.priority, event.max_attempts) == ("mail", 7, 4)
    assert (event.due_ms, event.unique_key, event.unique_until) == (0, None, "finished")


def test_an_id_holds_the_time_and_ten_random_bytes_of_the_entropy() -> None:
    entropy = SeededEntropy(1)
    first, second = prepared(entropy=entropy), prepared(entropy=entropy)
    chance = SeededEntropy(1)
    salt, tail = chance.take(16), chance.take(10)
    assert first.record.salt == salt
    assert first.event.id == START_MS.to_bytes(6) + tail
    assert job_id_ms(second.event.id) == START_MS
    assert first.event.id != second.event.id
    assert not first.own_id


def test_the_event_tells_size_and_digest_of_the_sealed_payload_and_nothing_in_it() -> None:
    one, other = prepared(b"secret"), prepared(b"secret", entropy=SeededEntropy(2))
    assert decode_payload(one.sealed) == one.record
    assert one.record.payload == b"secret"
    assert (one.event.payload_bytes, one.event.payload_digest) == (len(one.sealed), digest_of(one.sealed))
    assert one.event.payload_digest != other.event.payload_digest


@pytest.mark.parametrize("payload", [b"abc", bytearray(b"abc"), memoryview(b"abc"), memoryview(b"axbxcx")[::2]])
def test_a_payload_is_anything_like_bytes(payload: Any) -> None:
    assert prepared(payload).record.payload == b"abc"


@pytest.mark.parametrize("payload", ["text", None, 5, ["x"], {"a": 1}])
def test_any_other_payload_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidArgument, match="a payload is bytes, not"):
        prepared(payload)


def test_payload_and_headers_together_have_a_limit() -> None:
    prepared(b"x" * 20)
    prepared(b"x" * 15, headers={"é": "123"})
    for payload, headers in ((b"x" * 21, None), (b"x" * 16, {"é": "123"}), (b"", {"a" * 20: "b"})):
        with pytest.raises(PayloadTooLarge, match=r"21 bytes, more than max_payload_bytes=20"):
            prepared(payload, headers=headers)


@pytest.mark.parametrize("headers", [{"a": "b"}, MappingProxyType({"a": "b"})])
def test_headers_are_copied(headers: Any) -> None:
    job = prepared(headers=headers)
    assert job.record.headers == {"a": "b"}
    assert job.record.headers is not headers


@pytest.mark.parametrize("headers", [None, {}])
def test_no_headers_are_none(headers: Any) -> None:
    assert prepared(headers=headers).record.headers is None


@pytest.mark.parametrize(
    "headers", [{"a": 1}, {1: "a"}, {"a": b"b"}, {"a": None}, {"\ud800": "a"}, {"a": "\ud800"}, 5, "abc", [1, 2]]
)
def test_other_headers_are_refused(headers: Any) -> None:
    with pytest.raises(InvalidArgument, match="headers map text to text"):
        prepared(headers=headers)


@pytest.mark.parametrize(("name", "low", "high"), [("priority", 0, MAX_PRIORITY), ("max_attempts", 1, 1_000_000)])
def test_whole_numbers_have_limits(name: str, low: int, high: int) -> None:
    for value in (low, high):
        assert getattr(prepared(**{name: value}).event, name) == value
    wrong: list[Any] = [low - 1, high + 1, 1.0, "1", True, float("nan")]
    for value in wrong:
        with pytest.raises(InvalidArgument, match=f"{name} is a whole number from {low} to {high}"):
            prepared(**{name: value})


# When


@pytest.mark.parametrize(
    ("delay", "due_ms"), [(0, 0), (0.0004, 0), (0.001, START_MS + 1), (1, START_MS + 1000), (1.5, START_MS + 1500)]
)
def test_a_delay_is_in_seconds(delay: float, due_ms: int) -> None:
    assert prepared(delay=delay).event.due_ms == due_ms


@pytest.mark.parametrize("delay", [-1, -0.001, float("nan"), float("inf"), "1", True, timedelta(1), 10**400])
def test_any_other_delay_is_refused(delay: Any) -> None:
    with pytest.raises(InvalidArgument, match="delay is a number of seconds"):
        prepared(delay=delay)


def test_nothing_is_due_after_the_year_9999() -> None:
    longest_s = (MAX_TIME_MS - START_MS) // 1000
    assert prepared(delay=longest_s).event.due_ms == START_MS + longest_s * 1000
    with pytest.raises(InvalidArgument, match="the year 9999"):
        prepared(delay=longest_s + 1)


NOW = datetime.fromtimestamp(START_MS / 1000, UTC)
EAST = timezone(timedelta(hours=14))


@pytest.mark.parametrize(
    ("run_at", "due_ms"),
    [
        (NOW + timedelta(milliseconds=1), START_MS + 1),
        ((NOW + timedelta(seconds=1)).astimezone(EAST), START_MS + 1000),
        (NOW, 0),
        (NOW - timedelta(days=1), 0),
        (datetime.min.replace(tzinfo=UTC), 0),
        (datetime.min.replace(tzinfo=EAST), 0),
        (datetime.max.replace(tzinfo=UTC), MAX_TIME_MS),
    ],
)
def test_a_time_has_a_zone_and_may_be_past(run_at: datetime, due_ms: int) -> None:
    assert prepared(run_at=run_at).event.due_ms == due_ms


@pytest.mark.parametrize("run_at", [NOW.replace(tzinfo=None), "2030-01-01", START_MS, NOW.date(), NOW.time()])
def test_any_other_time_is_refused(run_at: Any) -> None:
    with pytest.raises(InvalidArgument, match="run_at is a datetime with a time zone"):
        prepared(run_at=run_at)


def test_a_time_after_the_year_9999_in_utc_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="9999"):
        prepared(run_at=datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))))


def test_delay_and_time_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        prepared(delay=0, run_at=NOW)


@quick
@given(st.datetimes(), st.integers(-840, 840))
def test_any_aware_time_is_due_or_refused(naive: datetime, offset_minutes: int) -> None:
    run_at = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    exact_ms = (run_at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(milliseconds=1)
    if exact_ms > MAX_TIME_MS:
        with pytest.raises(InvalidArgument):
            due_ms_of(None, run_at, START_MS)
    else:
        assert due_ms_of(None, run_at, START_MS) == pytest.approx(exact_ms if exact_ms > START_MS else 0, abs=1)


# Keys and ids


@pytest.mark.parametrize(
    ("given", "key"), [("k", b"k"), ("é", b"\xc3\xa9"), (b"\0\xff", b"\0\xff"), ("x" * 1024, b"x" * 1024)]
)
def test_a_unique_key_is_text_or_bytes(given: Any, key: bytes) -> None:
    assert (made := prepared(unique_key=given)).event.unique_key == key_digest(key, SECRET)
    assert decode_payload(made.sealed).unique_key == key
    assert prepared(unique_key=bytearray(b"k"), unique_until="claimed").event.unique_until == "claimed"


@pytest.mark.parametrize("key", ["", b"", "x" * 1025, "é" * 513, "\ud800", 5, True, 2**70, ["k"], [1, 2], 1.5])
def test_any_other_unique_key_is_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match="unique_key"):
        prepared(unique_key=key)


@pytest.mark.parametrize("until", ["done", "", None, 5, ["finished"]])
def test_a_unique_key_is_held_until_finished_or_claimed(until: Any) -> None:
    with pytest.raises(InvalidArgument, match="unique_until is 'finished', 'claimed' or 'period'"):
        prepared(unique_until=until)


def test_an_id_of_the_callers_own_is_a_ulid() -> None:
    job = prepared(job_id=ULID)
    assert job.own_id
    assert job.event.id == START_MS.to_bytes(6) + (1).to_bytes(10)
    for text in ("", ULID[:-1], ULID + "0", "U" * 26, "8" + "0" * 25, b"0" * 26, 5):
        with pytest.raises(InvalidArgument, match="is not a job id"):
            prepared(job_id=text)


# Locks


class Holder:
    """A task that holds some keys until it is let go."""

    def __init__(self, locks: KeyLocks, name: str, keys: list[bytes], entered: list[str]) -> None:
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._run(locks, name, keys, entered))

    async def _run(self, locks: KeyLocks, name: str, keys: list[bytes], entered: list[str]) -> None:
        async with locks.hold(keys):
            entered.append(name)
            await self.leave.wait()

    async def end(self) -> None:
        """Let go, and let others in."""
        self.leave.set()
        await self.task
        await settle()


async def test_a_key_is_held_by_one_and_then_by_the_next_in_line() -> None:
    locks, entered = KeyLocks(), list[str]()
    first, second, third = (Holder(locks, name, [b"k"], entered) for name in "abc")
    other = Holder(locks, "other", [b"l"], entered)
    await settle()
    assert entered == ["a", "other"]
    await first.end()
    assert entered == ["a", "other", "b"]
    await second.end()
    assert entered == ["a", "other", "b", "c"]
    await third.end()
    await other.end()
    assert not locks._locks


async def test_holders_of_several_keys_never_wait_for_each_other() -> None:
    locks, entered = KeyLocks(), list[str]()
    first = Holder(locks, "a", [b"k", b"l", b"k"], entered)
    second = Holder(locks, "b", [b"l", b"k"], entered)
    await settle()
    assert entered == ["a"]
    await first.end()
    await second.end()
    assert entered == ["a", "b"]
    assert not locks._locks


async def test_one_who_waits_for_a_key_holds_none_that_comes_after_it() -> None:
    locks, entered = KeyLocks(), list[str]()
    first = Holder(locks, "first", [b"a"], entered)
    await settle()
    waiting = Holder(locks, "waiting", [b"e", b"d", b"a", b"c", b"b"], entered)
    await settle()
    others = [Holder(locks, key.decode(), [key], entered) for key in (b"b", b"c", b"d", b"e")]
    await settle()
    assert entered == ["first", "b", "c", "d", "e"]
    for holder in (first, *others, waiting):
        holder.leave.set()
    await asyncio.gather(*(holder.task for holder in (first, *others, waiting)))
    assert entered[-1] == "waiting"


@pytest.mark.parametrize("last", [True, False])
async def test_one_who_stops_waiting_leaves_the_others_in_line(last: bool) -> None:
    locks, entered = KeyLocks(), list[str]()
    first = Holder(locks, "a", [b"l"], entered)
    gone = Holder(locks, "gone", [b"k", b"l"], entered)
    await settle()
    behind = [] if last else [Holder(locks, "b", [b"l"], entered), Holder(locks, "c", [b"k"], entered)]
    await settle()
    gone.task.cancel()
    await asyncio.gather(gone.task, return_exceptions=True)
    await settle()
    await first.end()
    for holder in behind:
        await holder.end()
    assert entered == (["a"] if last else ["a", "c", "b"])
    assert not locks._locks


async def test_an_error_inside_lets_go_of_the_keys() -> None:
    locks = KeyLocks()
    with pytest.raises(ZeroDivisionError):
        async with locks.hold([b"k", b"l"]):
            raise ZeroDivisionError
    assert not locks._locks
