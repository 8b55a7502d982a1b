"""Claimers in a simulated world: callers that claim jobs and settle them in every way.

`Calls` is shared by all callers: time limits, and the distinction of errors with a reason from those without.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from ledgerq.eventlog.errors import (
    ClaimLost,
    DuplicateJobId,
    InvalidState,
    JobNotFound,
    LedgerError,
    ScheduleNotFound,
    UniqueKeyHeld,
)
from ledgerq.worker.claims import Claim
from ledgerq.worker.queue import Queue
from tests.model.job import Violation
from tests.simulation.machine import CALL_LIMIT_S, Machine
from tests.simulation.process import Process

__all__ = ["Calls", "Claimers", "Gone"]

T = TypeVar("T")
# A job that could be claimed for longer than this, without trouble, must have been given to a waiting call.
_PATIENCE_MS: Final = 1000


class Gone(Exception):
    """The call failed for a reason: its outcome is unknown, and the caller does nothing more."""


class Calls:
    """The calls of all callers, with time limits and expected errors."""

    def __init__(self, world: Machine) -> None:
        self._world = world
        self._oracle = world.oracle
        self.holders: set[asyncio.Task[None]] = set()

    async def call(self, process: Process, what: str, call: Awaitable[T]) -> T:
        """Wait for an answer, within the time limit; raises `Gone` when it failed for a reason."""
        world = self._world
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                answer = await call
        except TimeoutError as error:
            raise Violation("hang", f"p{process.number} {what} did not end in {CALL_LIMIT_S:g} s") from error
        except (ClaimLost, InvalidState, JobNotFound, DuplicateJobId, ScheduleNotFound, UniqueKeyHeld):
            raise
        except LedgerError as error:
            world.say(f"p{process.number} {what}: {type(error).__name__}")
            if process.excuses(error):
                raise Gone from error
            raise Violation("error", f"p{process.number} {what} failed, for no reason: {error!r}") from error
        return answer

    def give(self, subject: bytes | str, text: str) -> str:
        """Note that this text is given for a job, by its id, a queue or a schedule."""
        self._world.ledger.side.given.add((subject, text))
        return text

    @staticmethod
    def _queue(process: Process) -> Queue:
        assert process.queue is not None
        return process.queue


class Claimers(Calls):
    """The claimers of a simulated world."""

    async def _claim(
        self,
        process: Process,
        queues: Sequence[str],
        limit: int,
        wait_ms: int,
        fates: Sequence[tuple[str, int]],
        together: bool,
        lease_ms: int | None = None,
        kept: bool = False,
    ) -> None:
        queue, lease = self._queue(process), None if lease_ms is None else lease_ms / 1000
        call = queue.claim(queues, limit=limit, wait=wait_ms / 1000, lease=lease, kept=kept)
        asked_ms, opened_ms = self._world.loop.now_ms(), process.opened_ms
        claims = await self.call(process, f"claim {queues}", call)
        self._world.say(f"p{process.number} claim {queues} -> {[claim.offset for claim in claims]}")
        if len(claims) > limit or len({claim.queue for claim in claims}) > 1:
            raise Violation("order", f"a claim of {limit} brought {len(claims)} jobs of several queues, or too many")
        if not claims and (wait_ms == 0 or wait_ms > _PATIENCE_MS):  # a short wait may end before anything was read
            await self._nothing_overlooked(process, queues, max(asked_ms if wait_ms == 0 else 0, opened_ms))
        for claim in claims:
            lease_ms_of = lease_ms or round(queue.options(claim.queue).lease_s * 1000)
            self._oracle.receive(claim, lease_ms_of, self._world.clock.now_ms())
            self._oracle.hand(claim)
        places = [(claim.priority, self._oracle.model.jobs[claim.id].offset) for claim in claims]
        if places != sorted(places):
            raise Violation("order", f"one claim brought jobs in the order {places}")
        if together and claims:
            await asyncio.sleep(fates[0][1] / 1000)  # long enough, and some are lost
            await self._ack_many(process, claims)
            return
        for claim, (fate, hold_ms) in zip(claims, fates, strict=False):
            if kept:
                self.holders.add(self._world.spawn(None, self._hold, claim, fate, hold_ms))
            else:
                await self._settle(process, claim, fate, hold_ms)

    async def _hold(self, claim: Claim, fate: str, hold_ms: int) -> None:
        """Hold a kept claim as another process does, and settle it at the writer that there is then.

        When that is killed during the call, whose outcome is unknown then, the call is repeated at the next one.
        """
        world = self._world
        await asyncio.sleep(hold_ms / 1000)
        while True:
            process = await world.process()
            task = world.spawn(process, self._settle_kept, process, claim, fate)
            await asyncio.wait({task})
            if not process.killed:
                return

    async def _settle_kept(self, process: Process, claim: Claim, fate: str) -> None:
        with contextlib.suppress(Gone):
            await self._settle(process, claim, fate, 0)

    async def _nothing_overlooked(self, process: Process, queues: Sequence[str], waiting_since_ms: int) -> None:
        """Check a claim that brought nothing: no job of these queues may have been there for a while without faults."""
        since_ms = waiting_since_ms or self._world.loop.now_ms()
        since_ms -= self._world.patience_ms
        # A job may have been given to others, and the commit of that be on its way.
        await self.call(process, "flush", self._queue(process).log.committed())
        calm_ms = self._world.calm_since_ms(process)
        if calm_ms is None or calm_ms > self._world.loop.now_ms() - self._world.patience_ms:
            return  # a read that stalls, say, finds out nothing
        overlooked = [id for name in queues for id in self._oracle.model.overlooked(name, since_ms)]
        if overlooked:
            raise Violation("overlooked", f"a claim of {queues} brought nothing; {overlooked[0].hex()} was pending")

    async def _ack_many(self, process: Process, claims: Sequence[Claim]) -> None:
        try:
            await self.call(process, "ack_many", self._queue(process).ack_many(claims))
        except ClaimLost:
            how = {claim.offset: self._oracle.model.claims[claim.id, claim.offset] for claim in claims}
            if not all(how.values()) or set(how.values()) == {"acked"}:
                raise Violation("settled", f"ack_many lost some claims, and by the log {how}") from None
            return
        for claim in claims:
            self._oracle.settled(claim, "acked")

    async def _settle(self, process: Process, claim: Claim, fate: str, hold_ms: int) -> None:
        """Work on a claim for a while, and then end it as planned."""
        queue = self._queue(process)
        if hold_ms:
            await asyncio.sleep(hold_ms / 1000)
        if fate == "late":
            await asyncio.sleep(claim.lease_ms / 1000 + 1)
        elif fate == "extend":
            claim = await self._extend(process, claim)
            await asyncio.sleep(claim.lease_ms / 2000)
        if fate in ("ack", "late", "twice", "extend"):
            await self._end(process, claim, "acked", lambda: queue.ack(claim))
        if fate in ("nack", "twice"):
            error = self.give(claim.id, f"it failed at {claim.offset}")
            await self._end(process, claim, "nacked", lambda: queue.nack(claim, error))
        elif fate == "dead":
            error = self.give(claim.id, f"hopeless at {claim.offset}")
            await self._end(process, claim, "nacked", lambda: queue.nack(claim, error, dead=True))
        elif fate == "release":
            reason = self.give(claim.id, f"given back at {claim.offset}")
            delay = claim.offset % 3 / 10
            await self._end(process, claim, "released", lambda: queue.release(claim, reason, delay=delay))

    async def _end(self, process: Process, claim: Claim, how: str, call: Callable[[], Awaitable[None]]) -> None:
        what = f"{how} {claim.offset}"
        try:
            await self.call(process, what, call())
        except ClaimLost:
            self._world.say(f"p{process.number} {what}: lost")
            self._oracle.lost(claim)
            return
        self._world.say(f"p{process.number} {what}: yes")
        self._oracle.settled(claim, how)

    async def _extend(self, process: Process, claim: Claim) -> Claim:
        try:
            renewed = await self.call(process, "extend", self._queue(process).extend(claim, claim.lease_ms / 500))
        except ClaimLost as error:
            self._oracle.lost(claim)
            raise Gone from error
        self._oracle.renewed(renewed)
        return renewed
