"""The codec of events, payloads and the head: the only module in which the format of a value is written down.

A record batch is one msgpack array `[version, epoch, previous digest, commit time ms, kinds, events]`: `kinds` is one
byte for each event, its type, and an event is the array of its fields. A changed event gets a new kind; `UPCASTS` turns
the fields of an old kind into those of a current one, and is the one place for it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgpack

from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LedgerError, LogCorrupt, UnknownEventType
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Enqueued,
    Event,
    FilesSetAside,
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
from ledgerq.eventlog.record_types import checked, plain_shapes

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
    "encode_batch_pieces",
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
    14: DeadLettered,
    32: QueuePaused,
    33: QueueResumed,
    48: WriterOpened,
    49: WriterClosed,
    50: Rebuilt,
    51: FilesSetAside,
}
KIND_OF: Final[dict[type[Any], int]] = {event_type: kind for kind, event_type in EVENT_TYPES.items()}

# Kinds below this are a job's: their first field is its id.
_FIRST_OTHER_KIND: Final = 32
_ID_BYTES: Final = 16

# Old kind -> (current kind, its fields made from the old fields). Empty as long as no event has changed.
UPCASTS: Final[dict[int, tuple[int, Callable[[tuple[Any, ...]], tuple[Any, ...]]]]] = {}

_packer = msgpack.Packer(autoreset=True)
pack: Final[Callable[[Any], bytes]] = _packer.pack


# An array's header makes msgpack reserve memory for all the items that it promises, at each depth anew: two megabytes
# at most for a value of this size, many gigabytes for one of a megabyte.
_TRUSTED_BYTES: Final = 1024
# Numbers that are counted on from (offsets, epochs, times) must leave a margin to do so.
_MAX_COUNT: Final = 2**63 - 1


def unpack(value: bytes) -> Any:
    """A msgpack value with arrays as tuples; raises `ValueError` (or a subclass) for anything malformed.

    Takes memory in proportion to the value's size, whatever lengths the value claims.
    """
    try:
        if len(value) > _TRUSTED_BYTES:
            walker = msgpack.Unpacker(max_buffer_size=len(value))
            walker.feed(value)
            walker.skip()  # reserves nothing; an array that promises more than there is ends here
        return msgpack.unpackb(value, use_list=False, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"not msgpack: {error}") from error


def digest_of(value: bytes) -> bytes:
    """The BLAKE2b-256 digest of these bytes: 32 bytes."""
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
        """Each event with its offset in the log."""
        base, time_ms, epoch = self.base_offset, self.time_ms, self.epoch
        return [Record(base + i, time_ms, epoch, event) for i, event in enumerate(self.events)]


class Head(NamedTuple):
    """The end of the log: the next offset, the last batch (its base offset, digest, epoch) and its commit time."""

    next_offset: int
    digest: bytes
    epoch: int
    time_ms: int
    base_offset: int


EMPTY_HEAD: Final = Head(0, NO_DIGEST, 0, 0, 0)


class PayloadRecord(NamedTuple):
    """A job's payload: random salt (so that a guessable payload can't be found from its digest), headers, bytes."""

    salt: bytes
    headers: dict[str, str] | None
    payload: bytes


def encode_batch(epoch: int, previous: bytes, time_ms: int, kinds: bytes, events: Sequence[Event]) -> bytes:
    """The value of a record batch; `kinds` holds `KIND_OF[type(event)]` for each event."""
    return pack((BATCH_VERSION, epoch, previous, time_ms, kinds, events))


def encode_batch_pieces(
    epoch: int, previous: bytes, time_ms: int, kinds: bytes, events: Sequence[Event], piece_events: int
) -> Iterator[bytes]:
    """The bytes of `encode_batch`, in parts of so many events."""
    # An array of six: of these five, and of the events.
    yield _packer.pack_array_header(6) + pack((BATCH_VERSION, epoch, previous, time_ms, kinds))[1:]
    yield _packer.pack_array_header(len(events))
    for at in range(0, len(events), piece_events):
        piece = events[at : at + piece_events]
        yield pack(piece)[len(_packer.pack_array_header(len(piece))) :]


def decode_batch(base_offset: int, value: bytes) -> RecordBatch:
    """The batch in `value`.

    Raises `LogCorrupt` for a malformed value, `FormatTooNew` for a newer version, `UnknownEventType` for an event that
    this version doesn't know.
    """
    try:
        outer = unpack(value)
        # A newer version may have another shape, so the number is read first.
        if type(outer) is tuple and outer and type(outer[0]) is int and outer[0] > BATCH_VERSION:
            raise FormatTooNew(
                f"the batch at offset {base_offset} has version {outer[0]}, this ledgerq reads up to "
                f"{BATCH_VERSION}: upgrade it"
            )
        version, epoch, previous, time_ms, kinds, fields = outer
        if not (
            version == BATCH_VERSION
            and type(epoch) is type(time_ms) is int
            and min(epoch, time_ms) >= 0
            and type(previous) is bytes
            and len(previous) == DIGEST_BYTES
            and type(kinds) is bytes
            and type(fields) is tuple
            and len(kinds) == len(fields) > 0
        ):
            raise ValueError("a record batch's outer fields have the wrong shape")
        if set(map(type, fields)) != {tuple}:
            raise KeyError
        events = [_new(_SHAPES[kind][tuple(map(type, row))], row) for kind, row in zip(kinds, fields, strict=True)]
    except LedgerError:
        raise
    except KeyError:  # no shape of a current event: which one, and is it an old one?
        events = _decode_slowly(base_offset, kinds, fields)
    except (ValueError, TypeError) as error:
        raise LogCorrupt(base_offset, f"the record batch can't be decoded ({error})") from error
    _check_ids(base_offset, kinds, events)
    return RecordBatch(base_offset, epoch, previous, time_ms, events, digest_of(value))


_new: Final[Callable[[type[Any], tuple[Any, ...]], Any]] = tuple.__new__
_SHAPES: Final = {kind: dict.fromkeys(plain_shapes(event_type), event_type) for kind, event_type in EVENT_TYPES.items()}


def _decode_slowly(base_offset: int, kinds: bytes, fields: tuple[tuple[Any, ...], ...]) -> list[Event]:
    """Decode event by event: old kinds are upcast, and the error names the first event that is wrong."""
    events: list[Event] = []
    for offset, (kind, row) in enumerate(zip(kinds, fields, strict=True), base_offset):
        try:
            if type(row) is not tuple:
                raise ValueError("its fields are no array")
            if kind in UPCASTS:
                kind, row = UPCASTS[kind][0], UPCASTS[kind][1](row)
            if kind not in EVENT_TYPES:
                raise UnknownEventType(
                    f"the event at offset {offset} is of the unknown type {kind}: upgrade ledgerq to read it"
                )
            events.append(checked(EVENT_TYPES[kind], row))
        except LedgerError:
            raise
        except Exception as error:  # an upcast may meet anything
            raise LogCorrupt(base_offset, f"the event at offset {offset} can't be decoded ({error})") from error
    return events


def _check_ids(base_offset: int, kinds: bytes, events: list[Event]) -> None:
    if max(kinds) >= _FIRST_OTHER_KIND:
        events = [event for event in events if KIND_OF[type(event)] < _FIRST_OTHER_KIND]
    if events and set(map(len, map(itemgetter(0), events))) != {_ID_BYTES}:
        raise LogCorrupt(base_offset, f"a job's id in the record batch doesn't have {_ID_BYTES} bytes")


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
        or max(head.next_offset, head.epoch, head.time_ms, head.base_offset) > _MAX_COUNT
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
    headers = record.headers
    texts = () if headers is None else (*headers, *headers.values()) if type(headers) is dict else (None,)
    if type(record.salt) is not bytes or type(record.payload) is not bytes or not all(type(t) is str for t in texts):
        raise ValueError("a payload record has the wrong shape")
    return record
