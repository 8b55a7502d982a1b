"""Keys: the order of bytes is the order of numbers, and no queue's range holds another queue's keys."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName
from ledgerq.projections import index_keys
from ledgerq.projections.index_keys import RANGES, IndexKey, parse_key
from tests.support.histories import quick, thorough

JOB = bytes(range(16))
JOB_TEXT = "00041061050R3GG28A1C60T3GF"
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8) | st.sampled_from(
    ["a", "aa", "a\x01", "a.b", "a/", "ä", "i/pending/a", "\U0010ffff"]
)


def same_order(a: Any, b: Any, key_a: bytes, key_b: bytes) -> bool:
    """Whether the keys compare as what they stand for."""
    return (a < b, a == b) == (key_a < key_b, key_a == key_b)


def in_range(key: bytes, prefix: bytes) -> bool:
    """Whether a scan of `prefix` would see `key`."""
    return prefix <= key < keys.after_prefix(prefix)


@thorough
@given(u64, u64)
def test_log_and_payload_keys_are_in_the_order_of_offsets(a: int, b: int) -> None:
    assert same_order(a, b, keys.log_key(a), keys.log_key(b))
    assert same_order(a, b, keys.payload_key(a), keys.payload_key(b))
    assert keys.offset_of(keys.log_key(a)) == keys.offset_of(keys.payload_key(a)) == a


@thorough
@given(names, st.tuples(u32, u64), st.tuples(u32, u64))
def test_pending_keys_are_in_the_order_of_priority_then_offset(
    queue: str, a: tuple[int, int], b: tuple[int, int]
) -> None:
    assert same_order(a, b, index_keys.pending_key(queue, *a), index_keys.pending_key(queue, *b))
    assert index_keys.pending_position(index_keys.pending_key(queue, *a)) == a


@thorough
@given(st.tuples(u64, u64), st.tuples(u64, u64))
def test_scheduled_keys_are_in_the_order_of_due_time_then_offset(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert same_order(a, b, index_keys.scheduled_key(*a), index_keys.scheduled_key(*b))
    assert index_keys.leading_ms(index_keys.scheduled_key(*a), index_keys.SCHEDULED) == a[0]


@quick
@given(st.tuples(u64, st.binary(min_size=16, max_size=16)), st.tuples(u64, st.binary(min_size=16, max_size=16)))
def test_finished_keys_are_in_the_order_of_sweep_time_then_id(a: tuple[int, bytes], b: tuple[int, bytes]) -> None:
    assert same_order(a, b, index_keys.finished_key(*a), index_keys.finished_key(*b))
    assert index_keys.leading_ms(index_keys.finished_key(*a), index_keys.FINISHED_PREFIX) == a[0]


@quick
@given(names, u64, u64)
def test_dead_keys_of_a_queue_are_in_the_order_of_offsets(queue: str, a: int, b: int) -> None:
    assert same_order(a, b, index_keys.dead_key(queue, a), index_keys.dead_key(queue, b))


@thorough
@given(names, names, u32, u64)
def test_a_queues_ranges_hold_its_own_keys_and_nobody_elses(queue: str, other: str, priority: int, offset: int) -> None:
    assert in_range(index_keys.pending_key(queue, priority, offset), index_keys.pending_prefix(queue))
    assert in_range(index_keys.dead_key(queue, offset), index_keys.dead_prefix(queue))
    if other != queue:
        assert not in_range(index_keys.pending_key(other, priority, offset), index_keys.pending_prefix(queue))
        assert not in_range(index_keys.dead_key(other, offset), index_keys.dead_prefix(queue))
        assert index_keys.stats_key(other) != index_keys.stats_key(queue)
        assert keys.hint_key(other) != keys.hint_key(queue)


@thorough
@given(names, names, st.binary(max_size=5), st.binary(max_size=5))
def test_unique_keys_of_different_queues_never_meet(queue: str, other: str, key: bytes, other_key: bytes) -> None:
    same = (queue, key) == (other, other_key)
    assert (index_keys.unique_key(queue, key) == index_keys.unique_key(other, other_key)) == same


@quick
@given(names, u32, u64, u64)
def test_every_index_key_is_in_its_own_range_only(queue: str, priority: int, offset: int, time_ms: int) -> None:
    made = {
        "job": index_keys.job_key(JOB),
        "pending": index_keys.pending_key(queue, priority, offset),
        "scheduled": index_keys.scheduled_key(time_ms, offset),
        "claimed": index_keys.claimed_key(JOB),
        "expiry": index_keys.expiry_key(time_ms, offset),
        "finished": index_keys.finished_key(time_ms, JOB),
        "dead": index_keys.dead_key(queue, offset),
        "unique": index_keys.unique_key(queue, b"k"),
        "stats": index_keys.stats_key(queue),
        "schedule": index_keys.schedule_key(queue),
        "tick": index_keys.tick_key(time_ms, queue),
        "limit": index_keys.limit_key(queue),
    }
    assert set(made) == set(RANGES)
    for name, key in made.items():
        start_of = {other: index_keys.range_bounds(other) for other in RANGES}
        assert [other for other, (start, stop) in start_of.items() if start <= key < stop] == [name]
        assert in_range(key, index_keys.INDEX_PREFIX)


def test_rows_of_projections_whose_names_begin_alike_are_apart() -> None:
    prefix = keys.projection_rows_prefix("a")
    assert in_range(prefix + b"\xff" * 9, prefix)
    assert not in_range(keys.projection_rows_prefix("ab"), prefix)
    assert not in_range(keys.projection_rows_prefix("a-b"), prefix)


@pytest.mark.parametrize("name", ["a", "a" * 255, "ä" * 127, "a b/c", "\U0001f600", " "])
def test_a_queue_name_of_1_to_255_bytes_is_fine(name: str) -> None:
    assert keys.queue_name_bytes(name) == name.encode()


@pytest.mark.parametrize("name", ["", "a" * 256, "ä" * 128, "a\0b", "\0", "\ud800", b"bytes", None, 5, ["a"]])
def test_any_other_queue_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidQueueName) as caught:
        keys.queue_name_bytes(name)
    assert isinstance(caught.value, InvalidArgument)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (index_keys.job_key(JOB), b"row", IndexKey("job", f"job {JOB_TEXT}", JOB)),
        (
            index_keys.pending_key("mail", 1000, 7),
            JOB,
            IndexKey("pending", "queue 'mail', priority 1000, offset 7", JOB),
        ),
        (index_keys.scheduled_key(5, 7), JOB, IndexKey("scheduled", "due 5 ms, offset 7", JOB)),
        (index_keys.claimed_key(JOB), b"", IndexKey("claimed", f"job {JOB_TEXT}", JOB)),
        (index_keys.finished_key(5, JOB), b"", IndexKey("finished", f"sweep at 5 ms, job {JOB_TEXT}", JOB)),
        (index_keys.dead_key("mail", 7), JOB, IndexKey("dead", "queue 'mail', offset 7", JOB)),
        (index_keys.unique_key("mail", b"k\0"), JOB, IndexKey("unique", r"queue 'mail', unique key b'k\x00'", JOB)),
        (index_keys.stats_key("mail"), b"row", IndexKey("stats", "queue 'mail'", None)),
        (
            index_keys.pending_key("mail", 1, 7),
            b"short",
            IndexKey("pending", "queue 'mail', priority 1, offset 7", None),
        ),
    ],
)
def test_an_index_key_is_taken_apart(key: bytes, value: bytes, expected: IndexKey) -> None:
    assert parse_key(key, value) == expected


@pytest.mark.parametrize("prefix", list(RANGES.values()), ids=list(RANGES))
@pytest.mark.parametrize("rest", [b"", b"\xff", b"\xff\0", b"\xff" * 17, b"\xff" * 25, b"a\0\0", b"\xff\0" + bytes(12)])
def test_a_damaged_index_key_is_shown_somehow(prefix: bytes, rest: bytes) -> None:
    shown = parse_key(prefix + rest, b"")
    assert prefix.startswith(f"i/{shown.range_name}/".encode())
    assert shown.text
    assert shown.id is None or len(shown.id) == 16


def test_a_key_outside_the_index_is_shown_in_hexadecimal() -> None:
    assert parse_key(b"zz\xff", b"") == IndexKey("unknown", "key 7a7aff", None)


@thorough
@given(st.sampled_from(list(RANGES.values())), st.binary(max_size=40), st.binary(max_size=20))
def test_no_damaged_index_key_raises(prefix: bytes, rest: bytes, value: bytes) -> None:
    assert parse_key(prefix + rest, value).text
