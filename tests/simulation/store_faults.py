"""The store of a simulated world: one in memory that fails in every way that a real one was seen to.

A write can fail, or succeed and report a failure, or land after the failure was reported; calls can be slow or stall
for a minute; reads can fail; it can stop by itself, for good; the process can vanish at any call; a clock that was set
back is refused, as SlateDB does.
"""

import asyncio
import random
from collections.abc import Mapping
from typing import Final, Protocol

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import ClockWentBack, LedgerError, LogPoisoned, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.store import Anchor, Batch
from tests.simulation.loop import SimLoop
from tests.simulation.plan import Plan
from tests.simulation.process import Process

__all__ = ["Host", "SimDisk", "SimStore", "Fault"]

_STALL_MS: Final = 60_000
_SLOW_MS: Final = 50
_LATE_MS: Final = 3_000


class SimDisk(MemoryDisk):
    """A disk with the latest time at which anything was written."""

    def __init__(self) -> None:
        super().__init__()
        self.last_tick_ms = 0


class Fault:
    """One kind of fault for a while; see `FAULTS` in plan.py."""

    def __init__(self, kind: str, until_ms: int, chance: float, seed: int) -> None:
        self.kind = kind
        self.until_ms = until_ms
        self.chance = chance
        self.rng = random.Random(seed)

    def strikes(self) -> bool:
        """Whether the fault strikes this call."""
        return self.rng.random() < self.chance


class Host(Protocol):
    """The protocol of the machine that a store is on (machine.py)."""

    plan: Plan
    disk: SimDisk
    loop: SimLoop

    @property
    def clock(self) -> Clock:
        """The wall clock."""

    def say(self, text: str) -> None:
        """Add a line to the trace of the run."""

    async def meet(self, process: Process, call: str) -> None:
        """Run what was planned for this call of a store."""

    def faults_now(self) -> list[Fault]:
        """The faults that are not over yet."""

    def on_flush(self, process: Process, changes: Mapping[bytes, bytes | None]) -> None:
        """Check what became durable."""


class SimStore(MemoryStore):
    """One writer's store on a machine, for one of its processes."""

    def __init__(self, world: Host, process: Process) -> None:
        super().__init__(world.disk)
        self._world = world
        self._process = process
        self._stopped: LedgerError | None = None

    @property
    def fenced(self) -> bool:
        """Whether a later writer opened the disk."""
        return self._number != self._disk.writer_number

    async def _meet(self, call: str) -> None:
        world, process = self._world, self._process
        await world.meet(process, call)
        latency_ms = world.plan.settings["latency_ms"]
        if latency_ms:
            await asyncio.sleep(latency_ms / 1000)
        for fault in world.faults_now():
            if fault.strikes():
                process.disturbances += 1
                try:
                    await self._strike(fault, call)
                finally:
                    process.disturbances -= 1
                    process.disturbed_ms = world.loop.now_ms()
        if process.killed:
            await asyncio.Event().wait()
        error = self.failure()
        if error is not None:
            raise error

    async def _strike(self, fault: Fault, call: str) -> None:
        if fault.kind == "slow":
            await asyncio.sleep(fault.rng.randrange(_SLOW_MS) / 1000)
        elif fault.kind == "stall":
            await asyncio.sleep(fault.rng.randrange(_STALL_MS) / 1000)
        elif fault.kind == "stops" and self._stopped is None:
            # By itself, and silently: the next call or read of `failure` gets the error.
            self._stopped = self._trouble(LogPoisoned("the simulated store stopped"))
        elif fault.kind == "fail" and call == "write:before":
            raise self._trouble(StoreUnavailable("the simulated store takes no writes"))
        elif fault.kind == "reads" and call in ("get", "scan"):
            raise self._trouble(StoreUnavailable("the simulated store can't be read"))
        elif (fault.kind == "lost" and call == "sync:before") or (fault.kind == "doubt" and call == "sync:after"):
            raise self._trouble(OutcomeUnknown("the simulated store does not say what became of it"))
        elif fault.kind == "late" and call == "sync:before":
            asyncio.get_running_loop().call_later(fault.rng.randrange(_LATE_MS) / 1000, self.land)
            raise self._trouble(OutcomeUnknown("the simulated store is late"))

    def _trouble(self, error: LedgerError) -> LedgerError:
        self._process.causes.add("fault")
        self._world.say(f"p{self._process.number} meets {error}")
        return error

    def land(self) -> None:
        """Make what was written durable, although no caller waits for it any more."""
        if self.failure() is None and self._unsynced:
            self._world.say(f"p{self._process.number} lands late")
            self.flush()

    def failure(self) -> LedgerError | None:
        """Like `MemoryStore.failure`, or what stopped it."""
        return super().failure() or self._stopped

    async def write(self, batch: Batch) -> None:
        """Like `MemoryStore.write`; refuses a clock that went back, when the world is one where stores do."""
        disk, now_ms = self._world.disk, self._world.clock.now_ms()
        if self._world.plan.settings["checks_clock"] and now_ms < disk.last_tick_ms:
            raise ClockWentBack(now_ms, disk.last_tick_ms)
        disk.last_tick_ms = max(now_ms, disk.last_tick_ms)
        await super().write(batch)

    def flush(self, anchor: Anchor | None = None) -> None:
        """Like `MemoryStore.flush`; what changes is checked at once."""
        changes = dict(self._unsynced)
        super().flush(anchor)
        self._world.on_flush(self._process, changes)

    async def close(self) -> None:
        """Like `MemoryStore.close`."""
        await self._world.meet(self._process, "close")
        await super().close()
