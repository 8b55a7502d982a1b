"""The codec of events and the head; side_records.py has that of what stands beside the log.

A record batch is one msgpack array `[version, epoch, previous digest, commit time ms, kinds, events, distances]`:
`kinds` is one byte for each event, its type, and an event is the array of its fields. `distances` has for each event
how many offsets before it the event before of the same job is, 0 where there is none; version 1 ends before it. A
changed event gets a new kind, unless it only gets further fields or a field more types: then older bytes are decoded as
they are. `UPCASTS` turns the fields of an old kind into those of a current one, and is the one place for it. The types
of the fields are exact (`True` is no number) and are checked by decoding. The meaning of a number or a text is not:
that is for the fold.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Annotated, Any, Final, NamedTuple

import msgpack
from msgspec import Meta, Raw, Struct
from msgspec.msgpack import Decoder, Encoder

from ledgerq.eventlog.errors import FormatTooNew, LedgerError, LogCorrupt, UnknownEventType
from ledgerq.eventlog.events import Event, Record
from ledgerq.eventlog.kinds import EVENT_TYPES

__all__ = [
    "EVENT_TYPES",
    "KIND_OF",
    "NO_DIGEST",
    "Head",
    "RecordBatch",
    "decode_batch",
    "decode_head",
    "digest_of",
    "encode_batch",
    "encode_batch_pieces",
    "encode_head",
    "stored_batch",
]

BATCH_VERSION: Final = 2
_VERSIONS: Final = (1, BATCH_VERSION)
DIGEST_BYTES: Final = 32
NO_DIGEST: Final = bytes(DIGEST_BYTES)

KIND_OF: Final[dict[type[Any], int]] = {event_type: kind for kind, event_type in EVENT_TYPES.items()}

# Old kind -> (current kind, its fields made from the old fields). Empty as long as no event has changed.
UPCASTS: Final[dict[int, tuple[int, Callable[[tuple[Any, ...]], tuple[Any, ...]]]]] = {}


def _plain(value: Any) -> Any:
    """The plain value of a subclass: a queue may be named by any kind of `str`."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes):
        return bytes.__getitem__(value, slice(None))
    if isinstance(value, int):
        return int.__int__(value)
    raise TypeError(f"{type(value).__name__} can't be stored")


_packer = msgpack.Packer(autoreset=True)
pack: Final[Callable[[Any], bytes]] = Encoder(enc_hook=_plain).encode
"""The msgpack bytes of an event, a job or any other value: tuples and records are arrays."""


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
    """The events of one commit, decoded. `digest` is that of the encoded value; `distances` is None in version 1."""

    base_offset: int
    epoch: int
    previous: bytes
    time_ms: int
    events: list[Event]
    digest: bytes
    distances: list[int] | None

    @property
    def next_offset(self) -> int:
        """The offset after the last event."""
        return self.base_offset + len(self.events)

    def steps(self) -> Iterator[tuple[int, Event, int | None]]:
        """Each event with its offset in the log, and how many offsets before it the event before of its job is."""
        distances = repeat(None) if self.distances is None else self.distances
        return zip(range(self.base_offset, self.next_offset), self.events, distances, strict=False)

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


def encode_batch(
    epoch: int, previous: bytes, time_ms: int, kinds: bytes, events: Sequence[Event], distances: Sequence[int]
) -> bytes:
    """The value of a record batch; `kinds` holds `KIND_OF[type(event)]` for each event."""
    return pack((BATCH_VERSION, epoch, previous, time_ms, kinds, events, distances))


def encode_batch_pieces(
    epoch: int,
    previous: bytes,
    time_ms: int,
    kinds: bytes,
    events: Sequence[Event],
    distances: Sequence[int],
    piece_events: int,
) -> Iterator[bytes]:
    """The bytes of `encode_batch`, in parts of so many events."""
    # An array of seven: of these five, of the events, and of the distances.
    yield _packer.pack_array_header(7) + pack((BATCH_VERSION, epoch, previous, time_ms, kinds))[1:]
    for values in (events, distances):
        yield _packer.pack_array_header(len(values))
        for at in range(0, len(values), piece_events):
            piece = values[at : at + piece_events]
            yield pack(piece)[len(_packer.pack_array_header(len(piece))) :]


def decode_batch(base_offset: int, value: bytes) -> RecordBatch:
    """The batch in `value`.

    Raises `LogCorrupt` for a malformed value, `FormatTooNew` for a newer version, `UnknownEventType` for an event that
    this version doesn't know.
    """
    outer, rows = stored_batch(base_offset, value)
    try:
        events = [_DECODERS[kind](row) for kind, row in zip(outer.kinds, rows, strict=True)]
    except (KeyError, ValueError, RecursionError):  # an old kind, or one to be named by its offset
        events = _decode_slowly(base_offset, outer.kinds, rows)
    digest = digest_of(value)
    return RecordBatch(base_offset, outer.epoch, outer.previous, outer.time_ms, events, digest, outer.distances)


class _Outer(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """A record batch before its events are decoded."""

    version: int
    epoch: Annotated[int, Meta(ge=0)]
    previous: Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
    time_ms: Annotated[int, Meta(ge=0)]
    kinds: Annotated[bytes, Meta(min_length=1)]
    # To read this walks through all events and reserves nothing, so what they promise is there when they are decoded.
    rows: Raw
    distances: list[Annotated[int, Meta(ge=0)]] | None = None


_decode_outer: Final = Decoder(_Outer).decode
_decode_rows: Final = Decoder(list[Raw]).decode
_DECODERS: Final = {kind: Decoder(event_type).decode for kind, event_type in EVENT_TYPES.items()}


def stored_batch(base_offset: int, value: bytes) -> tuple[_Outer, list[Raw]]:
    """A record batch and its events, each still encoded. Raises like `decode_batch`, but not for its events."""
    try:
        outer = _decode_outer(value)
        kinds = len(outer.kinds)
        distances = None if outer.version == 1 else kinds
        if (
            outer.version not in _VERSIONS
            or _item_count(outer.rows) != kinds
            or (None if outer.distances is None else len(outer.distances)) != distances
        ):
            raise ValueError("a record batch's outer fields have the wrong shape")
        # Checked before anything is made of them: an event has two bytes at least.
        if len(memoryview(outer.rows)) <= 2 * kinds:
            raise ValueError("one of its events is no array of fields")
        return outer, _decode_rows(outer.rows)
    except (ValueError, RecursionError) as error:
        version = _version(value)
        if version > BATCH_VERSION:
            raise FormatTooNew(
                f"the batch at offset {base_offset} has version {version}, this ledgerq reads up to {BATCH_VERSION}: "
                "upgrade it"
            ) from error
        raise LogCorrupt(base_offset, f"the record batch can't be decoded ({error})") from error


def _item_count(array: Raw) -> int:
    """The number of items that an array's header names; raises `ValueError` for anything else."""
    head = bytes(memoryview(array)[:5])
    if 0x90 <= head[0] <= 0x9F:
        return head[0] - 0x90
    if head[0] not in (0xDC, 0xDD):
        raise ValueError("a record batch's events are no array")
    return int.from_bytes(head[1:3] if head[0] == 0xDC else head[1:])


def _version(value: bytes) -> int:
    """The version of what is no batch of this one; a newer one may have another shape. 0 where there is none."""
    try:
        outer = unpack(value)
    except ValueError:
        return 0
    return outer[0] if type(outer) is tuple and outer and type(outer[0]) is int else 0


def _decode_slowly(base_offset: int, kinds: bytes, rows: list[Raw]) -> list[Event]:
    """Decode event by event: old kinds are upcast, and the error names the first event that is wrong."""
    events: list[Event] = []
    for offset, (kind, row) in enumerate(zip(kinds, rows, strict=True), base_offset):
        try:
            fields = unpack(bytes(row))
            if type(fields) is not tuple:
                raise ValueError("its fields are no array")
            if kind in UPCASTS:
                kind, fields = UPCASTS[kind][0], UPCASTS[kind][1](fields)
            if kind not in EVENT_TYPES:
                raise UnknownEventType(
                    f"the event at offset {offset} is of the unknown type {kind}: upgrade ledgerq to read it"
                )
            events.append(_DECODERS[kind](pack(fields)))
        except LedgerError:
            raise
        except Exception as error:  # an upcast may meet anything
            raise LogCorrupt(base_offset, f"the event at offset {offset} can't be decoded ({error})") from error
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
        or max(head.next_offset, head.epoch, head.time_ms, head.base_offset) > _MAX_COUNT
    ):
        raise LogCorrupt(0, "the log's head has the wrong shape")
    return head
