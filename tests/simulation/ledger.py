"""The durable ledger under a simulation, checked at each commit: chain, order, epochs, indexes, counters.

`SimStore.flush` hands over each change of the disk. The state machine is judged by the model (tests/model/job.py); the
index rows are compared with what the fold of the log asks for. Only rows that changed, or should have, are compared,
which by induction is as good as all of them; `check_everything` compares all of them. side_rows.py checks what
stands beside the log.
"""

import hashlib
from collections.abc import Mapping
from typing import Protocol

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import decode_batch, decode_head, unpack
from ledgerq.eventlog.events import (
    STATES,
    Claimed,
    Enqueued,
    Event,
    FilesSetAside,
    LimitEvent,
    Rebuilt,
    Record,
    Replaced,
    ScheduleEvent,
    Sealed,
    Ticked,
    WriterOpened,
)
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, parse_key, stats_key
from ledgerq.projections.indexes import index_entries, limit_rows, schedule_rows
from ledgerq.projections.stats import QueueCounters
from tests.model.job import Model, Violation
from tests.simulation.projection import NAME, Counts
from tests.simulation.side_rows import SideRows
from tests.simulation.step_rows import StepRows
from tests.simulation.value_rows import ValueRows

__all__ = ["SimLedger"]

_STATS: bytes = b"i/stats/"


class Jobs(Protocol):
    """What is told of each job that becomes durable, and of each tick (oracle.py)."""

    def enqueued_event(self, event: Enqueued, record: PayloadRecord) -> None:
        """A job became durable."""

    def replaced_event(self, event: Replaced, record: PayloadRecord) -> None:
        """A job that waits got another payload, durably."""

    def unseen_event(self, event: Enqueued | Replaced) -> None:
        """One of these is durable, and the same commit replaced its payload."""

    def ticked(self, event: Ticked) -> None:
        """A tick became durable, and its job right before it."""


class SimLedger:
    """The checker of the durable ledger. `on_jobs` is told of each job that becomes durable, and of each tick."""

    def __init__(self, disk: MemoryDisk, on_jobs: Jobs, model: Model) -> None:
        self.disk = disk
        self.model = model
        self.commits = 0
        self.records: list[Record] = []
        self.side = SideRows(disk)
        self.values = ValueRows(disk)
        self.steps = StepRows(disk, model)
        self._counts = Counts()
        self._on_jobs = on_jobs
        self._fold = Fold()
        self._wanted: dict[bytes, bytes] = {}
        self._owners: dict[bytes, bytes] = {}
        self._digest = bytes(32)
        self._next_offset = 0
        self._epoch = 0
        self._time_ms = 0

    def changed(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Check changes that the disk holds now; raises `Violation`."""
        touched = {key for key in changes if key.startswith(INDEX_PREFIX)}
        batches = sorted(key for key in changes if key.startswith(keys.LOG_PREFIX))
        self.side.begin(changes)
        for key in batches:
            self.commits += 1
            value = changes[key]
            if value is None:
                raise Violation("chain", f"the record batch {key.hex()} was deleted")
            touched |= self._take(key, value, changes)
        if batches:
            self._check_head()
        for key in sorted(touched):
            self._check_row(key)
        if keys.projection_key(NAME) in changes:
            self._check_projection()
        for key in changes:
            if key.startswith(keys.PAYLOAD_PREFIX) and key not in self.disk.rows:
                self._check_gone(key)
        self.side.end(changes)
        self.values.end(changes)
        self.steps.end()
        for queue in {key[len(_STATS) :].decode() for key in touched if key.startswith(_STATS)}:
            self._check_counts(queue)
        for key, value in changes.items():
            if key.startswith(keys.HINT_PREFIX) and value is not None:
                self._check_hint(key[len(keys.HINT_PREFIX) :].decode(), value)

    def _take(self, key: bytes, value: bytes, changes: Mapping[bytes, bytes | None]) -> set[bytes]:
        """Apply one new record batch; returns the index rows that may follow from it."""
        offset = int.from_bytes(key[len(keys.LOG_PREFIX) :])
        if offset != self._next_offset:
            raise Violation("chain", f"a record batch stands at offset {offset}, the log ended at {self._next_offset}")
        batch = decode_batch(offset, value)
        if batch.previous != self._digest:
            raise Violation("chain", f"the batch at {offset} has a wrong digest of the one before it")
        if batch.epoch < self._epoch:
            raise Violation("epoch", f"the batch at {offset} has epoch {batch.epoch}, after {self._epoch}")
        if isinstance(batch.events[0], WriterOpened | Rebuilt) != (batch.epoch > self._epoch):
            raise Violation("epoch", f"the batch at {offset} has epoch {batch.epoch}, and each writer has its own")
        told = {event.folder: list(event.names) for event in batch.events if isinstance(event, FilesSetAside)}
        if told != (self.disk.set_aside if batch.epoch > self._epoch else {}):
            raise Violation("set aside", f"the batch at {offset} records {told}, and there was {self.disk.set_aside}")
        if batch.time_ms < self._time_ms:
            raise Violation("time", f"the batch at {offset} was committed before the one before it")
        self._digest = hashlib.blake2b(value, digest_size=32).digest()
        self._epoch, self._time_ms = batch.epoch, batch.time_ms
        self._next_offset = offset + len(batch.events)
        touched: set[bytes] = set()
        newest = {one.id: (at, one) for at, one, _ in batch.steps() if isinstance(one, Enqueued | Replaced)}
        for at, event, distance in batch.steps():
            self.records.append(Record(at, batch.time_ms, batch.epoch, event))
            if distance is not None:
                self._check_distance(at, event, distance)
            last = newest.get(event.id) if isinstance(event, Enqueued | Replaced) else None
            opened, payload = self.side.opened(at, event, changes, is_old=distance is None, newest=last)
            reason = getattr(event, "reason", None)
            self.model.apply(at, batch.time_ms, opened, reason.at if isinstance(reason, Sealed) else -1)
            self._counts.take(event)
            if isinstance(opened, Enqueued | Replaced):
                self._owners[keys.payload_key(at)] = opened.id
                if payload is None:
                    self._on_jobs.unseen_event(opened)
                elif isinstance(opened, Enqueued):
                    self._on_jobs.enqueued_event(opened, payload)
                else:
                    self._on_jobs.replaced_event(opened, payload)
            if isinstance(event, Ticked):
                self._on_jobs.ticked(event)
            name = event.name if isinstance(event, ScheduleEvent) else None
            schedules = [self._fold.schedules.get(name)] if name is not None else []
            before, after = self._fold.apply(at, batch.time_ms, event)[3:]
            if name is not None:
                schedules.append(self._fold.schedules.get(name))
                rows = [{} if one is None else schedule_rows(one) for one in schedules]
                touched |= {*rows[0], *rows[1]}
                for row in rows[0]:
                    self._wanted.pop(row, None)
                self._wanted.update(rows[1])
            limited = event.queue if isinstance(event, LimitEvent) else None if after is None else after.queue
            if limited in self._fold.limits.by_queue and isinstance(event, LimitEvent | Claimed):
                rows_now = limit_rows(self._fold.limits.by_queue[limited])
                touched |= {*rows_now}
                self._wanted.update(rows_now)
            for job in (before, after):
                touched |= set() if job is None else {*index_entries(job), stats_key(job.queue)}
            for row in () if before is None else index_entries(before):
                self._wanted.pop(row, None)
            self._wanted.update({} if after is None else index_entries(after))
        self.values.take(batch)
        self.steps.take(batch, changes)
        return touched

    def _check_distance(self, offset: int, event: Event, distance: int) -> None:
        """Check that an event's distance leads to the event before it of the same job, by the model."""
        job = self.model.jobs.get(getattr(event, "id", b""))
        wanted = 0 if job is None or job.state == "gone" else offset - job.life[-1].offset
        if distance != wanted:
            raise Violation("distance", f"the event at {offset} is {distance} after the one before it, not {wanted}")

    def _check_gone(self, key: bytes) -> None:
        owner = self._owners.pop(key, None)
        if owner is None:
            raise Violation("payload", f"the payload at {keys.offset_of(key)} is deleted, and was so before")
        job = self._fold.jobs.get(owner)
        if job is not None and keys.payload_key(job.payload_offset) == key:
            raise Violation("payload", f"the payload of {job.job_id} is gone while the job is {job.state}")

    def _check_head(self) -> None:
        head = decode_head(self.disk.rows[keys.HEAD_KEY])
        found = (head.next_offset, head.digest, head.epoch, head.time_ms)
        if found != (self._next_offset, self._digest, self._epoch, self._time_ms):
            raise Violation("chain", f"the head holds {found}, the log ends at {self._next_offset}")

    def _check_row(self, key: bytes) -> None:
        found = self.disk.rows.get(key)
        if key.startswith(_STATS):
            return
        wanted = self._wanted.get(key)
        if found != wanted:
            what = (
                "is missing" if found is None else "should not be there" if wanted is None else "is not as it should be"
            )
            raise Violation("index", f"{parse_key(key, wanted or found or b'')} {what} at offset {self._next_offset}")

    def _check_counts(self, queue: str) -> None:
        value = self.disk.rows.get(_STATS + queue.encode())
        if value is None:
            raise Violation("counters", f"queue {queue!r} has no counters")
        counters, counts = QueueCounters.decode(value).view(queue), self.model.counts(queue)
        for state in STATES:
            if getattr(counters, state) != counts.states.get(state, 0):
                raise Violation(
                    "counters",
                    f"{queue!r} counts {getattr(counters, state)} {state}, has {counts.states.get(state, 0)}",
                )
        for name, count in counters.totals.items():
            if count != counts.totals.get(name, 0):
                raise Violation("counters", f"{queue!r} counts {count} {name} ever, had {counts.totals.get(name, 0)}")
        if counters.paused != counts.paused:
            raise Violation("counters", f"{queue!r} has the wrong mark for being paused")
        first_offset, histograms, *bulk = unpack(value)[3:]
        if bulk != ([counts.bulk.offset] if counts.bulk is not None else []):
            raise Violation("bulk", f"{queue!r} has {bulk} as the offset of its open bulk, {counts.bulk} is open")
        if first_offset != counts.first_offset:
            raise Violation("counters", f"{queue!r} began at {counts.first_offset}, its row holds {first_offset}")
        if histograms != counts.measures.rows():
            raise Violation("measures", f"{queue!r} has {histograms}, should have {counts.measures.rows()}")

    def _check_hint(self, queue: str, value: bytes) -> None:
        hint = (int.from_bytes(value[:4]), int.from_bytes(value[4:]))
        skipped = [place for place in self.model.pending.get(queue, {}).values() if place < hint]
        if skipped:
            raise Violation("hint", f"the hint of {queue!r} is {hint} and leads {min(skipped)}")

    def _check_projection(self) -> None:
        prefix = keys.projection_rows_prefix(NAME)
        rows = {key[len(prefix) :]: self.disk.rows[key] for key in self.disk.rows.irange(prefix, prefix + b"\xff")}
        wrong = self._counts.wrong(rows)
        offset = int.from_bytes(self.disk.rows[keys.projection_key(NAME)])
        if wrong is not None or offset != self._next_offset:
            raise Violation("projection", f"the row {wrong!r} is wrong at offset {self._next_offset}, or {offset}")

    def check_everything(self) -> None:
        """Check that each row of the disk follows from the log, and that none is missing; raises `Violation`."""
        rows = self.disk.rows
        wanted = set(self._wanted) | {_STATS + queue.encode() for queue in self._fold.counters}
        for key in sorted(wanted | {key for key in rows if key.startswith(INDEX_PREFIX)}):
            self._check_row(key)
        for queue in self._fold.counters:
            self._check_counts(queue)
        for key, value in rows.items():
            if key.startswith(keys.HINT_PREFIX):
                self._check_hint(key[len(keys.HINT_PREFIX) :].decode(), value)
        owners = {keys.payload_key(job.payload_offset): job for job in self._fold.jobs.values()}
        payloads = {key for key in rows if key.startswith(keys.PAYLOAD_PREFIX)}
        if payloads != owners.keys():
            missing, extra = sorted(owners.keys() - payloads), sorted(payloads - owners.keys())
            raise Violation("payload", f"payload rows are missing: {missing[:3]}, or of no job: {extra[:3]}")
        for key, job in owners.items():
            if hashlib.blake2b(rows[key], digest_size=32).digest() != job.spec.payload_digest:
                raise Violation("payload", f"the payload of {job.job_id} was altered")
        self.side.check_everything()
        self.values.check_everything()
        digest, offset = bytes(32), 0
        for key in [key for key in rows if key.startswith(keys.LOG_PREFIX)]:
            batch = decode_batch(offset, rows[key])
            if key != keys.log_key(offset) or batch.previous != digest:
                raise Violation("chain", f"the chain breaks at offset {offset}")
            digest, offset = hashlib.blake2b(rows[key], digest_size=32).digest(), batch.next_offset
        if (digest, offset) != (self._digest, self._next_offset):
            raise Violation("chain", f"the log ends at {offset}, the last commit was at {self._next_offset}")
