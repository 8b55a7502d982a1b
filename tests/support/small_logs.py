"""Small event logs in memory, written through `EventLog` with nothing projected: for the tests of the log itself."""

from collections.abc import Sequence

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import Head, RecordBatch, decode_batch, decode_head, digest_of, encode_batch, encode_head
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.events import Promoted
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import Fault, MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.store import Batch
from ledgerq.eventlog.writer import Commit, EventLog

STEP_MS = 10


class Watcher:
    """A commit hook that adds nothing, and records the calls of the log."""

    def __init__(self) -> None:
        self.filled: list[int] = []
        self.durable: list[int] = []
        self.failures: list[LedgerError] = []

    def fill(self, commit: Commit, batch: Batch) -> None:
        """Remember the commit's base offset."""
        self.filled.append(commit.base_offset)

    def committed(self, commit: Commit) -> None:
        """Remember the commit's base offset."""
        self.durable.append(commit.base_offset)

    def failed(self, error: LedgerError) -> None:
        """Remember the error."""
        self.failures.append(error)


def event(number: int) -> Promoted:
    """An event that differs from the others; its meaning plays no part here."""
    return Promoted(number.to_bytes(16))


async def start_log(
    disk: MemoryDisk,
    clock: ManualClock | None = None,
    *,
    fault: Fault | None = None,
    watcher: Watcher | None = None,
    accept_rollback: bool = False,
) -> EventLog:
    """A log on this disk, open for appending."""
    store = MemoryStore(disk, fault=fault)
    log = EventLog(store, clock=clock or ManualClock(), commit_hook=watcher or Watcher())
    await log.start(accept_rollback=accept_rollback)
    return log


async def write_log(disk: MemoryDisk, sizes: Sequence[int], clock: ManualClock | None = None) -> list[int]:
    """Write one batch for each size, `STEP_MS` apart, and close; returns the batches' base offsets."""
    clock = clock or ManualClock()
    log = await start_log(disk, clock)
    bases: list[int] = []
    for size in sizes:
        clock.advance(seconds=STEP_MS / 1000)
        bases.append(log.next_offset)
        for _ in range(size):
            log.append(event(log.next_offset))
        await log.committed()
    await log.close()
    return bases


def reader(disk: MemoryDisk, clock: ManualClock | None = None) -> LogReader:
    """A reader of this disk."""
    return LogReader(MemoryReader(disk), clock=clock or ManualClock())


def stored_bases(disk: MemoryDisk) -> list[int]:
    """The base offsets of the batches that are there."""
    return [keys.offset_of(key) for key in disk.rows if key.startswith(keys.LOG_PREFIX)]


def stored_head(disk: MemoryDisk) -> Head:
    """The head that is there."""
    return decode_head(disk.rows[keys.HEAD_KEY])


async def stored(disk: MemoryDisk) -> list[RecordBatch]:
    """The durable batches, after the chain was verified."""
    await reader(disk).verify()
    return [batch async for batch in reader(disk).batches()]


async def append(log: EventLog, number: int) -> int:
    """Append one event and wait until it is durable."""
    offset = log.append(event(number))
    await log.committed()
    return offset


def change_batch(
    disk: MemoryDisk,
    base: int,
    *,
    number: int | None = None,
    previous: bytes | None = None,
    epoch: int | None = None,
    time_ms: int | None = None,
) -> None:
    """Change the first event of a stored batch (to that of another number), or one of its outer fields."""
    batch = decode_batch(base, disk.rows[keys.log_key(base)])
    events = batch.events if number is None else [event(number), *batch.events[1:]]
    disk.rows[keys.log_key(base)] = encode_batch(
        batch.epoch if epoch is None else epoch,
        batch.previous if previous is None else previous,
        batch.time_ms if time_ms is None else time_ms,
        bytes([2] * len(events)),
        events,
        batch.distances or [0] * len(events),
    )


def change_head(disk: MemoryDisk, **changed: int | bytes) -> None:
    """Change fields of the stored head."""
    disk.rows[keys.HEAD_KEY] = encode_head(stored_head(disk)._replace(**changed))  # type: ignore[arg-type]


def relink(disk: MemoryDisk) -> None:
    """Make all digests right again, the head's too: as a thorough forger would do."""
    previous = bytes(32)
    for base in stored_bases(disk):
        change_batch(disk, base, previous=previous)
        previous = digest_of(disk.rows[keys.log_key(base)])
    change_head(disk, digest=previous)
