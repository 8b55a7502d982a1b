"""A queue on a store in memory, with a clock that stands still and a store that fails or stalls on command.

    async with Rig() as rig:
        job = await rig.queue.enqueue("q", b"x")

At its end the queue is closed, no task may be left, and the ledger must be clean.
"""

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Any, Self

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import RecordBatch
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.events import Event
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.projections.fold import Fold
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.support.loops import settle
from tests.support.texts import with_texts

__all__ = ["Faults", "Rig", "abandon", "claim_all", "payloads"]


class Faults:
    """The fault of a `MemoryStore`: it records calls; a held call waits until it is let go, a spoilt one raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.held: dict[str, asyncio.Event] = {}
        self._spoilt: dict[str, list[BaseException]] = {}

    async def __call__(self, call: str) -> None:
        """Meet the store's call."""
        self.calls.append(call)
        errors = self._spoilt.get(call)
        if errors:
            raise errors.pop(0)
        while call in self.held:
            await self.held[call].wait()

    def hold(self, call: str) -> None:
        """Let this call stall from now on."""
        self.held[call] = asyncio.Event()

    def let_go(self, call: str) -> None:
        """Let the stalled calls go on."""
        self.held.pop(call).set()

    def spoil(self, call: str, *errors: BaseException) -> None:
        """Let the next calls of this kind raise these errors, one each."""
        self._spoilt.setdefault(call, []).extend(errors)


async def abandon(queue: Queue) -> None:
    """End a queue as a crash does: its tasks end where they are, nothing is written."""
    mine = [task for task in asyncio.all_tasks() if task.get_name().startswith("ledgerq-")]
    for task in mine:
        task.cancel()
    await asyncio.gather(*mine, return_exceptions=True)


def payloads(claims: Collection[Claim]) -> list[bytes]:
    """The payloads of these claims, in order."""
    return [claim.payload for claim in claims]


async def claim_all(queue: Queue, name: str = "q") -> list[Claim]:
    """Claim until there is nothing more; a claim may bring fewer than its limit when payloads must be read first."""
    claims: list[Claim] = []
    while more := await queue.claim(name, limit=1000):
        claims += more
    return claims


class Rig:
    """A queue with its store and clock; `options` are those of `Queue.open`."""

    def __init__(self, **options: Any) -> None:
        self.disk = MemoryDisk()
        self.clock = ManualClock()
        self.faults = Faults()
        self.entropy = SeededEntropy(7)
        self.without_payload: set[bytes] = set()
        self._options: dict[str, Any] = {
            "default": QueueOptions(backoff_base_s=8.0),
            "commit_interval_ms": 0.0,
        } | options
        self.queue: Queue
        self.store: MemoryStore

    async def open(self, **options: Any) -> Queue:
        """Open another queue on the same disk; it is `queue` from now on."""
        given = self._options | options
        self.store = MemoryStore(self.disk, fault=self.faults)
        self.queue = await Queue.open(store=self.store, clock=self.clock, entropy=self.entropy, **given)
        return self.queue

    async def reopen(self, **options: Any) -> Queue:
        """Close the queue and open it again."""
        await self.queue.close()
        return await self.open(**options)

    async def crash(self, **options: Any) -> Queue:
        """Lose the process, with all that was not durable, and open the queue again."""
        await abandon(self.queue)
        return await self.open(**options)

    async def advance(self, seconds: float) -> None:
        """Let time pass and what it brings about happen."""
        self.clock.advance(seconds=seconds)
        await settle()

    async def check(self) -> Fold:
        """Prove the durable ledger's invariants."""
        return await check_ledger(self.disk, without_payload=self.without_payload)

    async def batches(self) -> list[RecordBatch]:
        """The durable record batches, one for each commit."""
        log = LogReader(MemoryReader(self.disk), clock=self.clock)
        return [batch async for batch in log.batches()]

    async def events(self) -> list[Event]:
        """The durable events, with their texts."""
        return with_texts(self.disk.rows, (event for batch in await self.batches() for event in batch.events))

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            await abandon(self.queue)
            return
        await self.queue.close()
        await settle()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, f"tasks are left: {others}"
        await self.check()
