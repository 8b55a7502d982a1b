"""A ledger with a job in every state, and every way in which its index rows can be wrong.

The audit must find each of them, and the rebuild must put the same rows back; so both go through this one list.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple

from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.side_records import key_digest
from ledgerq.projections.fold import Transition
from ledgerq.projections.index_keys import (
    INDEX_PREFIX,
    RANGES,
    claimed_key,
    dead_key,
    expiry_key,
    finished_key,
    job_key,
    limit_key,
    pending_key,
    pending_prefix,
    scheduled_key,
    stats_key,
    unique_key,
)
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.runner import Rows
from ledgerq.projections.stats import QueueCounters
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.tasks.registry import Tasks
from tests.support.operators import WHO
from tests.support.rig import Rig

__all__ = ["DAMAGES", "Kinds", "Ledger", "copy_of", "make_ledger", "rows_in", "unique_row", "with_projections"]

TASKS = Tasks()
NOBODY = bytes(15) + b"\x07"


@TASKS.task(queue="ticks")
def note(text: str = "") -> None:
    """A task for schedules."""


class Kinds:
    """A user's projection: counts the events of each type, also of those that concern no job."""

    name = "kinds"

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Go on from these counts."""
        self.counts = {key: int(value) for key, value in rows.items()}

    def apply(self, transition: Transition) -> Rows:
        """Count one more."""
        key = type(transition.event).__name__.encode()
        self.counts[key] = self.counts.get(key, 0) + 1
        return {key: b"%d" % self.counts[key]}


class States:
    """A user's projection whose rows come and go: the state of each job that is there."""

    name = "states"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Keep nothing in memory."""

    def apply(self, transition: Transition) -> Rows:
        """Set or remove the job's row."""
        job = transition.after or transition.before
        if job is None:
            return {}
        return {job.id: None if transition.after is None else transition.after.state.encode()}


def with_projections() -> list[Any]:
    """New projections, as if a process had just begun."""
    return [Kinds(), States()]


class Ledger(NamedTuple):
    """The disk of a closed queue, and the ids (16 bytes) of some of its jobs by what they are."""

    disk: MemoryDisk
    clock_ms: int
    jobs: dict[str, bytes]
    swept_rows: dict[bytes, bytes]


async def make_ledger(**options: Any) -> Ledger:
    """A ledger with jobs in every state, in several queues, one swept, one that holds a unique key."""
    swept: dict[bytes, bytes] = {}
    quick = {"quick": QueueOptions(keep_done_s=5.0)}
    async with Rig(queues=quick, **options) as rig:
        queue, jobs = rig.queue, {}

        async def claimed(name: str) -> Any:
            (claim,) = await queue.claim(name)
            return claim

        jobs["swept"] = (await queue.enqueue("quick", b"swept")).id
        await queue.ack(await claimed("quick"))
        swept |= {key: value for key, value in rig.disk.rows.items() if key[:2] in (b"i/", b"p/")}
        swept.pop(stats_key("quick"))
        await rig.advance(6)
        for state in ("done", "dead", "dead too", "retry", "claimed"):
            jobs[state] = (await queue.enqueue("mail", state.encode())).id
            claim = await claimed("mail")
            if state == "done":
                await queue.ack(claim)
            elif state.startswith("dead"):
                await queue.nack(claim, "boom", dead=True)
            elif state == "retry":
                await queue.nack(claim, "boom", delay=1e6)
        jobs["cancelled"] = (await queue.enqueue("mail", b"cancelled")).id
        await queue.cancel((await queue.jobs("mail", state="pending")).jobs[0].job_id, **WHO)
        jobs["scheduled"] = (await queue.enqueue("mail", b"s", delay=1e6)).id
        jobs["expiring"] = (await queue.enqueue("mail", b"e", priority=5, expires=1e6, delay=1e5)).id
        for i in range(3):
            jobs[f"pending {i}"] = (await queue.enqueue("mail", b"%d" % i, priority=i)).id
        jobs["unique"] = (await queue.enqueue("mail", b"u", unique_key="k", headers={"a": "b"})).id
        jobs["other unique"] = (await queue.enqueue("other", b"u", unique_key="k")).id
        await queue.enqueue_many("bulk", [b"1", b"2", b"3"])
        await queue.pause("other", **WHO)
        await queue.schedules.set("weekly", "0 9 * * 1", note, args={"text": "w"}, zone="Europe/Berlin", **WHO)
        await queue.schedules.set("hourly", timedelta(hours=1), note, **WHO)
        await queue.schedules.set("paused", timedelta(hours=2), note, **WHO)
        await queue.schedules.pause("paused", **WHO)
        await queue.limit("mail", max_running=50, **WHO)
        await queue.hold("other", seconds=1e6, **WHO)
        async with queue.transaction() as t:
            for key in ("kept", "deleted", "set twice"):
                t.kv.set(key, b"first")
        async with queue.transaction() as t:
            t.kv.delete("deleted")
            t.kv.set("set twice", b"second")
        await queue.close()
        # A hint that lags is right.
        rig.disk.rows[keys.hint_key("mail")] = bytes(12)
        return Ledger(copy_of(rig.disk), rig.clock.now_ms(), jobs, swept)


def copy_of(disk: MemoryDisk) -> MemoryDisk:
    """Another disk that holds the same."""
    copy = MemoryDisk()
    copy.rows, copy.anchor, copy.writer_number = disk.rows.copy(), disk.anchor, disk.writer_number
    return copy


def unique_row(disk: MemoryDisk, queue: str, key: str) -> bytes:
    """The index key of a unique key, which is a digest with the store's secret."""
    return unique_key(queue, key_digest(key.encode(), disk.rows[keys.SECRET_KEY]))


def rows_in(disk: MemoryDisk, prefix: bytes = INDEX_PREFIX) -> dict[bytes, bytes]:
    """The rows of a range."""
    return {key: value for key, value in disk.rows.items() if key.startswith(prefix)}


class Damage(NamedTuple):
    """A name for the test, and what is done to a ledger."""

    name: str
    do: Callable[[Ledger], None]


def _first(ledger: Ledger, range_name: str) -> bytes:
    return next(iter(rows_in(ledger.disk, RANGES[range_name])))


def _missing(range_name: str) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.disk.rows.__delitem__(_first(ledger, range_name))


def _gone(range_name: str) -> Callable[[Ledger], None]:
    def do(ledger: Ledger) -> None:
        for key in rows_in(ledger.disk, RANGES[range_name]):
            del ledger.disk.rows[key]

    return do


def _altered(range_name: str, change: Callable[[bytes], bytes]) -> Callable[[Ledger], None]:
    def do(ledger: Ledger) -> None:
        key = _first(ledger, range_name)
        ledger.disk.rows[key] = change(ledger.disk.rows[key])

    return do


def _put(key: bytes, value: bytes) -> Callable[[Ledger], None]:
    return lambda ledger: ledger.disk.rows.__setitem__(key, value)


def _counters(ledger: Ledger) -> None:
    counters = QueueCounters.decode(ledger.disk.rows[stats_key("mail")])
    counters.now[1] += 1
    counters.totals[0] += 1
    ledger.disk.rows[stats_key("mail")] = counters.encode()


def _resumed(ledger: Ledger) -> None:
    counters = QueueCounters.decode(ledger.disk.rows[stats_key("other")])
    counters.paused = False
    ledger.disk.rows[stats_key("other")] = counters.encode()


def _swap_pending(ledger: Ledger) -> None:
    rows = ledger.disk.rows
    first, second = list(rows_in(ledger.disk, pending_prefix("mail")))[:2]
    rows[first], rows[second] = rows[second], rows[first]


def _steal_unique(ledger: Ledger) -> None:
    ledger.disk.rows[unique_row(ledger.disk, "mail", "k")] = ledger.jobs["other unique"]


def _second_place(ledger: Ledger) -> None:
    """Put a pending job into the range of the finished ones, too."""
    ledger.disk.rows[finished_key(1, ledger.jobs["pending 0"])] = b""
    ledger.disk.rows[claimed_key(ledger.jobs["pending 0"])] = b""


def _older_state(ledger: Ledger) -> None:
    """Put back an older state of a job into its own row."""
    key = job_key(ledger.jobs["done"])
    job = decode_job(ledger.disk.rows[key])
    ledger.disk.rows[key] = pack(replace(job, state="pending", attempt=0))


def _all_gone(ledger: Ledger) -> None:
    for key in rows_in(ledger.disk):
        del ledger.disk.rows[key]


_EXTRA = {
    "job": job_key(NOBODY),
    "pending": pending_key("mail", 7, 10_000),
    "scheduled": scheduled_key(9, 10_000),
    "expiry": expiry_key(9, 10_000),
    "claimed": claimed_key(NOBODY),
    "finished": finished_key(9, NOBODY),
    "dead": dead_key("mail", 10_000),
    "unique": unique_key("mail", b"nobody"),
    "stats": stats_key("nowhere"),
    "limit": limit_key("nowhere"),
}

DAMAGES = [
    *(Damage(f"{name}: a row is missing", _missing(name)) for name in RANGES),
    *(Damage(f"{name}: the whole range is gone", _gone(name)) for name in RANGES),
    *(Damage(f"{name}: a row has another value", _altered(name, lambda value: value + b"\x01")) for name in RANGES),
    *(Damage(f"{name}: a row's bytes are upside down", _altered(name, lambda v: v[::-1] or b"\0")) for name in RANGES),
    *(Damage(f"{name}: a row of nobody", _put(key, NOBODY)) for name, key in _EXTRA.items()),
    *(Damage(f"{name}: an unreadable key", _put(RANGES[name] + b"\xff\xfe", b"?")) for name in RANGES),
    *(Damage(f"{name}: a key of nothing", _put(RANGES[name], b"")) for name in RANGES),
    Damage("a range that there is not", _put(b"i/elsewhere/x", b"")),
    Damage("wrong counters", _counters),
    Damage("a paused queue goes on", _resumed),
    Damage("two pending jobs in each other's place", _swap_pending),
    Damage("a unique key in another job's hands", _steal_unique),
    Damage("a job in two more places", _second_place),
    Damage("a job in an older state", _older_state),
    Damage("the rows of a swept job", lambda ledger: ledger.disk.rows.update(ledger.swept_rows)),
    Damage("everything is gone", _all_gone),
]
