"""The keys of the log's own ranges, byte by byte. (The index ranges, `i/`, stand in projections/indexes.py.)

Integers in keys are big-endian, so that the order of bytes is the order of numbers.

    m/format                        format version of the store, as decimal text: 3. In format 1 the rows of jobs and
                                    counters were shorter; record batches of formats 1 and 2 have version 1
    m/head                          where the log ends: see codec.py, `Head`
    m/secret                        32 random bytes: the key of the digests of unique keys
    m/rebuild                       there while a rebuild is under way: no queue opens on half-built indexes
    m/hint/ QUEUE                   where the scan of a queue's pending range may start; may lag, never leads
    m/progress/ ULID                how far a running try has come, as it reports it: no fact, gone with its claim
    m/projection/ NAME              the offset that a user's projection has applied, as u64
    l/ OFFSET                       a record batch; OFFSET (u64) is the offset of its first event
    p/ OFFSET                       a payload; OFFSET (u64) is the offset of the job's enqueued event
    t/ OFFSET                       a text: an error, a reason; OFFSET (u64) is that of the event with which it came
    k/ KEY                          the value of a key: the offset (u64) of its KvSet event, then salt and value
    x/ NAME NUL KEY                 the rows of a user's projection
"""

from collections.abc import Sequence

from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName

__all__ = [
    "FORMAT_KEY",
    "FORMAT_VERSION",
    "HEAD_KEY",
    "HINT_BYTES",
    "HINT_PREFIX",
    "LOG_PREFIX",
    "MAX_PRIORITY",
    "MAX_VALUE_KEY_BYTES",
    "MAX_QUEUE_NAME_BYTES",
    "META_PREFIX",
    "PAYLOAD_PREFIX",
    "PROGRESS_PREFIX",
    "REBUILD_KEY",
    "SECRET_BYTES",
    "SECRET_KEY",
    "TEXT_PREFIX",
    "VALUE_PREFIX",
    "after_prefix",
    "hint_key",
    "hint_position",
    "hint_queue",
    "hint_value",
    "log_key",
    "offset_of",
    "payload_key",
    "progress_key",
    "projection_key",
    "projection_rows_prefix",
    "queue_name_bytes",
    "queue_names",
    "text_key",
    "value_key",
]

FORMAT_VERSION = 3
META_PREFIX = b"m/"
FORMAT_KEY = b"m/format"
HEAD_KEY = b"m/head"
REBUILD_KEY = b"m/rebuild"
SECRET_KEY = b"m/secret"
HINT_PREFIX = b"m/hint/"
PROGRESS_PREFIX = b"m/progress/"
PROJECTION_PREFIX = b"m/projection/"
LOG_PREFIX = b"l/"
PAYLOAD_PREFIX = b"p/"
TEXT_PREFIX = b"t/"
VALUE_PREFIX = b"k/"
ROWS_PREFIX = b"x/"

MAX_QUEUE_NAME_BYTES = 255
MAX_VALUE_KEY_BYTES = 1024
MAX_PRIORITY = 2**32 - 1
"""A priority is a u32 in keys and in hints."""

HINT_BYTES = 12
SECRET_BYTES = 32
_OFFSET_BYTES = 8


def log_key(base_offset: int) -> bytes:
    """`l/` and the base offset of the record batch as u64."""
    return LOG_PREFIX + base_offset.to_bytes(_OFFSET_BYTES)


def payload_key(offset: int) -> bytes:
    """`p/` and the offset of the job's enqueued event as u64."""
    return PAYLOAD_PREFIX + offset.to_bytes(_OFFSET_BYTES)


def text_key(offset: int) -> bytes:
    """`t/` and the offset of the event with which the text came as u64."""
    return TEXT_PREFIX + offset.to_bytes(_OFFSET_BYTES)


def value_key(key: str) -> bytes:
    """`k/` and the key in UTF-8; raises `InvalidArgument` unless it is 1 to 1,024 bytes without NUL."""
    try:
        encoded = key.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise InvalidArgument(f"the key {key!r} is not text that UTF-8 can hold") from error
    if not 1 <= len(encoded) <= MAX_VALUE_KEY_BYTES or b"\0" in encoded:
        raise InvalidArgument(
            f"the key {key[:40]!r} has {len(encoded)} bytes: a key has 1 to {MAX_VALUE_KEY_BYTES} bytes without NUL"
        )
    return VALUE_PREFIX + encoded


def offset_of(key: bytes) -> int:
    """The offset in a key of the log, payload or text range."""
    return int.from_bytes(key[2:])


def hint_key(queue: str) -> bytes:
    """`m/hint/` and the queue's name in UTF-8."""
    return HINT_PREFIX + queue.encode()


def hint_queue(key: bytes, errors: str = "strict") -> str:
    """The queue's name in a hint's key; `errors` is that of `bytes.decode`, for names that damage made unreadable."""
    return key[len(HINT_PREFIX) :].decode(errors=errors)


def hint_value(position: tuple[int, int]) -> bytes:
    """A hint as bytes: priority u32, offset u64."""
    return position[0].to_bytes(4) + position[1].to_bytes(8)


def hint_position(value: bytes) -> tuple[int, int]:
    """The (priority, offset) in a hint's value; a damaged hint counts as none: before everything."""
    return (int.from_bytes(value[:4]), int.from_bytes(value[4:])) if len(value) == HINT_BYTES else (0, 0)


def progress_key(id: bytes) -> bytes:
    """`m/progress/` and the job's ULID, 16 bytes."""
    return PROGRESS_PREFIX + id


def projection_key(name: str) -> bytes:
    """`m/projection/` and the projection's name."""
    return PROJECTION_PREFIX + name.encode()


def projection_rows_prefix(name: str) -> bytes:
    """`x/`, the projection's name and NUL; the projection's own key follows."""
    return ROWS_PREFIX + name.encode() + b"\0"


def after_prefix(prefix: bytes) -> bytes:
    """The first key after all keys that start with `prefix`, whose last byte must be below 0xff."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def queue_name_bytes(queue: str) -> bytes:
    """The name in UTF-8; raises `InvalidQueueName` unless it is 1 to 255 bytes without NUL."""
    try:
        encoded = queue.encode()
    except (UnicodeEncodeError, AttributeError) as error:
        raise InvalidQueueName(f"queue name {queue!r} is not text that UTF-8 can hold") from error
    if not 1 <= len(encoded) <= MAX_QUEUE_NAME_BYTES or b"\0" in encoded:
        raise InvalidQueueName(
            f"queue name {queue!r} has {len(encoded)} bytes: a name has 1 to {MAX_QUEUE_NAME_BYTES} bytes without NUL"
        )
    return encoded


def queue_names(queues: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several as several, each once; raises `InvalidQueueName` for what holds no names."""
    try:
        return (queues,) if isinstance(queues, str) else tuple(dict.fromkeys(queues))
    except (TypeError, ValueError) as error:
        raise InvalidQueueName(f"one queue's name or a list of names is needed, not {queues!r}") from error
