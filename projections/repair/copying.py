"""Copying a proven log into a new store: its record batches, its live payloads, texts and values, fresh projections.

`copy_into` makes it from a store that can be read, salvage.py from what is left of one that can't. A job whose payload
is gone is a dead letter there, with that error, instead of one that can't be run.
"""

from typing import Final, NamedTuple, Self

from ledgerq.eventlog import keys
from ledgerq.eventlog.blobs import BlobName, Blobs, checked
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import EMPTY_HEAD, encode_head
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogPoisoned, PayloadMissing, RowUnreadable
from ledgerq.eventlog.events import SECRET, DeadLettered, Rebuilt
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.side_records import decode_payload, read_secret
from ledgerq.eventlog.store import Anchor, Batch, ReadStore, Store
from ledgerq.eventlog.writer import Commit, EventLog
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import stats_key
from ledgerq.projections.indexes import index_entries, limit_rows, schedule_rows
from ledgerq.projections.job import Job
from ledgerq.projections.payloads import LostPayload, payload_fault, read_payload
from ledgerq.projections.rebuild import RebuildReport
from ledgerq.projections.repair.row_writer import COMMIT_EVENTS, COPY_MARKER, FORMAT, RowWriter, append_lost_keys
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.runner import BUILT_IN
from ledgerq.projections.texts import stored_texts
from ledgerq.projections.values import stored_values

__all__ = ["KEEP_DEAD_MS", "Lost", "NewStore", "copy_into"]

# As long as a queue keeps dead jobs by default: the options of the queue that they were in are not known here.
KEEP_DEAD_MS: Final = 7 * 24 * 3_600_000
_PAYLOAD_ROWS: Final = 100


class Lost(NamedTuple):
    """What could not be copied: payloads with their jobs, offsets of texts, whether the secret is lost, and keys."""

    payloads: list[LostPayload]
    texts: list[int]
    secret: bool
    keys: list[str]


class NewStore:
    """A store that is being filled: in its block `put` rows of log and payloads, then `finish`."""

    def __init__(self, target: Store, clock: Clock) -> None:
        """Fill `target`; nothing is written yet."""
        self._target = target
        self._clock = clock
        # Nothing is anchored before the log is whole.
        self._writer = RowWriter(target, Anchor(0, 0, EMPTY_HEAD.digest, 0, 0), COPY_MARKER)

    async def __aenter__(self) -> Self:
        """Remove what an interrupted copy left. Raises `InvalidArgument` for a store that holds anything else."""
        target, writer = self._target, await self._writer.__aenter__()
        begun = await target.get(keys.REBUILD_KEY) == COPY_MARKER
        if not begun and await LogReader(target, clock=self._clock).check_format():
            raise InvalidArgument(f"{target.location} holds a ledgerq store already: give a new location")
        async for page in target.scan(b"\0", b"\xff"):
            for key, _ in page:
                if key != keys.REBUILD_KEY:
                    await writer.set(key, None, count=False)
        for name in await target.blobs.names():
            await target.blobs.delete(name)
        await writer.set(keys.FORMAT_KEY, FORMAT, count=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._writer.__aexit__()

    async def put(self, key: bytes, value: bytes) -> None:
        """Add a row of the log, a payload, a text, or the secret."""
        await self._writer.set(key, value, count=False)

    async def put_blob(self, source: Blobs, job: Job, record: bytes) -> str:
        """Copy the large payload of a job, if it has one; returns why it is lost, empty when it is not."""
        if (blob := job.blob) is None:
            return ""
        name = BlobName(blob.id, job.id)
        try:
            await self._target.blobs.put(str(name), checked(source, name, blob, decode_payload(record).salt))
        except PayloadMissing as error:
            return str(error)
        return ""

    async def finish(self, verified: Verified, fold: Fold, lost: Lost, *, actor: str, reason: str) -> RebuildReport:
        """Write projections and head, the events of the payloads that are `lost`, and that all this was done."""
        writer, jobs = self._writer, len(fold.jobs)
        names = (*BUILT_IN, SECRET) if lost.secret else BUILT_IN
        for job in fold.jobs.values():
            await writer.set_many(index_entries(job))
        for schedule in fold.schedules.values():
            await writer.set_many(schedule_rows(schedule))
        for limits in fold.limits.by_queue.values():
            await writer.set_many(limit_rows(limits))
        for queue, counters in fold.counters.items():
            await writer.set(stats_key(queue), counters.encode())
        await writer.set(keys.HEAD_KEY, encode_head(verified.head), count=False)
        await writer.flush()
        log = EventLog(self._target, clock=self._clock, commit_hook=_Folding(fold))
        await log.start(accept_rollback=True)
        try:
            letters = [letter for letter in lost.payloads if letter.is_dead_letter]
            for number, (job, why) in enumerate(letters, 1):
                sweep_at_ms = max(self._clock.now_ms(), verified.head.time_ms) + KEEP_DEAD_MS
                log.append(DeadLettered(job.id, sweep_at_ms, actor, why), job.last_offset)
                if number % COMMIT_EVENTS == 0:
                    await log.committed()
            await append_lost_keys(log, lost.keys)
            log.append(Rebuilt(actor, reason, names, writer.rows_put, writer.rows_deleted))
            await log.committed()
        finally:
            await log.stop()
        report = RebuildReport(BUILT_IN, verified, jobs, writer.rows_put, writer.rows_deleted)
        return report._replace(
            lost=tuple(lost.payloads),
            lost_texts=tuple(lost.texts),
            is_secret_new=lost.secret,
            lost_keys=tuple(lost.keys),
        )


class _Folding:
    """The hook of the commits that end a copy: it adds what follows from dead letters; the marker goes with the last.

    `fold` is the log's so far.
    """

    def __init__(self, fold: Fold) -> None:
        self._fold = fold
        self._filled: tuple[Commit, dict[bytes, bytes | None]] | None = None

    def fill(self, commit: Commit, batch: Batch) -> None:
        if self._filled is None or self._filled[0] is not commit:
            self._filled = (commit, self._changes(commit))
        batch.update(self._filled[1])

    def _changes(self, commit: Commit) -> dict[bytes, bytes | None]:
        changes: dict[bytes, bytes | None] = {}
        queues: set[str] = set()
        for offset, event in enumerate(commit.events, commit.base_offset):
            _, _, _, before, after = self._fold.apply(offset, commit.time_ms, event)
            if before is not None and after is not None:
                changes |= dict.fromkeys(index_entries(before))
                changes |= index_entries(after)
                queues.add(after.spec.queue)
            elif isinstance(event, Rebuilt):
                changes[keys.REBUILD_KEY] = None
        return changes | {stats_key(queue): self._fold.counters_of(queue).encode() for queue in queues}

    def committed(self, commit: Commit) -> None:
        pass

    def failed(self, error: LedgerError) -> None:
        pass


async def copy_into(
    source: ReadStore,
    target: Store,
    *,
    clock: Clock,
    actor: str,
    reason: str,
    until: int | None = None,
    progress: Progress | None = None,
) -> RebuildReport:
    """Write the log of `source`, its live payloads and fresh projections to `target`, which must be empty.

    For a store whose indexes, or some payloads, are damaged; salvage.py is for one whose log can't be read. A copy that
    was interrupted is begun anew. Rows of users' projections are not copied: they come up again when the queue is
    opened with them. A payload that is missing, changed, or in a damaged block costs its job and no other.

    Raises like `rebuild`.
    """
    log = LogReader(source, clock=clock)
    format_version = await log.require_format()
    if until is None:
        await log.check_anchor(await source.read_anchor())
    verified, fold = await fold_verified(log, until=until, progress=progress)
    async with NewStore(target, clock) as new:
        async for page in source.scan(keys.LOG_PREFIX, keys.log_key(verified.head.next_offset)):
            for key, value in page:
                await new.put(key, value)
        payloads = await _copy_payloads(source, new, fold)
        texts = await _copy_texts(source, new, fold)
        lost_keys = await _copy_values(source, new, fold)
        try:
            secret = await read_secret(source)
        except RowUnreadable:
            secret = None
        if secret is not None:
            await new.put(keys.SECRET_KEY, secret)
        is_secret_lost = secret is None and format_version == keys.FORMAT_VERSION
        lost = Lost(payloads, texts, is_secret_lost, lost_keys)
        return await new.finish(verified, fold, lost, actor=actor, reason=reason)


async def _copy_texts(source: ReadStore, new: NewStore, fold: Fold) -> list[int]:
    """Write the texts that are there; returns the offsets of those that are lost, which costs nothing else."""
    lost: list[int] = []
    async for text in stored_texts(source, fold.texts):
        if text.sealed is not None and text.value is not None and not text.fault:
            await new.put(text.key, text.value)
        elif text.sealed is not None:
            lost.append(text.sealed.at)
    return lost


async def _copy_values(source: ReadStore, new: NewStore, fold: Fold) -> list[str]:
    """Write the values that are there; returns the keys of those that are lost."""
    lost: list[str] = []
    async for stored in stored_values(source, fold.values):
        if stored.wanted is not None and stored.row is not None and not stored.fault:
            await new.put(stored.key, stored.row)
        elif stored.wanted is not None:
            lost.append(stored.key[len(keys.VALUE_PREFIX) :].decode())
    return lost


async def _copy_payloads(source: ReadStore, new: NewStore, fold: Fold) -> list[LostPayload]:
    """Write the payloads of all jobs that are there; returns the jobs whose payload could not be read."""
    live, lost = {job.payload_offset: job for job in fold.jobs.values()}, list[LostPayload]()
    payloads = source.scan(keys.PAYLOAD_PREFIX, keys.after_prefix(keys.PAYLOAD_PREFIX), page_rows=_PAYLOAD_ROWS)
    try:
        async for page in payloads:
            for key, value in page:
                job = live.get(keys.offset_of(key))
                if job is not None and not payload_fault(job, value):
                    await new.put(key, value)
                    del live[job.payload_offset]
                    if job.blob is not None and (fault := await new.put_blob(source.blobs, job, value)):
                        lost.append(LostPayload(job, fault))
    except LogPoisoned:
        pass  # a scan ends at the first block that can't be read: the rest is read one by one
    for offset, job in sorted(live.items()):
        found, fault = await read_payload(source, job)
        if found is not None:
            await new.put(keys.payload_key(offset), found)
            fault = await new.put_blob(source.blobs, job, found)
        if fault:
            lost.append(LostPayload(job, fault))
    return [one for one in lost if one.job.id not in fold.without_payload]
