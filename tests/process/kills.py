"""Processes that report facts and are killed, and the proof that what they reported holds.

A child (kill_child.py) writes each fact to a file once the call behind it had returned; `Facts` reads them.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.errors import JobNotFound, StoreNotFound
from ledgerq.eventlog.events import (
    SECRET,
    Acked,
    Claimed,
    Enqueued,
    KvSet,
    LeaseExpired,
    Nacked,
    Rebuilt,
    Record,
    Sealed,
    Ticked,
    WriterOpened,
)
from ledgerq.eventlog.keys import text_key
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.side_records import decode_text
from ledgerq.eventlog.store import ReadStore
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.fold import Fold
from ledgerq.worker.engine.decisions import LEASE_EXPIRED
from ledgerq.worker.queue import Queue
from tests.model.job import UNFINISHED, Model, Violation
from tests.support.ledger_checks import check_ledger

__all__ = [
    "Ledger",
    "Facts",
    "check_log",
    "check_promises",
    "check_queue",
    "open_and_check",
    "read_and_check",
    "run_and_kill",
]

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.002
START_LIMIT_S = 60.0
LOOKS = 20
ERRORS = 200


class Facts:
    """What the children reported so far."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "facts"
        self.enqueued: dict[str, str] = {}
        self.claimed: dict[int, str] = {}
        self.acked: dict[str, int] = {}
        self.dead: set[str] = set()
        self.cancelled: set[str] = set()
        self.counted = 0

    @property
    def size_bytes(self) -> int:
        """How much there is to read."""
        return self._file.stat().st_size if self._file.exists() else 0

    def read(self) -> None:
        """Read it all; the last line may have been cut off."""
        lines = self._file.read_bytes().split(b"\n")[:-1] if self._file.exists() else []
        for line in lines:
            what, job_id, more = line.decode().split(" ")
            if what == "enqueued":
                self.enqueued[job_id] = more
            elif what == "claimed":
                self.claimed[int(more)] = job_id
            elif what == "counted":
                self.counted = max(self.counted, int(more))
            elif what == "acked":
                self.acked[job_id] = int(more)
            else:
                getattr(self, what).add(job_id)


async def run_and_kill(
    folder: Path, facts: Facts, seed: int, *, url: str | None = None, report_bytes: tuple[int, int] = (1_000, 25_000)
) -> None:
    """Start a child and kill it once it has reported a random number of bytes more; `url`: not on folder/store."""
    enough_bytes = facts.size_bytes + random.Random(seed).randrange(*report_bytes)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "tests/process/kill_child.py"),
        str(folder),
        str(seed),
        *([url] if url else []),
    ]
    with (folder / "stderr").open("wb") as stderr:
        child = await asyncio.create_subprocess_exec(*command, stderr=stderr, env=environment)
        try:
            async with asyncio.timeout(START_LIMIT_S):
                while facts.size_bytes < enough_bytes and child.returncode is None:
                    await asyncio.sleep(POLL_S)
        finally:
            if child.returncode is None:
                child.kill()
            await child.wait()
    assert child.returncode == -9, (folder / "stderr").read_text()


class Ledger:
    """The log, followed by the reference model."""

    def __init__(self) -> None:
        self.model = Model()
        self.expired = self.writers = self.rebuilt = self.secrets = self.errors = 0
        self.counted = self.results = self.ticked = 0

    def add(self, record: Record) -> None:
        """Take one record in; an AssertionError names what must not be."""
        event = record.event
        if isinstance(event, Enqueued):
            assert event.id not in self.model.jobs, f"{event.id.hex()} is enqueued again at {record.offset}"
        self.counted += isinstance(event, KvSet)
        self.ticked += isinstance(event, Ticked)
        self.results += isinstance(event, Acked) and event.result is not None
        self.expired += isinstance(event, LeaseExpired) and event.reason == LEASE_EXPIRED
        self.writers += isinstance(event, WriterOpened)
        self.rebuilt += isinstance(event, Rebuilt)
        self.secrets += isinstance(event, Rebuilt) and SECRET in event.names
        try:
            self.model.apply(record.offset, record.time_ms, event)
        except Violation as violation:
            raise AssertionError(str(violation)) from violation
        if isinstance(event, Enqueued) and event.queue == "ticks":
            self.model.schedules.to_tick = event.id

    @property
    def unfinished(self) -> set[bytes]:
        """The jobs that are still to be worked on."""
        return {job.id for job in self.model.jobs.values() if job.state in UNFINISHED}

    @property
    def settled(self) -> int:
        """The number of claims that ended."""
        return sum(bool(how) for how in self.model.claims.values())

    @property
    def promoted(self) -> int:
        """How many scheduled jobs fell due."""
        return sum(counts.totals.get("promoted", 0) for counts in self.model.queues.values())

    @property
    def claimed(self) -> dict[int, bytes]:
        """Whose the claim at an offset was."""
        return {offset: job_id for job_id, offset in self.model.claims}

    @property
    def acked(self) -> dict[bytes, int]:
        """The claim that each job was acked by."""
        return {job_id: offset for (job_id, offset), how in self.model.claims.items() if how == "acked"}

    @property
    def requeued(self) -> set[bytes]:
        """The jobs that got a new start."""
        return {job.id for job in self.model.jobs.values() if job.requeues}

    def once(self, state: str) -> set[bytes]:
        """The jobs that were in this state at some time; "gone": swept."""
        return {job.id for job in self.model.jobs.values() if any(one.state == state for one in job.life)}


def check_promises(facts: Facts, fold: Fold, ledger: Ledger) -> None:
    """Nothing that was reported is lost, and what was acked, dead or cancelled is still, or was swept."""
    reported = {job_id_bytes(job_id) for job_id in facts.enqueued}
    states = {job.id: job.state for job in fold.jobs.values()}
    acked, claimed, swept, enqueued = ledger.acked, ledger.claimed, ledger.once("gone"), ledger.model.jobs.keys()
    lost = reported - enqueued
    assert not lost, f"{len(lost)} jobs that were reported are gone: {[job_id_text(job_id) for job_id in lost][:3]}"
    assert enqueued == states.keys() | swept
    assert not swept & states.keys()
    for name, told, noted, state in (
        ("acked", facts.acked.keys(), acked.keys(), "done"),
        ("dead", facts.dead, ledger.once("dead"), "dead"),
        ("cancelled", facts.cancelled, ledger.once("cancelled"), "cancelled"),
    ):
        ids = {job_id_bytes(job_id) for job_id in told}
        lost = ids - noted
        assert not lost, f"{len(lost)} jobs were reported {name}, not in the log: {sorted(told)[:3]}"
        gone = {job_id for job_id in ids if job_id in states and states[job_id] != state}
        if name == "dead":
            gone -= ledger.requeued
        assert not gone, f"{len(gone)} jobs were reported {name} and are {[states[job_id] for job_id in gone][:3]}"
    foreign = [job_id for job_id, offset in facts.acked.items() if acked[job_id_bytes(job_id)] != offset]
    assert not foreign, f"{len(foreign)} acks were accepted from others than the current claim: {foreign[:3]}"
    missing = {offset for offset, job_id in facts.claimed.items() if claimed.get(offset) != job_id_bytes(job_id)}
    assert not missing, f"claims were handed over that the log does not have: {sorted(missing)[:3]}"


async def check_log(log: LogReader, facts: Facts, fold: Fold) -> Ledger:
    """Prove what was promised by what stands in the log."""
    ledger = Ledger()
    async for record in log.read():
        ledger.add(record)
    check_promises(facts, fold, ledger)
    assert ledger.counted >= facts.counted, f"{facts.counted} were counted, and the log has {ledger.counted}"
    await check_effects(log)
    await check_errors(log.store, ledger)
    return ledger


async def check_effects(log: LogReader) -> None:
    """What an ack has as effects is in its commit: a number that is set, and a job that follows."""
    async for batch in log.batches():
        set_ = sum(isinstance(event, KvSet) for event in batch.events)
        followed = sum(isinstance(event, Enqueued) and event.queue == "followers" for event in batch.events)
        acked = sum(isinstance(event, Acked) for event in batch.events)
        assert set_ == followed <= acked, f"{set_} values, {followed} jobs, {acked} acks at {batch.base_offset}"


async def check_errors(store: ReadStore, ledger: Ledger) -> None:
    """The newest errors that stand beside the log are those that were given for their claims."""
    given: dict[int, int] = {}
    for job in ledger.model.jobs.values():
        claim = 0
        for moment in job.life:
            claim = moment.offset if isinstance(moment.event, Claimed) else claim
            if isinstance(moment.event, Nacked) and not moment.event.released:
                assert isinstance(moment.event.error, Sealed), f"the error at {moment.offset} stands in the log"
                given[moment.offset] = claim
    newest = sorted(given)[-ERRORS:]
    for at, row in zip(newest, await store.get_many([text_key(at) for at in newest]), strict=True):
        if row is not None:  # of a job that was swept it is gone
            text = decode_text(row)
            assert text in (f"boom at {given[at]}", f"hopeless at {given[at]}"), f"the error at {at} is {text!r}"
            ledger.errors += 1


async def read_and_check(url: str, facts: Facts) -> tuple[Fold, Ledger]:
    """Prove everything beside the store, as the crash left it: nothing is written. A store that never was is empty."""
    try:
        store = await open_reader(url, pinned=True)
    except StoreNotFound:
        assert not facts.enqueued, "jobs were reported, and there is no store"
        return Fold(), Ledger()
    try:
        fold = await check_ledger(store)
        return fold, await check_log(LogReader(store, clock=SystemClock()), facts, fold)
    finally:
        await store.close()


async def open_and_check(url: str, facts: Facts) -> Fold:
    """Open the queue after a crash, and prove everything through it."""
    # With a clock that stands still the queue changes nothing any more after its first scans.
    async with Queue.open(url, clock=ManualClock(SystemClock().now_ms())) as queue:
        return await check_queue(queue, facts)


async def check_queue(queue: Queue, facts: Facts) -> Fold:
    """Prove everything through a queue that was just opened with a clock that stands still."""
    for _ in range(LOOKS):
        head = await queue.log.head()
        try:
            # Both see what is on its way as well; the queue's own log would end before it.
            fold = await check_ledger(queue.log.store)
            ledger = await check_log(LogReader(queue.log.store, clock=queue.clock), facts, fold)
            value = await queue.kv.get("count")
            assert (0 if value is None else value.json()) == ledger.counted
            await check_reported_payloads(queue, facts, fold)
        except JobNotFound:
            # It is being swept.
            continue
        except AssertionError:
            if await queue.log.head() == head:
                raise
            continue
        if await queue.log.head() == head:
            break
    else:
        raise AssertionError("a queue whose clock stands still found more to do again and again")
    stats = await queue.stats("q")
    assert stats.claimed == 0
    return fold


async def check_reported_payloads(queue: Queue, facts: Facts, fold: Fold) -> None:
    """The newest jobs that are still there have the payloads that were reported. Raises `JobNotFound`."""
    alive = {job.job_id for job in fold.jobs.values()}
    for job_id in [job_id for job_id in facts.enqueued if job_id in alive][-3:]:
        assert (await queue.payload(job_id)).payload.hex().startswith(facts.enqueued[job_id])
