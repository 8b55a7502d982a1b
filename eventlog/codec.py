"""Events, payloads and the head as bytes: the only place that knows the format of a value.

A record batch is one msgpack array `[version, epoch, previous digest, commit time ms, kinds, events]`: `kinds` is one
byte for each event, its type, and an event is the array of its fields. A changed event gets a new kind; `UPCASTS` turns
the fields of an old kind into those of a current one, and is the one place for it.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LedgerError, LogCorrupt, UnknownEventType
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    Enqueued,
    Event,
    LeaseExpired,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Record,
    Requeued,
    Swept,
    WriterClosed,
    WriterOpened,
)

__all__ = [
    "EVENT_TYPES",
    "KIND_OF",
    "NO_DIGEST",
    "Head",
    "PayloadRecord",
    "RecordBatch",
    "decode_batch",
    "decode_head",
    "decode_payload",
    "digest_of",
    "encode_batch",
    "encode_head",
    "encode_payload",
]

BATCH_VERSION: Final = 1
DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)

# The number of a kind is part of the format: never reuse one.
EVENT_TYPES: Final[dict[int, type[Any]]] = {
    1: Enqueued,
    2: Promoted,
    3: Claimed,
    4: Acked,
    5: Nacked,
    6: LeaseExpired,
    7: CancelRequested,
    8: Cancelled,
    9: Requeued,
    10: Swept,
    32: QueuePaused,
    33: QueueResumed,
    48: WriterOpened,
    49: WriterClosed,
    50: Rebuilt,
}
KIND_OF: Final[dict[type[Any], int]] = {event_type: kind for kind, event_type in EVENT_TYPES.items()}

# Old kind -> (current kind, its fields made from the old fields). Empty as long as no event has changed.
UPCASTS: Final[dict[int, tuple[int, Callable[[tuple[Any, ...]], tuple[Any, ...]]]]] = {}

_packer = msgpack.Packer(autoreset=True)
pack: Final[Callable[[Any], bytes]] = _packer.pack


def unpack(value: bytes) -> Any:
    """A msgpack value with arrays as tuples; raises `ValueError` (or a subclass) for anything malformed."""
    try:
        return msgpack.unpackb(value, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"not msgpack: {error}") from error


def digest_of(value: bytes) -> bytes:
    """BLAKE2b-256: 32 bytes."""
    return hashlib.blake2b(value, digest_size=DIGEST_BYTES).digest()


class RecordBatch(NamedTuple):
    """The events of one commit, decoded. `digest` is that of the encoded value."""

    base_offset: int
    epoch: int
    previous: bytes
    time_ms: int
    events: list[Event]
    digest: bytes

    @property
    def next_offset(self) -> int:
        """The offset after the last event."""
        return self.base_offset + len(self.events)

    def records(self) -> list[Record]:
        """Each event with its place in the log."""
        base, time_ms, epoch = self.base_offset, self.time_ms, self.epoch
        return [Record(base + i, time_ms, epoch, event) for i, event in enumerate(self.events)]


class Head(NamedTuple):
    """Where the log ends: the next offset, the last batch (its base offset, digest, epoch) and its commit time."""

    next_offset: int
    digest: bytes
    epoch: int
    time_ms: int
    base_offset: int


EMPTY_HEAD: Final = Head(0, NO_DIGEST, 0, 0, 0)


class PayloadRecord(NamedTuple):
    """What a job carries: random salt (so that a digest tells nothing about a guessable payload), headers, bytes."""

    salt: bytes
    headers: dict[str, str] | None
    payload: bytes


def encode_batch(epoch: int, previous: bytes, time_ms: int, kinds: bytes, events: Sequence[Event]) -> bytes:
    """The value of a record batch; `kinds` holds `KIND_OF[type(event)]` for each event."""
    return pack((BATCH_VERSION, epoch, previous, time_ms, kinds, events))


def decode_batch(base_offset: int, value: bytes) -> RecordBatch:
    """The batch in `value`.

    Raises `LogCorrupt` for a malformed value, `FormatTooNew` for a newer version, `UnknownEventType` for an event that
    this version doesn't know.
    """
    try:
        outer = unpack(value)
        # A newer version may have another shape, so the number is looked at first.
        if type(outer) is tuple and outer and type(outer[0]) is int and outer[0] > BATCH_VERSION:
            raise FormatTooNew(
                f"the batch at offset {base_offset} has version {outer[0]}, this ledgerq reads up to "
                f"{BATCH_VERSION}: upgrade it"
            )
        version, epoch, previous, time_ms, kinds, fields = outer
        if not (
            version == BATCH_VERSION
            and type(epoch) is int
            and type(time_ms) is int
            and type(previous) is bytes
            and len(previous) == DIGEST_BYTES
            and type(kinds) is bytes
            and type(fields) is tuple
            and len(kinds) == len(fields) > 0
        ):
            raise ValueError("a record batch's outer fields have the wrong shape")
        events = [_TYPES[kind](row) for kind, row in zip(kinds, fields, strict=True)]
    except LedgerError:
        raise
    except KeyError as error:
        events = _decode_old(base_offset, kinds, fields, error)
    except (ValueError, TypeError) as error:
        raise LogCorrupt(base_offset, f"the record batch can't be decoded ({error})") from error
    return RecordBatch(base_offset, epoch, previous, time_ms, events, digest_of(value))


_TYPES: Final[dict[int, Callable[[tuple[Any, ...]], Any]]] = {
    kind: event_type._make for kind, event_type in EVENT_TYPES.items()
}


def _decode_old(base_offset: int, kinds: bytes, fields: tuple[Any, ...], unknown: KeyError) -> list[Event]:
    events: list[Event] = []
    for i, (kind, row) in enumerate(zip(kinds, fields, strict=True)):
        try:
            if kind in UPCASTS:
                kind, row = UPCASTS[kind][0], UPCASTS[kind][1](row)
            if kind not in _TYPES:
                raise UnknownEventType(
                    f"the event at offset {base_offset + i} is of the unknown type {kind}: upgrade ledgerq to read it"
                ) from unknown
            events.append(_TYPES[kind](row))
        except (ValueError, TypeError, LookupError) as error:
            raise LogCorrupt(
                base_offset, f"the event at offset {base_offset + i} can't be decoded ({error})"
            ) from error
    return events


def encode_head(head: Head) -> bytes:
    """The value of `m/head`."""
    return pack(head)


def decode_head(value: bytes) -> Head:
    """The head in the value of `m/head`; raises `LogCorrupt` when it is malformed."""
    try:
        head = Head._make(unpack(value))
    except (ValueError, TypeError) as error:
        raise LogCorrupt(0, f"the log's head can't be decoded ({error})") from error
    shape = [type(field) for field in head]
    if (
        shape != [int, bytes, int, int, int]
        or len(head.digest) != DIGEST_BYTES
        or min(head.next_offset, head.epoch, head.time_ms, head.base_offset) < 0
    ):
        raise LogCorrupt(0, "the log's head has the wrong shape")
    return head


def encode_payload(salt: bytes, headers: dict[str, str] | None, payload: bytes) -> bytes:
    """A payload record; headers that UTF-8 can't hold raise `InvalidArgument`."""
    try:
        return pack((salt, headers, payload))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the payload's headers can't be stored: {error}") from error


def decode_payload(value: bytes) -> PayloadRecord:
    """The payload record in `value`; raises `ValueError` when it is malformed."""
    try:
        record = PayloadRecord._make(unpack(value))
    except TypeError as error:
        raise ValueError(str(error)) from error
    if type(record.salt) is not bytes or type(record.payload) is not bytes:
        raise ValueError("a payload record has the wrong shape")
    return record
