"""The live key indexes: the index rows of a job in each state, a pure function of the job, byte by byte.

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

A job keeps its position in the pending range for life: the offset is that of its enqueued event, so within one priority
jobs are handed out in the order in which they were enqueued, also after a retry.
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec.msgpack import Decoder
from msgspec.structs import astuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.keys import FORMAT_VERSION, MAX_PRIORITY, after_prefix, queue_name_bytes
from ledgerq.eventlog.terms import decode_terms
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.schedule import Schedule

__all__ = [
    "INDEX_PREFIX",
    "RANGES",
    "IndexKey",
    "claimed_key",
    "dead_key",
    "decode_job",
    "decode_schedule",
    "expiry_key",
    "finished_key",
    "index_entries",
    "index_rows",
    "job_key",
    "job_of_row",
    "parse_key",
    "pending_key",
    "pending_prefix",
    "row_count",
    "schedule_key",
    "schedule_rows",
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
OF_NO_JOB: Final = (STATS, SCHEDULE, TICK)
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
}

ULID_BYTES: Final = 16
_priority_offset = struct.Struct(">IQ")
_due_offset = struct.Struct(">QQ")
_u64 = struct.Struct(">Q")
_MAX_U64: Final = 2**64 - 1


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


def schedule_rows(schedule: Schedule) -> dict[bytes, bytes]:
    """The index rows of a schedule: stated here and nowhere else."""
    rows = {schedule_key(schedule.name): pack(schedule)}
    if schedule.waits_until_ms:
        rows[tick_key(schedule.waits_until_ms, schedule.name)] = b""
    return rows


def decode_schedule(key: bytes, value: bytes) -> Schedule:
    """The schedule in a row of its range; raises `ProjectionDrift` when the row is malformed, or another schedule's."""
    try:
        schedule = _decode_schedule(value)
        if schedule_key(schedule.name) != key:
            raise ValueError("it has another name")
        queue_name_bytes(schedule.setting.queue)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectionDrift(f"a schedule's index row can't be decoded ({error}): run rebuild-projections") from error
    return schedule


def index_entries(job: Job, format_version: int = FORMAT_VERSION) -> dict[bytes, bytes]:
    """Every index row that a job in this state has."""
    return {JOB + job.spec.id: pack(job) if format_version > 2 else _older_row(job, format_version), **index_rows(job)}


def _older_row(job: Job, format_version: int) -> bytes:
    """A job's row of format 2, which ended after `since_ms` and had no terms, or of format 1, which ended before it."""
    spec, *fields = astuple(job)
    ends = _FORMAT_1_FIELDS if format_version == 1 else _FORMAT_1_FIELDS + 1
    return pack((astuple(spec)[:-1], *fields[: ends - 1]))


def index_rows(job: Job) -> dict[bytes, bytes]:
    """The index rows of a job in this state, beside its own row: stated here and nowhere else."""
    id, state = job.spec.id, job.state
    entries: dict[bytes, bytes] = {}
    if state == "pending":
        entries[pending_key(job.spec.queue, job.spec.priority, job.offset)] = id
    elif state == "claimed":
        entries[CLAIMED + id] = b""
    elif state == "scheduled":
        entries[scheduled_key(job.due_ms, job.offset)] = id
    elif state in FINISHED:
        entries[finished_key(job.sweep_at_ms, id)] = b""
        if state == "dead":
            entries[dead_key(job.spec.queue, job.offset)] = id
    if job.spec.terms is not None and state in ("pending", "scheduled") and (expires_ms := job.starts_before_ms):
        entries[expiry_key(expires_ms, job.offset)] = id
    if job.unique_held and job.spec.unique_key is not None:
        entries[unique_key(job.spec.queue, job.spec.unique_key)] = id
    return entries


def row_count(job: Job) -> int:
    """The number of index rows of a job in this state: `len(index_entries(job))`, without making them."""
    # Its own, one for its state, and these.
    expires = job.spec.terms is not None and job.state in ("pending", "scheduled") and job.starts_before_ms > 0
    return 2 + (job.state == "dead") + expires + (job.unique_held and job.spec.unique_key is not None)


def decode_job(value: bytes) -> Job:
    """The job in a row of the job range; raises `ProjectionDrift` when the row is malformed."""
    try:
        job = _decode_present(value)
        # A row changed so that it names another job would be read, claimed and deleted as that job's.
        queue_name_bytes(job.spec.queue)
        numbers = (job.offset, job.due_ms, job.sweep_at_ms)
        if not (0 <= job.spec.priority <= MAX_PRIORITY and min(numbers) >= 0 and max(numbers) <= _MAX_U64):
            raise ValueError("a number that no key can hold")
        if job.spec.terms is not None:
            decode_terms(job.spec.terms)
    except (ValueError, TypeError, RecursionError) as error:
        raise ProjectionDrift(f"a job's index row can't be decoded ({error}): run rebuild-projections") from error
    return job


_decode: Final = Decoder(Job).decode
_decode_schedule: Final = Decoder(Schedule).decode
_FORMAT_1_FIELDS: Final = Job.__struct_fields__.index("since_ms")


def _decode_present(value: bytes) -> Job:
    """The job in a row of any format; that of format 1 ends before `since_ms`."""
    try:
        return _decode(value)
    except ValueError:
        fields = unpack(value)
        if type(fields) is not tuple or len(fields) != _FORMAT_1_FIELDS:
            raise
    # Due or changed, which is nearly the same.
    return _decode(pack((*fields, fields[6] or fields[5])))


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
    if name == "stats":
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
