"""The invariants of a ledger, proven from its durable rows alone: chain, indexes, counters, hints, payloads.

Everything here reads any store opened for reading; nothing of a writer's memory is read. `check_ledger` raises an
AssertionError that names the first rows that are wrong, and returns the fold for what a test wants to know besides.
"""

from collections.abc import Collection, Mapping

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.events import STATES, Deleted, KvDeleted, KvSet, ScheduleRemoved, ScheduleSet, Sealed, Swept
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.eventlog.side_records import decode_payload, decode_result, decode_text, key_digest
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, parse_key, pending_position, pending_prefix, stats_key
from ledgerq.projections.indexes import index_entries, limit_rows, schedule_rows
from ledgerq.projections.job import MAX_OFFSETS
from ledgerq.projections.limits_audit import audit_limits
from ledgerq.projections.stats import QueueCounters

__all__ = ["all_rows", "check_ledger"]

_RANGES = (b"m/", b"l/", b"p/", b"t/", b"k/", b"i/", b"x/")


async def all_rows(store: ReadStore, start: bytes = b"\0", stop: bytes = b"\xff") -> dict[bytes, bytes]:
    """Every row of a range."""
    rows: dict[bytes, bytes] = {}
    async for page in store.scan(start, stop):
        rows.update(page)
    return rows


async def check_ledger(
    store_or_disk: ReadStore | MemoryDisk,
    *,
    without_payload: Collection[bytes] = (),
    without_text: Collection[int] = (),
    anchored: bool = True,
) -> Fold:
    """Prove every invariant on what is durable now.

    The jobs `without_payload` and the events `without_text` may have none (a test took it away). The anchor of a store
    that is being written is newer than a pinned view of it: then it is not `anchored`.
    """
    store = MemoryReader(store_or_disk) if isinstance(store_or_disk, MemoryDisk) else store_or_disk
    log = LogReader(store, clock=ManualClock())
    rows = await all_rows(store)
    unknown = [key for key in rows if not key.startswith(_RANGES)]
    assert not unknown, f"rows in no range: {unknown[:5]}"
    if not rows:
        return Fold()
    assert await log.check_format()
    verified = await log.verify()
    if anchored:
        await log.check_anchor(await store.read_anchor())
    fold, texts, set_at = Fold(), dict[int, tuple[bytes | None, Sealed]](), dict[str, int]()
    values: dict[bytes, tuple[int, bytes]] = {}
    async for batch in log.batches():
        fold.apply_batch(batch)
        for offset, event in enumerate(batch.events, batch.base_offset):
            names = (name for name in ("error", "reason", "result", "value") if hasattr(event, name))
            text = getattr(event, next(names, ""), "")
            if isinstance(event, ScheduleSet | ScheduleRemoved):
                texts.pop(set_at.get(event.name, -1), None)
                set_at[event.name] = offset if isinstance(event, ScheduleSet) else -1
            if isinstance(event, KvSet):
                values[keys.value_key(event.key)] = (offset, event.digest)
            elif isinstance(event, KvDeleted):
                del values[keys.value_key(event.key)]
            if isinstance(text, Sealed) and text.at == offset:
                texts[offset] = (getattr(event, "id", None), text)
            if isinstance(event, Swept | Deleted):
                texts = {at: found for at, found in texts.items() if found[0] != event.id}
    assert fold.next_offset == verified.head.next_offset
    if fold.limits.by_queue:
        assert not (report := await audit_limits(log)).exceeded, f"limits were exceeded: {report.exceeded[:5]}"
    check_indexes(fold, rows)
    check_counts(fold)
    check_hints(rows)
    check_payloads(fold, rows, without_payload)
    check_texts(fold, rows, texts, {*without_payload, *without_text})
    check_values(rows, values)
    return fold


def check_indexes(fold: Fold, rows: Mapping[bytes, bytes]) -> None:
    """Check that index ranges and counters are those of the fold, byte by byte."""
    wanted: dict[bytes, bytes] = {}
    for job in fold.jobs.values():
        entries = index_entries(job)
        both = wanted.keys() & entries.keys()
        assert not both, f"two jobs claim the index rows {both}"
        wanted |= entries
    wanted |= {stats_key(queue): counters.encode() for queue, counters in fold.counters.items()}
    for schedule in fold.schedules.values():
        wanted |= schedule_rows(schedule)
    for limits in fold.limits.by_queue.values():
        wanted |= limit_rows(limits)
    found = {key: value for key, value in rows.items() if key.startswith(INDEX_PREFIX)}
    if found == wanted:
        return
    missing = [parse_key(key, wanted[key]) for key in sorted(wanted.keys() - found.keys())]
    extra = [parse_key(key, found[key]) for key in sorted(found.keys() - wanted.keys())]
    changed = [parse_key(key, found[key]) for key in sorted(wanted.keys() & found.keys()) if found[key] != wanted[key]]
    raise AssertionError(f"missing: {missing[:5]}, extra: {extra[:5]}, different: {changed[:5]}")


def check_counts(fold: Fold) -> None:
    """Check that the counters count the jobs there are; nothing is lost or counted twice."""
    counted: dict[str, QueueCounters] = {queue: QueueCounters() for queue in fold.counters}
    for job in fold.jobs.values():
        counted[job.queue].now[STATES.index(job.state)] += 1
    for queue, counters in fold.counters.items():
        assert counters.now == counted[queue].now, f"queue {queue!r} counts {counters.now}, has {counted[queue].now}"
        totals = counters.view(queue).totals
        came, went = totals["enqueued"] + totals["moved_in"], totals["moved_out"]
        assert came - went - totals["swept"] - totals["deleted"] == sum(counters.now)


def check_hints(rows: Mapping[bytes, bytes]) -> None:
    """Check that no hint leads: no pending job stands before it."""
    for key, value in rows.items():
        if not key.startswith(keys.HINT_PREFIX):
            continue
        queue = key.removeprefix(keys.HINT_PREFIX).decode()
        assert len(value) == 12, f"the hint of {queue!r} has {len(value)} bytes"
        hint = (int.from_bytes(value[:4]), int.from_bytes(value[4:]))
        prefix = pending_prefix(queue)
        places = [pending_position(row) for row in rows if row.startswith(prefix)]
        skipped = sorted(place for place in places if place < hint)
        assert not skipped, f"the hint of {queue!r} is {hint}, but pending jobs stand before it: {skipped[:5]}"


def check_payloads(fold: Fold, rows: Mapping[bytes, bytes], without_payload: Collection[bytes] = ()) -> None:
    """Check that every job that is not swept has its payload, with its unique key, and that there are no others."""
    owners = {keys.payload_key(job.payload_offset): job for job in fold.jobs.values()}
    for key, job in owners.items():
        if job.id in without_payload:
            continue
        value = rows.get(key)
        assert value is not None, f"the payload of {job.job_id} ({job.state}) is missing"
        assert digest_of(value) == job.spec.payload_digest, f"the payload of {job.job_id} was altered"
        assert len(value) == job.spec.payload_bytes
        unique = decode_payload(value).unique_key
        if unique is not None and job.offset >= fold.secret_since:
            assert job.spec.unique_key == key_digest(unique, rows[keys.SECRET_KEY]), f"{job.job_id} has another key"
    orphans = [key for key in rows if key.startswith(keys.PAYLOAD_PREFIX) and key not in owners]
    assert not orphans, f"payloads of no job: {orphans[:5]}"


def check_values(rows: Mapping[bytes, bytes], values: Mapping[bytes, tuple[int, bytes]]) -> None:
    """Check that each key has the value that was set last, and no other key has one."""
    found = {key: (int.from_bytes(row[:8]), digest_of(row[8:])) for key, row in rows.items() if key.startswith(b"k/")}
    assert found == values, (
        f"keys that differ: {[key for key in {*found, *values} if found.get(key) != values.get(key)]}"
    )


def check_texts(
    fold: Fold,
    rows: Mapping[bytes, bytes],
    texts: Mapping[int, tuple[bytes | None, Sealed]],
    without: Collection[bytes | int],
) -> None:
    """Check that every text and result of the log has its row, by its digest, and that no other row is there.

    Those of swept jobs have none; of a job that has very many the last ones are kept.
    """
    values = (value for job in fold.jobs.values() for value in (job.result, *(value for _, value in job.steps)))
    results = {value.at for value in values if value is not None}
    kept = {id: job.texts for id, job in fold.jobs.items() if len(job.texts) == MAX_OFFSETS}
    wanted = {at: sealed for at, (id, sealed) in texts.items() if id not in kept or at in kept[id]}
    assert wanted == fold.texts, "the fold knows other texts"
    for at, sealed in wanted.items():
        if texts[at][0] in without or at in without:
            continue
        value = rows.get(keys.text_key(at))
        assert value is not None, f"the text of the event at {at} is missing"
        assert digest_of(value) == sealed.digest, f"the text of the event at {at} was altered"
        assert len(value) == sealed.size_bytes
        (decode_result if at in results else decode_text)(value)
    orphans = [key for key in rows if key.startswith(keys.TEXT_PREFIX) and keys.offset_of(key) not in wanted]
    assert not orphans, f"texts of no event: {orphans[:5]}"
