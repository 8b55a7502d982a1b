"""Random bytes: every parser of the store's bytes, of URLs and ids refuses them with an error of ours.

The targets define what is a defect (targets.py); coverage_guided.py runs the same ones for as long as one likes. Each
has a test with the cases that were found once and a few more; the proof gives each of them many.
"""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import EVENT_TYPES, KIND_OF, NO_DIGEST, Head, decode_batch, decode_head, encode_batch, pack
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LedgerError, LogCorrupt, ProjectionDrift
from ledgerq.eventlog.events import Acked, Enqueued, Nacked, Promoted, QueuePaused, Rebuilt
from ledgerq.eventlog.keys import FORMAT_KEY
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.eventlog.side_records import PayloadRecord, decode_payload, decode_result, decode_text, encode_payload
from ledgerq.projections.fold import Fold
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.job import born
from ledgerq.projections.stats import QueueCounters
from tests.fuzz import targets
from tests.fuzz.seeds import seeds
from tests.fuzz.targets import TARGETS
from tests.support.histories import any_events, enqueued, job_id

fuzz = settings(
    deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow], database=None
)
# What arrays, maps, texts, bytes and extensions promise: 2^32 - 1 items each.
HUGE = [head + b"\xff" * 4 for head in (b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xc9")]


@st.composite
def damaged(draw: st.DrawFn, target: str) -> bytes:
    """One of the target's seeds with a few bytes changed, removed or put in; or any bytes at all."""
    value = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(value)))
        removed = draw(st.integers(0, 2))
        value[at : at + removed] = draw(st.binary(max_size=3) | st.sampled_from(HUGE))
    return bytes(value)


def inputs(target: str) -> st.SearchStrategy[bytes]:
    """What the target is given."""
    return damaged(target) | st.binary(max_size=200)


def one_event(event: Any) -> bytes:
    """A batch of one event, whose fields may be anything."""
    return encode_batch(7, NO_DIGEST, 5, bytes([KIND_OF[type(event)]]), [event], [0])


@fuzz
@given(inputs("batch"))
@example(one_event(Acked(job_id(1), 2**64 - 1)))
@example(one_event(enqueued(priority=2**32)))
@example(one_event(enqueued(due_ms=-1)))
@example(one_event(enqueued(queue="a\0b")))
@example(one_event(Acked(b"short", 5)))
@example(one_event(Acked(job_id(1), "soon")))  # type: ignore[arg-type]
@example(one_event(Rebuilt("ann", "why", (5,), 1, 1)))  # type: ignore[arg-type]
def test_a_batch(value: bytes) -> None:
    targets.batch(value)


@fuzz
@given(inputs("events"))
def test_an_event(value: bytes) -> None:
    targets.events(value)


@fuzz
@given(inputs("head"))
@example(pack(Head(2**64 - 1, bytes(32), 2**64 - 1, 0, 0)))
def test_a_head(value: bytes) -> None:
    targets.head(value)


@fuzz
@given(inputs("anchor"))
def test_a_slot_of_an_anchor(value: bytes) -> None:
    targets.anchor(value)


@fuzz
@given(inputs("payload"))
@example(pack((bytes(16), {"a": 5}, b"")))
@example(pack((bytes(16), 5, b"")))
@example(pack((bytes(16), None, b"", "key")))
@example(pack((bytes(16), None, b"", None)))
@example(pack((bytes(16), None, b"", b"key", b"more")))
def test_a_payload_record(value: bytes) -> None:
    targets.payload(value)


@fuzz
@given(inputs("text"))
@example(pack((bytes(16), 5)))
@example(pack((bytes(16), "a", "b")))
@example(pack(("salt", "a")))
@example(pack("text"))
def test_a_text(value: bytes) -> None:
    targets.text(value)


@fuzz
@given(inputs("terms"))
@example(pack(("send", 0, "more")))
@example(pack(("send", 2**64 - 1)))
@example(b"\xdd\xff\xff\xff\xff")
def test_terms(value: bytes) -> None:
    targets.terms(value)


@fuzz
@given(inputs("job"))
@example(pack(born(enqueued(priority=-1), 1, 1)))
@example(pack(born(enqueued(queue=5), 1, 1)))
@example(pack(replace(born(enqueued(), 1, 1), state="asleep")))
@example(pack(replace(born(enqueued(), 1, 1), offsets=("1",))))
@example(pack(replace(born(enqueued(), 1, 1), cancel_request=("ann",))))
def test_a_job_row(value: bytes) -> None:
    targets.job(value)


@fuzz
@given(inputs("stats"))
def test_a_stats_row(value: bytes) -> None:
    targets.stats(value)


@fuzz
@given(inputs("key"))
def test_an_index_key(value: bytes) -> None:
    targets.key(value)


@fuzz
@given(inputs("location"))
@example(b"a\xff/../b")
@example("a\ud800/../b".encode("utf-16-le", "surrogatepass"))
@example(b"file:///tmp/a\tb")
@example(b"s3://buck\net/prefix")
def test_a_url_or_an_id(value: bytes) -> None:
    targets.location(value)


@pytest.mark.proof
@pytest.mark.parametrize("target", sorted(TARGETS.keys() - {"arguments"}))
def test_more_of_each(target: str) -> None:
    @settings(fuzz, max_examples=500)
    @given(inputs(target))
    def refused_or_read(value: bytes) -> None:
        TARGETS[target](value)

    refused_or_read()


# ---------------------------------------------------------------------- what exactly is refused, and what is not


@pytest.mark.parametrize(
    "event",
    [
        enqueued(queue=5),
        enqueued(priority=True),
        enqueued(unique_key="text"),
        Nacked(job_id(1), "dead", 0, 5, 1, ""),  # type: ignore[arg-type]
        Acked(b"short", 5),
        Promoted("0123456789abcdef"),  # type: ignore[arg-type]
        Rebuilt("ann", "why", ("jobs", 5), 1, 1),  # type: ignore[arg-type]
        Rebuilt("ann", "why", "jobs", 1, 1),  # type: ignore[arg-type]
    ],
)
def test_a_field_of_the_wrong_type_is_corrupt(event: Any) -> None:
    with pytest.raises(LogCorrupt, match="offset 40"):
        decode_batch(40, one_event(event))


@pytest.mark.parametrize("row", [b"abc", "abc", {"a": 1, "b": 2, "c": 3}, 5, None])
def test_an_event_is_an_array(row: Any) -> None:
    value = pack((1, 7, NO_DIGEST, 5, bytes([KIND_OF[QueuePaused]]), (row,)))
    with pytest.raises(LogCorrupt, match="no array"):
        decode_batch(0, value)


@pytest.mark.parametrize(
    "event",
    [
        enqueued(priority=-1),
        enqueued(priority=2**32),
        enqueued(queue=""),
        enqueued(queue="a" * 256),
        enqueued(queue="a\0b"),
        QueuePaused("a\0b", "ann", "why"),
        enqueued(due_ms=-1),
    ],
)
def test_what_no_index_row_can_hold_is_corrupt_in_the_fold(event: Any) -> None:
    batch = decode_batch(40, one_event(event))
    with pytest.raises(LogCorrupt, match="offset 40"):
        Fold().apply_batch(batch)


@given(st.lists(any_events(), min_size=1, max_size=5))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_every_event_of_the_right_types_is_read_back(events: list[Any]) -> None:
    value = encode_batch(7, NO_DIGEST, 5, bytes(KIND_OF[type(event)] for event in events), events, [0] * len(events))
    assert decode_batch(0, value).events == events


def test_every_field_of_every_event_is_checked() -> None:
    for event_type in EVENT_TYPES.values():
        for place in range(len(event_type.__struct_fields__)):
            row: list[Any] = [job_id(1) if field == "id" else "x" for field in event_type.__struct_fields__]
            row[place] = {"a": "map"}  # no field holds one
            with pytest.raises(LogCorrupt):
                decode_batch(0, pack((1, 7, NO_DIGEST, 5, bytes([KIND_OF[event_type]]), (row,))))


@pytest.mark.parametrize(
    "distances", [(), (0, 0), (-1,), (True,), (0.0,), ("0",), (2.5,), None, 0, b"\0"], ids=lambda given: repr(given)
)
def test_distances_that_are_not_one_number_for_each_event_are_corrupt(distances: Any) -> None:
    row = (7, NO_DIGEST, 5, bytes([KIND_OF[Promoted]]), (Promoted(job_id(1)),))
    assert decode_batch(0, pack((2, *row, (2**64 - 1,)))).distances == [2**64 - 1]
    with pytest.raises(LogCorrupt):
        decode_batch(0, pack((2, *row, distances)))


@pytest.mark.parametrize(("version", "more"), [(1, ((0,),)), (2, ()), (3, ((0,),)), (2, ((0,), 0))])
def test_a_version_and_the_fields_that_it_has_go_together(version: int, more: tuple[Any, ...]) -> None:
    row = (7, NO_DIGEST, 5, bytes([KIND_OF[Promoted]]), (Promoted(job_id(1)),))
    with pytest.raises((LogCorrupt, FormatTooNew)):
        decode_batch(0, pack((version, *row, *more)))


def test_an_encoding_that_is_not_the_shortest_means_the_same() -> None:
    """It is harmless: the chain digests the bytes as they are, and nothing is taken from another encoding of them."""
    short = one_event(Promoted(job_id(1)))
    assert short[:3] == b"\x97\x02\x07"
    long = b"\xdd\0\0\0\x07" + b"\xd3" + (2).to_bytes(8) + b"\xcd\0\x07" + short[3:]
    found = decode_batch(0, long)
    assert found._replace(digest=b"") == decode_batch(0, short)._replace(digest=b"")
    assert found.digest != decode_batch(0, short).digest


# ---------------------------------------------------------------------- memory

DECODERS: dict[str, Callable[[bytes], object]] = {
    "batch": lambda value: decode_batch(0, value),
    "head": decode_head,
    "payload": decode_payload,
    "text": decode_text,
    "result": decode_result,
    "job": decode_job,
    "stats": QueueCounters.decode,
}
MIB = 1024 * 1024


def promises(n_bytes: int, items: int) -> bytes:
    """Arrays in arrays, each of which promises so many items."""
    return (b"\xdd" + items.to_bytes(4)) * (n_bytes // 5)


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize(
    "value",
    [
        *HUGE,
        b"\x91" * 4000,
        b"\x91" * 2_000_000,
        b"\x81\x01" * 1_000_000,
        promises(4000, 3900),
        promises(MIB, MIB - 1),
        b"\x96" + b"\xc0" * 5 + promises(MIB, MIB // 2),
        b"\xdd\x00\x0f\xff\xff" + b"\xc0" * 100,
        pack((1, 7, NO_DIGEST, 5, b"\x02" * MIB, (None,) * MIB)),
        pack((1, 7, NO_DIGEST, 5, b"\x02", (None,) * MIB)),
        pack((1, 7, NO_DIGEST, 5, b"\x02", ((None,) * MIB,))),
        pack((None,) * (MIB // 2)),
    ],
    ids=lambda value: f"{value[:2].hex()}x{len(value)}",
)
def test_memory_goes_with_the_size_of_a_value_and_not_with_what_it_promises(
    decode: Callable[[bytes], object], value: bytes
) -> None:
    tracemalloc.start()
    try:
        with pytest.raises((LedgerError, ValueError)):
            decode(value)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 16 * MIB + 20 * len(value)


def test_a_large_value_is_read_all_the_same() -> None:
    events = [Enqueued(job_id(i), "mail", 1, 3, 0, None, "finished", 5, bytes(32)) for i in range(20_000)]
    value = encode_batch(7, NO_DIGEST, 5, bytes(KIND_OF[Enqueued] for _ in events), events, [0] * len(events))
    assert decode_batch(0, value).events == events
    record = PayloadRecord(bytes(16), {"name": "value"}, bytes(16 * MIB), b"key")
    assert decode_payload(encode_payload(*record)) == record


@pytest.mark.parametrize(
    "text", [None, 5, b"memory:///", Path("jobs"), "file:///a\tb", "s3://buck\net/x", "s3://b%41/x"]
)
def test_a_place_that_is_no_text_or_holds_what_a_parser_leaves_out_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument):
        parse_location(text)


def test_the_parent_of_what_is_no_path_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="leads nowhere"):
        parse_location(f"{tmp_path}/\ud800/../x")
    assert parse_location(f"{tmp_path}/./new/../x").folder == tmp_path / "x"


@pytest.mark.parametrize("value", [b"", b"x", b"1.0", b"9" * 10, b"9" * 5000, b"\xb2"])
async def test_a_format_number_that_is_none_is_corrupt(value: bytes) -> None:
    disk = MemoryDisk()
    disk.rows[FORMAT_KEY] = value
    with pytest.raises(LogCorrupt, match="format number"):
        await LogReader(MemoryReader(disk), clock=ManualClock()).check_format()


def test_drift_is_not_taken_for_a_job() -> None:
    with pytest.raises(ProjectionDrift, match="asleep"):
        decode_job(pack(replace(born(enqueued(), 1, 1), state="asleep")))
