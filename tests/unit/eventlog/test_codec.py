"""The bytes of batches, heads and payload records: golden, round trips, and every way in which they can be broken."""

import pickle
import random
from contextlib import suppress
from enum import StrEnum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from ledgerq.eventlog import codec
from ledgerq.eventlog.codec import (
    EVENT_TYPES,
    KIND_OF,
    NO_DIGEST,
    Head,
    decode_batch,
    decode_head,
    digest_of,
    encode_batch,
    encode_head,
    pack,
)
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LedgerError, LogCorrupt, UnknownEventType
from ledgerq.eventlog.events import (
    Acked,
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Checkpointed,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Event,
    Expired,
    FilesSetAside,
    Held,
    HoldReleased,
    KvDeleted,
    KvSet,
    LeaseExpired,
    LimitsSet,
    Moved,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Replaced,
    Requeued,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Sealed,
    StepDone,
    Swept,
    Ticked,
    UniqueReleased,
    WriterClosed,
    WriterOpened,
)
from ledgerq.eventlog.side_records import PayloadRecord, decode_payload, encode_payload
from tests.support.histories import any_events, quick, thorough

JOB = bytes(range(16))
PREVIOUS = bytes(range(32))
TIME_MS = 1_700_000_000_123

# Epoch 7, the previous digest, the commit time: the same for every batch below, after its size and version.
OUTER_HEX = "07c420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fcf0000018bcfe5687b"
JOB_HEX = "c410000102030405060708090a0b0c0d0e0f"
# What follows: the kind (bin of one byte), an array of one event, and that event as an array of its fields.
GOLDEN_1: list[tuple[Event, str]] = [
    (
        Enqueued(JOB, "mail", 1000, 3, 1_700_000_000_456, b"k\0", "claimed", 21, bytes(32)),
        f"c401019199{JOB_HEX}a46d61696ccd03e803cf0000018bcfe569c8c4026b00a7636c61696d656415c420" + "00" * 32,
    ),
    (Promoted(JOB), f"c401029191{JOB_HEX}"),
    (Claimed(JOB, 2, 30_000, "w1"), f"c401039195{JOB_HEX}02cd7530a27731c2"),
    (Claimed(JOB, 2, 30_000, "w1", True), f"c401039195{JOB_HEX}02cd7530a27731c3"),
    (Acked(JOB, 1_700_086_400_000), f"c401049192{JOB_HEX}cf0000018bd50bc400"),
    (
        Nacked(JOB, "scheduled", 1_700_000_001_000, 0, False, "boom"),
        f"c401059196{JOB_HEX}a97363686564756c6564cf0000018bcfe56be800c2a4626f6f6d",
    ),
    (
        LeaseExpired(JOB, "dead", 1_700_604_800_000, "interrupted"),
        f"c401069194{JOB_HEX}a464656164cf0000018bf3f1ec00ab696e746572727570746564",
    ),
    (CancelRequested(JOB, "ann", "late"), f"c401079193{JOB_HEX}a3616e6ea46c617465"),
    (
        Cancelled(JOB, 1_700_086_400_000, "ann", "late"),
        f"c401089194{JOB_HEX}cf0000018bd50bc400a3616e6ea46c617465",
    ),
    (Requeued(JOB, "ann", "fixed"), f"c401099193{JOB_HEX}a3616e6ea56669786564"),
    (Swept(JOB), f"c4010a9191{JOB_HEX}"),
    (
        DeadLettered(JOB, 1_700_604_800_000, "ledgerq", "the payload is lost"),
        f"c4010e9194{JOB_HEX}cf0000018bf3f1ec00a76c656467657271b3746865207061796c6f6164206973206c6f7374",
    ),
    (QueuePaused("mail", "ann", "quiet"), "c401209193a46d61696ca3616e6ea57175696574"),
    (QueueResumed("mail", "ann", "done"), "c401219193a46d61696ca3616e6ea4646f6e65"),
    (WriterOpened("host:1", "0.1.0", None), "c401309193a6686f73743a31a5302e312e30c0"),
    (WriterClosed("host:1"), "c401319191a6686f73743a31"),
    (
        Rebuilt("ann", "drift", ("jobs", "stats"), 5, 2),
        "c401329195a3616e6ea5647269667492a46a6f6273a573746174730502",
    ),
    (FilesSetAside("set-aside/x", 1, ("wal/1.sst",)), "c401339193ab7365742d61736964652f780191a977616c2f312e737374"),
]


SEALED = Sealed(41, 26, bytes(range(32)))
SEALED_HEX = "93291ac420000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
# In version 2 these have more fields, or other types of field; all others are as in version 1.
GOLDEN_2: list[tuple[Event, str]] = [
    (
        Enqueued(JOB, "mail", 1000, 3, 1_700_000_000_456, b"k\0", "claimed", 21, bytes(32), b"\x91\xa1t"),
        f"c40101919a{JOB_HEX}a46d61696ccd03e803cf0000018bcfe569c8c4026b00a7636c61696d656415c420"
        + "00" * 32
        + "c40391a174",
    ),
    (Acked(JOB, 1_700_086_400_000), f"c401049193{JOB_HEX}cf0000018bd50bc400c0"),
    (Acked(JOB, 1_700_086_400_000, SEALED), f"c401049193{JOB_HEX}cf0000018bd50bc400{SEALED_HEX}"),
    (
        Nacked(JOB, "scheduled", 1_700_000_001_000, 0, False, SEALED, "OSError"),
        f"c401059197{JOB_HEX}a97363686564756c6564cf0000018bcfe56be800c2{SEALED_HEX}a74f534572726f72",
    ),
    (
        LeaseExpired(JOB, "dead", 1_700_604_800_000, "interrupted", True),
        f"c401069195{JOB_HEX}a464656164cf0000018bf3f1ec00ab696e746572727570746564c3",
    ),
    (CancelRequested(JOB, "ann", SEALED), f"c401079193{JOB_HEX}a3616e6e{SEALED_HEX}"),
    (Cancelled(JOB, 1_700_086_400_000, "ann", SEALED), f"c401089194{JOB_HEX}cf0000018bd50bc400a3616e6e{SEALED_HEX}"),
    (Requeued(JOB, "ann", SEALED), f"c401099193{JOB_HEX}a3616e6e{SEALED_HEX}"),
    (QueuePaused("mail", "ann", SEALED), f"c401209193a46d61696ca3616e6e{SEALED_HEX}"),
    (QueueResumed("mail", "ann", SEALED), f"c401219193a46d61696ca3616e6e{SEALED_HEX}"),
    (Deleted(JOB, "ann", SEALED), f"c4010f9193{JOB_HEX}a3616e6e{SEALED_HEX}"),
    (
        Replaced(JOB, 5, 1_700_000_001_000, 21, bytes(range(32)), b"\x91\xa1t"),
        f"c401129196{JOB_HEX}05cf0000018bcfe56be815c420" + bytes(range(32)).hex() + "c40391a174",
    ),
    (UniqueReleased(JOB), f"c401139191{JOB_HEX}"),
    (Expired(JOB, 1_700_000_001_000), f"c401109192{JOB_HEX}cf0000018bcfe56be8"),
    (StepDone(JOB, "charge", SEALED), f"c401509193{JOB_HEX}a6636861726765{SEALED_HEX}"),
    (StepDone(JOB, "charge", None), f"c401509193{JOB_HEX}a6636861726765c0"),
    (Moved(JOB, "dlq", "ann", SEALED), f"c401119194{JOB_HEX}a3646c71a3616e6e{SEALED_HEX}"),
    (
        BulkBegan("mail", "requeue", "dead", "OSError", 4, 0, 1_700_000_001_000, 40, "ann", SEALED, "send", "dlq"),
        "c40122919ca46d61696ca772657175657565a464656164a74f534572726f720400cf0000018bcfe56be828a3616e6e"
        + SEALED_HEX
        + "a473656e64a3646c71",
    ),
    (
        BulkBegan("mail", "cancel", None, "", 0, 0, 0, 40, "ann", SEALED),
        "c40122919ca46d61696ca663616e63656cc0a000000028a3616e6e" + SEALED_HEX + "a0a0",
    ),
    (BulkEnded("mail", 41, 5, 2), "c401239194a46d61696c290502"),
    (
        Checkpointed("example.com/jobs", b"\1\2\3\4", 403, 602, bytes(range(32))),
        "c401349195b06578616d706c652e636f6d2f6a6f6273c40401020304cd0193cd025ac420" + bytes(range(32)).hex(),
    ),
]
SCHEDULE = ScheduleSet(
    *("s", "30 2 * * *", "Europe/Berlin", "mail", "send", None, 7, True, "last", "skip", 60_000, 5000, "app"),
    *(bytes(range(32)), 1_700_000_001_000, 1_700_000_002_000, 2, "ledgerq", SEALED),
)
GOLDEN_2 += [
    (
        SCHEDULE,
        "c4012491dc0013a173aa33302032202a202a202aad4575726f70652f4265726c696ea46d61696ca473656e64c0"
        + "07c3a46c617374a4736b6970cdea60cd1388a3617070c420000102030405060708090a0b0c0d0e0f1011121314"
        + "15161718191a1b1c1d1e1fcf0000018bcfe56be8cf0000018bcfe56fd002a76c656467657271"
        + SEALED_HEX,
    ),
    (ScheduleRemoved("s", "ann", SEALED), f"c401259193a173a3616e6e{SEALED_HEX}"),
    (SchedulePaused("s", "ann", SEALED), f"c401269193a173a3616e6e{SEALED_HEX}"),
    (
        ScheduleResumed("s", 1_700_000_001_000, 1_700_000_002_000, "ann", SEALED),
        f"c401279195a173cf0000018bcfe56be8cf0000018bcfe56fd0a3616e6e{SEALED_HEX}",
    ),
    (
        Ticked("s", 1_700_000_001_000, JOB, "due", 4, 1_700_000_002_000, 1_700_000_003_000),
        f"c401289199a173cf0000018bcfe56be8{JOB_HEX}a364756504cf0000018bcfe56fd0cf0000018bcfe573b8a0a0",
    ),
    (
        Ticked("s", 1_700_000_001_000, None, "missed", 4, 0, 0),
        "c401289199a173cf0000018bcfe56be8c0a66d6973736564040000a0a0",
    ),
]
GOLDEN_2 += [
    (KvSet("orders/1", 20, bytes(range(32))), f"c401299194a86f72646572732f3114c420{bytes(range(32)).hex()}c0"),
    (KvSet("k", 20, bytes(32), JOB), f"c401299194a16b14c420{'00' * 32}{JOB_HEX}"),
    (KvDeleted("k", None, True), "c4012a9193a16bc0c3"),
    (KvDeleted("k", JOB), f"c4012a9193a16b{JOB_HEX}c2"),
]
GOLDEN_2 += [
    (
        LimitsSet("mail", 5, 600, 60_000, 2, "code", "ledgerq", ""),
        "c401409198a46d61696c05cd0258cdea6002a4636f6465a76c6564676572" + "71a0",
    ),
    (Held("mail", 1_700_000_001_000, JOB, "", ""), f"c401419195a46d61696ccf0000018bcfe56be8{JOB_HEX}a0a0"),
    (HoldReleased("mail", "ann", SEALED), f"c401429193a46d61696ca3616e6e{SEALED_HEX}"),
]
_CHANGED = {type(event) for event, _ in GOLDEN_2}
GOLDEN = [*GOLDEN_2, *(golden for golden in GOLDEN_1 if type(golden[0]) not in _CHANGED)]


def encoded(events: list[Event], distance: int = 0) -> bytes:
    """A batch of these events, after `PREVIOUS`."""
    return encode_batch(
        7, PREVIOUS, TIME_MS, bytes(KIND_OF[type(event)] for event in events), events, [distance] * len(events)
    )


def batch_with(**changed: Any) -> bytes:
    """A batch whose outer fields are valid except those given."""
    fields: dict[str, Any] = {"version": 2, "epoch": 7, "previous": PREVIOUS, "time_ms": 5, "kinds": b"\x02"}
    fields |= {"events": [(JOB,)]} | changed
    return pack([*fields.values()] if "distances" in fields else [*fields.values(), [0] * len(fields["kinds"])])


@pytest.mark.parametrize(("event", "tail_hex"), GOLDEN, ids=lambda value: type(value).__name__)
def test_the_bytes_of_each_event_type_never_change(event: Event, tail_hex: str) -> None:
    # An array of seven, version 2; in the end an array of one distance.
    value = bytes.fromhex("9702" + OUTER_HEX + tail_hex + "9105")
    assert encoded([event], 5).hex() == value.hex()
    check_decoded(value, event, [5])


@pytest.mark.parametrize(("event", "tail_hex"), GOLDEN_1, ids=lambda value: type(value).__name__)
def test_the_bytes_of_version_1_are_read_for_ever(event: Event, tail_hex: str) -> None:
    # An array of six, version 1.
    check_decoded(bytes.fromhex("9601" + OUTER_HEX + tail_hex), event, None)


def check_decoded(value: bytes, event: Event, distances: list[int] | None) -> None:
    """Check that the batch holds this one event."""
    batch = decode_batch(40, value)
    assert (batch.base_offset, batch.epoch, batch.previous, batch.time_ms) == (40, 7, PREVIOUS, TIME_MS)
    assert batch.events == [event]
    assert type(batch.events[0]) is type(event)
    assert batch.distances == distances
    assert [*batch.steps()] == [(40, event, None if distances is None else distances[0])]
    assert batch.digest == digest_of(value)


def test_every_event_type_has_golden_bytes() -> None:
    assert {type(event) for event, _ in GOLDEN} == set(EVENT_TYPES.values())


def test_a_digest_is_blake2b_of_32_bytes() -> None:
    # BLAKE2b-256 of nothing, as `b2sum -l 256` prints it.
    assert digest_of(b"").hex() == "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"


def test_the_bytes_of_a_head_never_change() -> None:
    value = bytes.fromhex("9505c420" + PREVIOUS.hex() + "07cf0000018bcfe5687b03")
    head = Head(next_offset=5, digest=PREVIOUS, epoch=7, time_ms=TIME_MS, base_offset=3)
    assert encode_head(head).hex() == value.hex()
    assert decode_head(value) == head


@pytest.mark.parametrize(
    ("record", "value_hex"),
    [
        (PayloadRecord(bytes(16), {"a": "ä"}, b"\0x"), "93c410" + "00" * 16 + "81a161a2c3a4c4020078"),
        (PayloadRecord(bytes(16), None, b""), "93c410" + "00" * 16 + "c0c400"),
    ],
)
def test_the_bytes_of_a_payload_record_never_change(record: PayloadRecord, value_hex: str) -> None:
    assert encode_payload(*record).hex() == value_hex
    assert decode_payload(bytes.fromhex(value_hex)) == record


@quick
@given(st.lists(any_events(), min_size=1, max_size=8), st.integers(0, 2**64 - 1), st.integers(0, 2**63))
def test_any_batch_is_read_back_as_it_was(events: list[Event], epoch: int, time_ms: int) -> None:
    value = encode_batch(
        epoch, NO_DIGEST, time_ms, bytes(KIND_OF[type(event)] for event in events), events, [*range(len(events))]
    )
    batch = decode_batch(3, value)
    assert (batch.epoch, batch.time_ms, batch.events) == (epoch, time_ms, events)
    assert [type(event) for event in batch.events] == [type(event) for event in events]
    assert batch.next_offset == 3 + len(events)
    assert [record.offset for record in batch.records()] == list(range(3, 3 + len(events)))
    assert batch.distances == list(range(len(events)))
    assert {(record.time_ms, record.epoch) for record in batch.records()} == {(time_ms, epoch)}


@quick
@given(any_events())
def test_the_bytes_are_those_of_any_msgpack(event: Event) -> None:
    assert pack(event) == msgpack.packb(astuple(event), default=astuple)
    assert decode_batch(0, encoded([event])).events == [event]


def test_a_subclass_of_a_plain_type_is_stored_as_what_it_is_made_of() -> None:
    class Queue(StrEnum):
        MAIL = "mail"

    class Text(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "something else"

    class Key(bytes):
        pass

    class Number(int):
        pass

    plain = Enqueued(JOB, "mail", 7, 3, 0, b"k", "finished", 21, PREVIOUS)
    for queue in (Queue.MAIL, Text("mail")):
        event = replace(plain, queue=queue, priority=Number(7), unique_key=Key(b"k"))
        assert encoded([event]) == encoded([plain])


@quick
@given(st.binary(max_size=20), st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)), st.binary())
def test_any_payload_record_is_read_back_as_it_was(salt: bytes, headers: dict[str, str] | None, data: bytes) -> None:
    assert decode_payload(encode_payload(salt, headers, data)) == PayloadRecord(salt, headers, data)


def test_an_event_is_immutable_and_known_by_type_and_fields() -> None:
    event: Event = Acked(JOB, 5)
    with pytest.raises(AttributeError, match="immutable"):
        event.sweep_at_ms = 6  # type: ignore[misc,union-attr]
    match event:
        case Acked(id, sweep_at_ms=5, result=None):
            assert id == JOB
        case _:
            raise AssertionError(event)
    assert (event, hash(event)) == (Acked(JOB, 5), hash(Acked(JOB, 5)))
    alike: list[Event] = [Promoted(JOB), Swept(JOB)]
    assert alike[0] != alike[1]
    assert repr(event) == f"Acked(id={JOB!r}, sweep_at_ms=5, result=None)"
    assert pickle.loads(pickle.dumps(event)) == event


def test_an_unknown_event_type_is_named_with_its_offset() -> None:
    value = batch_with(kinds=b"\x02\x63", events=[(JOB,), (JOB, 1)])
    with pytest.raises(UnknownEventType, match=r"offset 41 is of the unknown type 99"):
        decode_batch(40, value)


@pytest.mark.parametrize("version", [3, 1000])
def test_a_newer_batch_asks_for_an_upgrade(version: int) -> None:
    with pytest.raises(FormatTooNew, match=f"version {version}"):
        decode_batch(0, batch_with(version=version))


@pytest.mark.parametrize("value", [[3], [3, "anything"], [3, 1, PREVIOUS, 5, b"\x02", [(JOB,)], [0], "more", "fields"]])
def test_a_newer_batch_may_have_another_shape(value: list[Any]) -> None:
    with pytest.raises(FormatTooNew):
        decode_batch(0, pack(value))


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 0},
        {"version": "1"},
        {"epoch": "7"},
        {"epoch": True},
        {"time_ms": 5.0},
        {"previous": bytes(31)},
        {"previous": "x" * 32},
        {"kinds": b""},
        {"kinds": b"\x02\x02"},
        {"kinds": [2]},
        {"kinds": b"", "events": []},
        {"events": {"a": 1}},
        {"events": 5},
        {"events": [5]},
        {"events": [(JOB, "one field too many")]},
        {"events": [()]},
        {"distances": []},
        {"distances": [0, 0]},
        {"distances": [-1]},
        {"distances": [True]},
        {"distances": None},
        {"version": 1},
    ],
)
def test_a_batch_of_the_wrong_shape_is_corrupt_at_its_base_offset(changed: dict[str, Any]) -> None:
    with pytest.raises(LogCorrupt) as caught:
        decode_batch(40, batch_with(**changed))
    assert caught.value.offset == 40


@pytest.mark.parametrize("value", [b"", b"\xc1", b"\x90", b"\x05", b"\xa1x", b"\x95" * 3000, pack([1] * 5)])
def test_what_is_no_batch_at_all_is_corrupt(value: bytes) -> None:
    with pytest.raises(LogCorrupt):
        decode_batch(0, value)


def test_every_truncation_of_a_batch_is_corrupt() -> None:
    value = encoded([event for event, _ in GOLDEN])
    for size in range(len(value)):
        with pytest.raises(LogCorrupt):
            decode_batch(0, value[:size])


def test_a_mutated_batch_raises_nothing_outside_the_error_tree() -> None:
    value = encoded([event for event, _ in GOLDEN])
    chance = random.Random(1)
    for _ in range(10_000):
        broken = bytearray(value)
        for _ in range(chance.randint(1, 4)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        with suppress(LedgerError):
            decode_batch(0, bytes(broken))


@thorough
@given(st.binary(max_size=80))
def test_any_bytes_raise_nothing_outside_the_error_tree(value: bytes) -> None:
    with suppress(LedgerError):
        decode_batch(0, value)
    with suppress(LedgerError):
        decode_head(value)
    with suppress(ValueError):
        decode_payload(value)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        pack([]),
        pack(5),
        pack([5, bytes(31), 7, 0, 3]),
        pack([5, "x" * 32, 7, 0, 3]),
        pack([5.0, PREVIOUS, 7, 0, 3]),
        pack([-1, PREVIOUS, 7, 0, 3]),
        pack([5, PREVIOUS, -7, 0, 3]),
        pack([5, PREVIOUS, 7, 0, -3]),
        pack([5, PREVIOUS, 7, 0, 3, 0]),
    ],
)
def test_a_malformed_head_is_corrupt(value: bytes) -> None:
    with pytest.raises(LogCorrupt):
        decode_head(value)


@pytest.mark.parametrize("value", [b"", pack(5), pack([b"", None]), pack(["", None, b""]), pack([b"", None, ""])])
def test_a_malformed_payload_record_is_a_value_error(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        decode_payload(value)


def test_headers_that_utf8_cannot_hold_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        encode_payload(b"", {"a": "\ud800"}, b"")


def test_an_old_kind_is_turned_into_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if kind 200 had been a claimed event without `worker`.
    monkeypatch.setitem(codec.UPCASTS, 200, (3, lambda row: (row[0], row[1], row[2], None)))
    value = batch_with(kinds=b"\x02\xc8\x0a", events=[(JOB,), (JOB, 1, 30), (JOB,)])
    assert decode_batch(0, value).events == [Promoted(JOB), Claimed(JOB, 1, 30, None), Swept(JOB)]


@pytest.mark.parametrize("row", [(), (JOB,), 5, None])
def test_an_old_kind_that_cannot_be_upcast_is_corrupt(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(codec.UPCASTS, 200, (3, lambda row: (row[0], row[1], row[2], None)))
    with pytest.raises(LogCorrupt, match="offset 41"):
        decode_batch(40, batch_with(kinds=b"\x02\xc8", events=[(JOB,), row]))
