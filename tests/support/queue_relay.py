"""A relay between a `Worker` and its queue: the base of tests that watch some of the calls."""

from collections.abc import Callable

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.steps.steps import DoneStep

__all__ = ["QueueRelay"]


class QueueRelay:
    """The relay of the calls that are not watched; claims and settlements are the subclass's."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    @property
    def on_failure(self) -> list[Callable[[LedgerError], None]]:
        """See `Queue.on_failure`."""
        return self.queue.on_failure

    @property
    def clock(self) -> Clock:
        """See `Queue.clock`."""
        return self.queue.clock

    def options(self, queue: str) -> QueueOptions:
        """See `Queue.options`."""
        return self.queue.options(queue)

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """See `Queue.watch`."""
        self.queue.watch(claim, callback)

    def effects(self) -> Effects:
        """See `Queue.effects`."""
        return self.queue.effects()

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """See `Queue.read_step`."""
        return await self.queue.read_step(claim, name)

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """See `Queue.finish_step`."""
        await self.queue.finish_step(claim, name, value)

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """See `Queue.report`."""
        self.queue.report(claim, fraction, text)

    async def close(self) -> None:
        """See `Queue.close`."""
        await self.queue.close()
