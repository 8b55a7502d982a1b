"""Real workers in a simulated world, and a relay between each worker and its queue that checks both.

What a worker promises is checked where it meets its queue and its handlers: how many it runs and holds, that each try
is settled as its handler ended, that time-outs, the grace time and requests to stop are kept, and that nothing is left.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from ledgerq.eventlog.errors import ClaimLost, LedgerError
from ledgerq.eventlog.events import CancelRequested
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import Dead, Retry, Snooze
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.worker import Worker
from tests.model.job import Violation
from tests.simulation.claimers import Calls
from tests.simulation.machine import Machine
from tests.simulation.process import Process
from tests.support.queue_relay import QueueRelay

__all__ = ["Workers"]

_GRACE_MS: Final = 5000
_TIMEOUT_MS: Final = 1000
_TIMED_OUT: Final = "timed out"
_DEADLINE: Final = "the job's deadline is over"
_CANCELLED: Final = "its cancellation was requested"
_IN_TIME: Final = "no handler was free for it in time"
Key = tuple[bytes, int]


class _Between(QueueRelay):
    """The relay between one worker and its queue."""

    def __init__(self, world: Machine, process: Process, capacity: int) -> None:
        assert process.queue is not None
        super().__init__(process.queue)
        self._world = world
        self._oracle = world.oracle
        self._process = process
        self._capacity = capacity
        self._since_ms: dict[Key, int] = {}
        self.held: dict[Key, None] = {}
        self.settling: set[Key] = set()
        self.ended: dict[Key, tuple[str, Any]] = {}
        self.ended_ms: dict[Key, int] = {}
        self.stopped_ms: int | None = None
        self._runs = asyncio.current_task()

    def broke(self, kind: str, what: str) -> None:
        """A promise was broken: raised through a worker it would be taken for a failing queue."""
        self._world.break_(Violation(kind, f"the worker of p{self._process.number}: {what}"))

    async def drained(self, queues: str | Sequence[str]) -> None:
        """See `Queue.drained`."""
        await self.queue.drained(queues)
        try:
            self._oracle.drained(queues)
        except Violation as violation:
            self._world.break_(violation)
        self.stopped_ms = self._world.loop.now_ms()

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
    ) -> list[Claim]:
        """See `Queue.claim`."""
        if self.stopped_ms is not None and self._world.loop.now_ms() > self.stopped_ms:
            self.broke("stop", "it claims after it was stopped")
        claims = await self.queue.claim(queue, limit, lease, wait, worker)
        try:
            for claim in claims:
                lease_ms = round(self.queue.options(claim.queue).lease_s * 1000)
                self._oracle.receive(claim, lease_ms, self._world.clock.now_ms())
                self.held[claim.id, claim.offset] = None
                self._since_ms[claim.id, claim.offset] = self._world.loop.now_ms()
        except Violation as violation:
            self._world.break_(violation)
        held = [key for key in self.held if key not in self.settling and not self._oracle.model.claims[key]]
        if len(claims) > limit or len(held) > self._capacity:
            self.broke("limit", f"it got {len(claims)} of {limit}, and holds {len(held)} of {self._capacity}")
        return claims

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """See `Queue.extend`."""
        renewed = await self.queue.extend(claim, lease)
        self._oracle.renewed(renewed)
        return renewed

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """See `Queue.ack`."""
        self._ended_well(claim)
        await self._settle(claim, "acked", lambda: self.queue.ack(claim, result, effects))

    def _ended_well(self, claim: Claim) -> None:
        how, _ = self.ended.get((claim.id, claim.offset), ("", None))
        if how != "ack":
            self.broke("settled", f"it acks the claim at {claim.offset}, whose handler ended with {how!r}")

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        """See `Queue.ack_many`."""
        for claim in claims:
            self._ended_well(claim)
        lost: frozenset[int] = frozenset()
        self.settling.update((claim.id, claim.offset) for claim in claims)
        try:
            await self.queue.ack_many(claims, results)
        except ClaimLost as error:
            lost = error.offsets
            raise
        finally:
            for claim in claims:
                self.held.pop((claim.id, claim.offset), None)
                if claim.offset in lost:
                    self._lost(claim)
                elif lost:
                    self._settled(claim, "acked")
        for claim in claims:
            self._settled(claim, "acked")

    async def nack(
        self,
        claim: Claim,
        error: str,
        delay: float | None = None,
        dead: bool = False,
        error_type: str = "",
        rule: RetryRule | None = None,
        effects: Effects | None = None,
    ) -> None:
        """See `Queue.nack`."""
        how, more = self.ended.get((claim.id, claim.offset), ("", None))
        job, now_ms = self._oracle.model.jobs[claim.id], self._world.loop.now_ms()
        since_ms = self._since_ms[claim.id, claim.offset]
        in_time = how == "cancelled" and now_ms - since_ms < _TIMEOUT_MS and self._world.jumped_ms < since_ms
        expected = (how, delay, dead) in (("retry", more, False), ("dead", None, True), ("failed", None, False))
        # A handler can end in the very moment in which its stop is requested.
        is_told = any(text in error for text in (_TIMED_OUT, _CANCELLED, _DEADLINE))
        if not expected and (not is_told or dead or delay is not None or how == "ack"):
            self.broke("settled", f"it nacks {claim.offset} ({error}, {delay}, {dead}), which ended with {how!r}")
        if _TIMED_OUT in error and in_time:
            self.broke("timeout", f"of {claim.offset} it reports that {error}, after {now_ms - since_ms} ms")
        is_early = not 0 < claim.deadline_ms <= self._world.clock.now_ms()
        if _DEADLINE in error and is_early and not self._world.clock_went_back:
            self.broke("timeout", f"of {claim.offset} it reports that {error}, which is at {claim.deadline_ms} ms")
        self._world.ledger.side.given.add((claim.id, error))
        await self._settle(claim, "nacked", lambda: self.queue.nack(claim, error, delay, dead, effects=effects))
        asked = any(type(one.event) is CancelRequested and one.offset > claim.offset for one in job.life)
        if _CANCELLED in error and not asked:
            self.broke("settled", f"of {claim.offset} it reports that {error}, without a request")

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
        """See `Queue.release`."""
        how, more = self.ended.get((claim.id, claim.offset), ("", None))
        is_cancelled = self._runs is not None and self._runs.cancelling() > 0
        # One that ends well in the very moment in which it is cancelled is tried again.
        is_late = how == "ack" and self.ended_ms[claim.id, claim.offset] < self._world.loop.now_ms()
        waited = how == "" and _IN_TIME in reason
        snoozed = (how, more) == ("snooze", delay)
        if is_late or not (
            snoozed or is_cancelled or waited or self.stopped_ms is not None or not self._process.healthy
        ):
            self.broke("settled", f"it gives back the claim at {claim.offset}, which ended with {how!r}")
        self._world.ledger.side.given.add((claim.id, reason))
        await self._settle(claim, "released", lambda: self.queue.release(claim, reason, delay, hold))

    async def _settle(self, claim: Claim, how: str, call: Callable[[], Any]) -> None:
        key = (claim.id, claim.offset)
        self.settling.add(key)
        try:
            await call()
        except ClaimLost:
            self._lost(claim)
            raise
        finally:
            self.held.pop(key, None)
        self._settled(claim, how)

    def _settled(self, claim: Claim, how: str) -> None:
        try:
            self._oracle.settled(claim, how)
        except Violation as violation:
            self._world.break_(violation)

    def _lost(self, claim: Claim) -> None:
        key = (claim.id, claim.offset)
        try:
            self._oracle.lost(claim)
        except Violation as violation:
            self._world.break_(violation)
        calm_ms = self._world.calm_since_ms(self._process)
        if self._oracle.model.claims[key] == "expired" and calm_ms is not None and calm_ms < self._since_ms[key]:
            self.broke("renewal", f"the lease of {claim.offset} ended while it worked on it, without trouble")


class Workers(Calls):
    """The workers of a simulated world."""

    async def _worker(
        self,
        process: Process,
        queues: Sequence[str],
        concurrency: int,
        prefetch: int,
        run_ms: int,
        seed: int,
        until_empty: bool,
    ) -> None:
        world, rng = self._world, random.Random(seed)
        between = _Between(world, process, concurrency + prefetch)
        worker = Worker(between, concurrency=concurrency, prefetch=prefetch, grace=_GRACE_MS / 1000, name="worker")
        running: list[Claim] = []

        def stop() -> None:
            between.stopped_ms = between.stopped_ms or world.loop.now_ms()
            worker.stop()

        for queue in queues:
            timeout_ms = rng.choice((None, _TIMEOUT_MS))
            handle = self._handler(process, between, running, concurrency, timeout_ms, rng)
            worker.handler(queue, timeout=None if timeout_ms is None else timeout_ms / 1000)(handle)
        asyncio.get_running_loop().call_later(run_ms / 1000, stop)
        world.say(f"p{process.number} worker on {queues}")
        await self.call(process, "worker", worker.run(signals=False, until_empty=until_empty))
        world.say(f"p{process.number} worker ended")
        self._ended(process, between)

    def _ended(self, process: Process, between: _Between) -> None:
        world, model = self._world, self._oracle.model
        calm_ms = world.calm_since_ms(process)
        if calm_ms is None:
            return
        left = [key for key in between.held if not model.claims[key]]
        if left:
            between.broke("lost", f"it ended and left claims behind: {left[:3]}")
        if between.stopped_ms is None:
            between.broke("stop", "it ended by itself")
        elif calm_ms < between.stopped_ms < world.loop.now_ms() - _GRACE_MS - 2 * world.patience_ms:
            between.broke("grace", f"it was stopped at {between.stopped_ms} and ends only now")

    def _handler(
        self,
        process: Process,
        between: _Between,
        running: list[Claim],
        concurrency: int,
        timeout_ms: int | None,
        rng: random.Random,
    ) -> Callable[[JobContext], Any]:
        world = self._world

        async def handle(job: JobContext) -> None:
            claim, begun_ms = job.claim, world.loop.now_ms()
            key = (claim.id, claim.offset)
            try:  # raised through the handler it would only fail the job
                self._oracle.hand(claim)
            except Violation as violation:
                world.break_(violation)
            running.append(claim)
            if len(running) > concurrency:
                between.broke("limit", f"{len(running)} handlers run, {concurrency} may")
            between.ended[key] = ("cancelled", None)
            try:
                await asyncio.sleep(rng.choice((0, 0, 0.003, 0.5, 8)))
            finally:
                running.remove(claim)
                self._look_back(process, between, claim, begun_ms, timeout_ms)
            if world.plan.settings["steps"]:
                await self._steps(job, between, key)
            if world.plan.settings["effects"]:
                self._stage(job)
            between.ended_ms[key] = world.loop.now_ms()
            how = rng.randrange(8)
            delay_s = rng.choice((None, 0.01))
            ends = {0: ("retry", delay_s), 1: ("dead", None), 2: ("failed", None), 3: ("snooze", 0.02)}
            between.ended[key] = ends.get(how, ("ack", None))
            if how == 0:
                raise Retry(delay_s)
            if how == 1:
                raise Dead("hopeless")
            if how == 2:
                raise RuntimeError("it failed")
            if how == 3:
                raise Snooze(0.02)

        return handle

    async def _steps(self, job: JobContext, between: _Between, key: Key) -> None:
        """Do the steps of the job, some of them at a time, as it is to have them in each of its tries."""
        rows, chance = self._world.ledger.steps, random.Random(f"steps of {job.job_id}")

        async def step(name: str, delay_s: float) -> None:
            async def work() -> int:
                await asyncio.sleep(delay_s)
                return rows.work(job.id, name)

            rows.returned(job.id, name, await job.step(name, work))

        steps = [step(f"s{number}", chance.choice((0, 0, 0.01))) for number in range(chance.randrange(5))]
        try:
            job.progress(chance.random(), "begun")
            await asyncio.gather(*steps[:2])
            for one in steps[2:]:
                job.progress(chance.random())
                await one
        except Violation as violation:
            self._world.break_(violation)
        except LedgerError:
            between.ended[key] = ("failed", None)
            raise
        finally:
            for one in steps:
                one.close()

    def _stage(self, job: JobContext) -> None:
        """Set a key or two, and delete one, whatever becomes of this try."""
        chance = random.Random(f"effects of {job.offset}")
        staged = self._world.ledger.values.staged.setdefault((job.id, job.offset), {})
        for _ in range(chance.randrange(4)):
            key = f"k{chance.randrange(4)}"
            if chance.random() < 0.3:
                staged[key] = None
                job.kv.delete(key)
            else:
                staged[key] = b"%d" % job.offset
                job.kv.set(key, b"%d" % job.offset)

    def _look_back(
        self, process: Process, between: _Between, claim: Claim, begun_ms: int, timeout_ms: int | None
    ) -> None:
        """Check that a handler ended, or was ended, in time."""
        world, now_ms, job = self._world, self._world.loop.now_ms(), self._oracle.model.jobs[claim.id]
        calm_ms = world.calm_since_ms(process)
        if calm_ms is None or calm_ms >= begun_ms:
            return
        if timeout_ms is not None and now_ms - begun_ms > timeout_ms + world.patience_ms:
            between.broke("timeout", f"the handler of {claim.offset} ran for {now_ms - begun_ms} ms")
        current = not self._oracle.model.claims[claim.id, claim.offset]
        if current and job.stop_asked and job.stop_asked_at_ms < now_ms - world.patience_ms:
            between.broke("stop", f"the handler of {claim.offset} was to be stopped at {job.stop_asked_at_ms} ms")
        if not current and job.changed_at_ms < now_ms - world.patience_ms:
            between.broke("stop", f"the handler of {claim.offset} was not told that the claim is lost")
