"""The baseline of the benchmark: a job queue as one would write it on SlateDB without this project.

Each transition is one SlateDB transaction through the binding's public methods, by its caller, and is reported when it
is durable. It is meant to be good at what it is, so that a comparison with it is fair:

- One get and three writes per transition. No history and no totals of what happened: less than ledgerq keeps.
- Counters are sharded by caller, since a counter that all callers read and write would make them all conflict.
- Claimers get different jobs from a queue in memory, filled by one scan that goes on where it ended, so that
  they neither conflict nor step over what was claimed before. Jobs just enqueued are handed on in memory.
- Snapshot isolation, the cheaper one; a commit that conflicts all the same is tried again.
- SlateDB flushes all transactions of `flush_interval` together; the benchmark tries several intervals first and takes
  the best one. All other settings are SlateDB's defaults.
- In bulk, one write batch for all jobs of a call instead of one transaction for each.

It can't call fsync on a file store, for which the binding has no hook: a power cut may take back what it reported.
"""

import asyncio
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import msgpack
from slatedb.uniffi import (
    Db,
    DbBuilder,
    DbIterator,
    DbTransaction,
    Error,
    IsolationLevel,
    KeyRange,
    ObjectStore,
    Settings,
    WriteBatch,
)

from ledgerq.eventlog.locations import parse_location

__all__ = ["Baseline", "PendingJob", "open_baseline"]

_JOB: Final = b"job/"
_QUEUE: Final = b"mail"
_PRIORITY: Final = 1000
_MAX_ATTEMPTS: Final = 3
# A job's record: queue, state, priority, attempt, max attempts, time of enqueueing, payload.
_STATE_AT, _ATTEMPT_AT, _PAYLOAD_AT = 1, 3, 6
_PENDING: Final = b"pending/" + _QUEUE + b"\0" + _PRIORITY.to_bytes(4)
_PENDING_STOP: Final = b"pending/" + _QUEUE + b"\1"
_CLAIMED: Final = b"claimed/"
_FINISHED: Final = b"finished/"
_COUNTER: Final = b"counter/"
_REFILL_ROWS: Final = 1000
_LEASE_MS: Final = 30_000
_KEEP_MS: Final = 24 * 3600 * 1000

PendingJob = tuple[bytes, bytes]
"""A pending key and the id of its job."""

_pack: Final[Callable[[Any], bytes]] = msgpack.Packer(autoreset=True).pack
_unpack: Final[Callable[[bytes], Any]] = msgpack.unpackb


class Baseline:
    """A queue of one name and one priority on an open database, which `close` closes."""

    def __init__(self, db: Db) -> None:
        """Own `db`."""
        self._db = db
        self._sequence = itertools.count(1)
        self._ready: deque[PendingJob] = deque()
        self._rows: DbIterator | None = None
        self._last = _PENDING
        self._refilling = asyncio.Lock()
        self.conflicts = 0

    async def close(self) -> None:
        """Flush and close the database."""
        await self._db.shutdown()

    # ------------------------------------------------------------------ one by one

    async def enqueue(self, payload: bytes, caller: int) -> PendingJob:
        """Add a job and count it: one get, three puts. Returns what `claim` takes."""
        pending, id = self._new_job()
        job = _pack((_QUEUE, "pending", _PRIORITY, 0, _MAX_ATTEMPTS, _now_ms(), payload))
        counter = _COUNTER + str(caller).encode()

        async def change(transaction: DbTransaction) -> None:
            count = await transaction.get(counter)
            await transaction.put(_JOB + id, job)
            await transaction.put(pending, id)
            await transaction.put(counter, _pack(1 + (_unpack(count) if count is not None else 0)))

        await self._transact(change)
        return pending, id

    async def claim(self, pending_job: PendingJob | None = None) -> tuple[bytes, bytes] | None:
        """Id and payload of the job at `pending_job`, or of the next one; None when there is none.

        One get, a delete and two puts.
        """
        pending_job = pending_job or await self._next()
        if pending_job is None:
            return None
        pending, id = pending_job
        payload = b""

        async def change(transaction: DbTransaction) -> None:
            nonlocal payload
            job = _unpack(await transaction.get(_JOB + id))
            payload = job[_PAYLOAD_AT]
            job[_STATE_AT] = "claimed"
            job[_ATTEMPT_AT] += 1
            await transaction.delete(pending)
            await transaction.put(_JOB + id, _pack(job))
            await transaction.put(_CLAIMED + id, _pack(_now_ms() + _LEASE_MS))

        await self._transact(change)
        return id, payload

    async def ack(self, id: bytes) -> None:
        """Ack a job, if it is still claimed: one get, a delete and two puts."""

        async def change(transaction: DbTransaction) -> None:
            job = _unpack(await transaction.get(_JOB + id))
            if job[_STATE_AT] != "claimed":
                raise LookupError(f"job {id.hex()} is {job[_STATE_AT]}")
            job[_STATE_AT] = "done"
            await transaction.delete(_CLAIMED + id)
            await transaction.put(_JOB + id, _pack(job))
            await transaction.put(_FINISHED + (_now_ms() + _KEEP_MS).to_bytes(8) + id, b"")

        await self._transact(change)

    async def _transact(self, change: Callable[[DbTransaction], Awaitable[None]]) -> None:
        while True:
            transaction = await self._db.begin(IsolationLevel.SNAPSHOT)
            await change(transaction)
            try:
                handle = await transaction.commit()
            except Error.Transaction:
                self.conflicts += 1
                continue
            if handle is not None:
                await handle.await_durable()
            return

    # ------------------------------------------------------------------ in bulk

    async def enqueue_many(self, payloads: list[bytes]) -> None:
        """Add all jobs in one batch and count them."""
        batch, now_ms = WriteBatch(), _now_ms()
        for payload in payloads:
            pending, id = self._new_job()
            batch.put(_JOB + id, _pack((_QUEUE, "pending", _PRIORITY, 0, _MAX_ATTEMPTS, now_ms, payload)))
            batch.put(pending, id)
        counter = _COUNTER + b"bulk"
        count = await self._db.get(counter)
        batch.put(counter, _pack(len(payloads) + (_unpack(count) if count is not None else 0)))
        await self._write(batch)

    async def claim_many(self, limit: int) -> list[tuple[bytes, list[Any]]]:
        """Up to `limit` jobs with their records, in one batch."""
        pending_jobs = [pending_job for _ in range(limit) if (pending_job := await self._next()) is not None]
        if not pending_jobs:
            return []
        batch, lease_ends = WriteBatch(), _pack(_now_ms() + _LEASE_MS)
        found = []
        # Ids are in order of enqueueing, so the records lie together and one scan reads them all.
        first, last = _JOB + pending_jobs[0][1], _JOB + pending_jobs[-1][1]
        rows = await self._db.scan(KeyRange(start=first, start_inclusive=True, end=last, end_inclusive=True))
        records = {row.key: row.value for row in await rows.next_batch(limit)}
        for pending, id in pending_jobs:
            job = _unpack(records[_JOB + id])
            job[_STATE_AT] = "claimed"
            job[_ATTEMPT_AT] += 1
            batch.delete(pending)
            batch.put(_JOB + id, _pack(job))
            batch.put(_CLAIMED + id, lease_ends)
            found.append((id, job))
        await self._write(batch)
        return found

    async def ack_many(self, claims: list[tuple[bytes, list[Any]]]) -> None:
        """Ack all of them in one batch; the one consumer of this queue knows that its claims are current."""
        batch, sweep_at = WriteBatch(), (_now_ms() + _KEEP_MS).to_bytes(8)
        for id, job in claims:
            job[_STATE_AT] = "done"
            batch.delete(_CLAIMED + id)
            batch.put(_JOB + id, _pack(job))
            batch.put(_FINISHED + sweep_at + id, b"")
        await self._write(batch)

    async def _write(self, batch: WriteBatch) -> None:
        handle = await self._db.write(batch)
        await handle.await_durable()

    # ------------------------------------------------------------------ serving claims

    def _new_job(self) -> PendingJob:
        sequence = next(self._sequence).to_bytes(8)
        return _PENDING + sequence, sequence + os.urandom(8)

    async def _next(self) -> PendingJob | None:
        if not self._ready:
            async with self._refilling:
                if not self._ready:
                    await self._refill()
        return self._ready.popleft() if self._ready else None

    async def _refill(self) -> None:
        if self._rows is None:
            after = KeyRange(start=self._last, start_inclusive=False, end=_PENDING_STOP, end_inclusive=False)
            self._rows = await self._db.scan(after)
        rows = await self._rows.next_batch(_REFILL_ROWS)
        if len(rows) < _REFILL_ROWS:
            self._rows = None
        if rows:
            self._last = rows[-1].key
            self._ready.extend((row.key, row.value) for row in rows)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def open_baseline(url: str, *, flush_interval_ms: int) -> AsyncIterator[Baseline]:
    """A new baseline queue in the store at `url`, closed at the end."""
    location = parse_location(url)
    settings = Settings.default()
    settings.set("flush_interval", f'"{flush_interval_ms}ms"')
    builder = DbBuilder(location.database, ObjectStore.resolve(location.root))
    builder.with_settings(settings)
    baseline = Baseline(await builder.build())
    try:
        yield baseline
    finally:
        await baseline.close()
