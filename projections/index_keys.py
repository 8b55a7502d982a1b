"""The keys of the live key indexes, byte by byte; indexes.py has the rows.

Integers are big-endian; a ULID is its 16 bytes; a queue's name holds no NUL.

    i/job/ ULID                             the job's whole state, a msgpack array (`Job`; in older formats shorter)
    i/pending/ QUEUE NUL PRIORITY OFFSET    ULID; priority u32, offset (u64) of the enqueued event
    i/scheduled/ DUE OFFSET                 ULID; due ms u64, offset (u64) of the enqueued event
    i/claimed/ ULID                         empty
    i/expiry/ MS OFFSET                     ULID; scheduled and pending jobs that expire, ms u64, as above
    i/finished/ SWEEP-AT ULID               empty; done, dead and cancelled jobs, sweep-at ms u64
    i/dead/ QUEUE NUL OFFSET                ULID; offset (u64) of the enqueued event
    i/unique/ QUEUE NUL KEY                 ULID of the job that holds the key
    i/stats/ QUEUE                          counts: see stats.py
    i/schedule/ NAME                        a schedule's whole state, a msgpack array (`Schedule`)
    i/tick/ DUE NAME                        empty; schedules that are to tick, due ms u64 (with the tick's jitter)
    i/limit/ QUEUE                          the limits of a queue, and what is used of them, a msgpack array (`Limits`)
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.keys import after_prefix

__all__ = [
    "CLAIMED",
    "DEAD",
    "EXPIRY",
    "FINISHED_PREFIX",
    "INDEX_PREFIX",
    "IndexKey",
    "JOB",
    "LIMIT",
    "OF_NO_JOB",
    "PENDING",
    "RANGES",
    "SCHEDULE",
    "SCHEDULED",
    "STATS",
    "TICK",
    "ULID_BYTES",
    "UNIQUE",
    "claimed_key",
    "dead_key",
    "dead_prefix",
    "expiry_key",
    "finished_key",
    "job_key",
    "job_of_row",
    "leading_ms",
    "limit_key",
    "parse_key",
    "pending_key",
    "pending_position",
    "pending_prefix",
    "range_bounds",
    "schedule_key",
    "scheduled_key",
    "stats_key",
    "tick_key",
    "unique_key",
]

INDEX_PREFIX: Final = b"i/"
JOB: Final = b"i/job/"
PENDING: Final = b"i/pending/"
SCHEDULED: Final = b"i/scheduled/"
CLAIMED: Final = b"i/claimed/"
EXPIRY: Final = b"i/expiry/"
FINISHED_PREFIX: Final = b"i/finished/"
DEAD: Final = b"i/dead/"
UNIQUE: Final = b"i/unique/"
STATS: Final = b"i/stats/"
SCHEDULE: Final = b"i/schedule/"
TICK: Final = b"i/tick/"
LIMIT: Final = b"i/limit/"
OF_NO_JOB: Final = (STATS, SCHEDULE, TICK, LIMIT)
"""The ranges whose rows are no job's."""
RANGES: Final = {
    "job": JOB,
    "pending": PENDING,
    "scheduled": SCHEDULED,
    "claimed": CLAIMED,
    "expiry": EXPIRY,
    "finished": FINISHED_PREFIX,
    "dead": DEAD,
    "unique": UNIQUE,
    "stats": STATS,
    "schedule": SCHEDULE,
    "tick": TICK,
    "limit": LIMIT,
}

ULID_BYTES: Final = 16
_priority_offset = struct.Struct(">IQ")
_due_offset = struct.Struct(">QQ")
_u64 = struct.Struct(">Q")


def job_key(id: bytes) -> bytes:
    """`i/job/` ULID."""
    return JOB + id


def claimed_key(id: bytes) -> bytes:
    """`i/claimed/` ULID."""
    return CLAIMED + id


@lru_cache(1000)
def pending_prefix(queue: str) -> bytes:
    """`i/pending/` QUEUE NUL: the pending range of one queue."""
    return b"%b%b\0" % (PENDING, queue.encode())


def pending_key(queue: str, priority: int, offset: int) -> bytes:
    """`i/pending/` QUEUE NUL, priority u32, offset u64."""
    return pending_prefix(queue) + _priority_offset.pack(priority, offset)


def pending_position(key: bytes) -> tuple[int, int]:
    """(priority, offset) of a pending key."""
    place: tuple[int, int] = _priority_offset.unpack(key[-_priority_offset.size :])
    return place


def scheduled_key(due_ms: int, offset: int) -> bytes:
    """`i/scheduled/`, due ms u64, offset u64."""
    return SCHEDULED + _due_offset.pack(due_ms, offset)


def expiry_key(expires_ms: int, offset: int) -> bytes:
    """`i/expiry/`, ms u64, offset u64."""
    return EXPIRY + _due_offset.pack(expires_ms, offset)


def finished_key(sweep_at_ms: int, id: bytes) -> bytes:
    """`i/finished/`, sweep-at ms u64, ULID."""
    return FINISHED_PREFIX + _u64.pack(sweep_at_ms) + id


def leading_ms(key: bytes, prefix: bytes) -> int:
    """The time that a key of a time-ordered range starts with; raises `ProjectionDrift` when there is none."""
    if len(key) < len(prefix) + _u64.size:
        raise ProjectionDrift(f"the key {key!r} holds no time: run rebuild-projections")
    value: int = _u64.unpack_from(key, len(prefix))[0]
    return value


def dead_key(queue: str, offset: int) -> bytes:
    """`i/dead/` QUEUE NUL, offset u64."""
    return b"%b%b\0%b" % (DEAD, queue.encode(), _u64.pack(offset))


def dead_prefix(queue: str) -> bytes:
    """`i/dead/` QUEUE NUL: the dead letters of one queue."""
    return b"%b%b\0" % (DEAD, queue.encode())


def unique_key(queue: str, key: bytes) -> bytes:
    """`i/unique/` QUEUE NUL KEY."""
    return b"%b%b\0%b" % (UNIQUE, queue.encode(), key)


def stats_key(queue: str) -> bytes:
    """`i/stats/` QUEUE."""
    return STATS + queue.encode()


def schedule_key(name: str) -> bytes:
    """`i/schedule/` NAME."""
    return SCHEDULE + name.encode()


def tick_key(due_ms: int, name: str) -> bytes:
    """`i/tick/`, due ms u64, NAME."""
    return TICK + _u64.pack(due_ms) + name.encode()


def limit_key(queue: str) -> bytes:
    """`i/limit/` QUEUE."""
    return LIMIT + queue.encode()


class IndexKey(NamedTuple):
    """An index key, parsed: its range, its content in readable form, and the job it belongs to, if any."""

    range_name: str
    text: str
    id: bytes | None


def parse_key(key: bytes, value: bytes) -> IndexKey:
    """Parse an index row, also a damaged one: what can't be read is shown as hexadecimal digits."""
    for name, prefix in RANGES.items():
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            try:
                return _parse(name, rest, value)
            except (ValueError, struct.error):
                return IndexKey(name, f"unreadable key {rest.hex()}", None)
    return IndexKey("unknown", f"key {key.hex()}", None)


def job_of_row(key: bytes, value: bytes) -> bytes | None:
    """The 16 bytes of the job's id that an index row names, by its value or at the end of its key; None if it doesn't.

    For rows of any damage: what it gives is where to look, and no more.
    """
    id = key[-ULID_BYTES:] if key.startswith((JOB, CLAIMED, FINISHED_PREFIX)) else value
    return id if len(id) == ULID_BYTES else None


def _parse(name: str, rest: bytes, value: bytes) -> IndexKey:
    if name in ("stats", "limit"):
        return IndexKey(name, f"queue {rest.decode()!r}", None)
    if name == "schedule":
        return IndexKey(name, f"schedule {rest.decode()!r}", None)
    if name == "tick":
        return IndexKey(name, f"due {_u64.unpack(rest[:8])[0]} ms, schedule {rest[8:].decode()!r}", None)
    if name in ("job", "claimed"):
        return IndexKey(name, f"job {job_id_text(rest)}", rest)
    if name == "finished":
        return IndexKey(name, f"sweep at {_u64.unpack(rest[:8])[0]} ms, job {job_id_text(rest[8:])}", rest[8:])
    id = value if len(value) == ULID_BYTES else None
    if name in ("scheduled", "expiry"):
        due_ms, offset = _due_offset.unpack(rest)
        return IndexKey(name, f"{'due' if name == 'scheduled' else 'expires'} {due_ms} ms, offset {offset}", id)
    queue, _, tail = rest.partition(b"\0")
    where = f"queue {queue.decode()!r}"
    if name == "pending":
        priority, offset = _priority_offset.unpack(tail)
        return IndexKey(name, f"{where}, priority {priority}, offset {offset}", id)
    if name == "dead":
        return IndexKey(name, f"{where}, offset {_u64.unpack(tail)[0]}", id)
    return IndexKey(name, f"{where}, unique key {tail!r}", id)


def range_bounds(name: str) -> tuple[bytes, bytes]:
    """First key and stop key of a range."""
    return RANGES[name], after_prefix(RANGES[name])
