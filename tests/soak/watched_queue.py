"""A queue that is watched: the calls of the soak's load go through it, are timed, and leave a fact when they return."""

import time
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from ledgerq.eventlog.errors import ClaimLost
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim, EnqueueResult
from ledgerq.worker.effects import Effects
from ledgerq.worker.options import NewJob
from ledgerq.worker.queue import Queue
from ledgerq.worker.retry_rules import RetryRule
from tests.soak.meter import Facts, Meter
from tests.support.queue_relay import QueueRelay

__all__ = ["WatchedQueue", "sealed"]

_SEAL_BYTES: Final = 16


def sealed(content: bytes) -> bytes:
    """A payload that begins with its own digest, so that its receiver can check whether it is whole."""
    return blake2b(content, digest_size=_SEAL_BYTES).digest() + content


class WatchedQueue(QueueRelay):
    """The watched queue, with the methods that a `Worker` uses, and the others that the load uses."""

    def __init__(self, queue: Queue, facts: Facts, meter: Meter) -> None:
        super().__init__(queue)
        self.facts = facts
        self.meter = meter

    async def enqueue(self, queue: str, payload: bytes, **options: Any) -> EnqueueResult:
        """See `Queue.enqueue`."""
        start_s = time.perf_counter()
        added = await self.queue.enqueue(queue, payload, **options)
        self.meter.enqueue_took(start_s)
        self._added([added])
        return added

    async def enqueue_many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> list[EnqueueResult]:
        """See `Queue.enqueue_many`."""
        start_s = time.perf_counter()
        added = await self.queue.enqueue_many(queue, jobs)
        self.meter.enqueue_took(start_s)
        self._added(added)
        return added

    def _added(self, added: Sequence[EnqueueResult]) -> None:
        new = [job.job_id for job in added if job.created]
        self.meter.enqueued += len(new)
        self.facts.report(f"E {job_id}" for job_id in new)

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
        timed: bool = False,
    ) -> list[Claim]:
        """See `Queue.claim`. Each payload is checked against its seal."""
        start_s = time.perf_counter()
        claims = await self.queue.claim(queue, limit, lease, wait, worker)
        if timed:
            self.meter.claim_took(start_s)
        self.facts.report(f"C {claim.job_id} {claim.offset}" for claim in claims)
        for claim in claims:
            if sealed(claim.payload[_SEAL_BYTES:]) != claim.payload:
                self.facts.report([f"! the payload of job {claim.job_id} is not what was enqueued"])
        return claims

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """See `Queue.ack`."""
        await self._settle("A", claim, self.queue.ack(claim, result, effects))

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        """See `Queue.ack_many`."""
        try:
            await self.queue.ack_many(claims, results)
        except ClaimLost as error:
            self._acked(claims, error.offsets)
            raise
        self._acked(claims, frozenset())

    def _acked(self, claims: Sequence[Claim], lost: frozenset[int]) -> None:
        self.meter.lost += len(lost)
        self.meter.settled += len(claims) - len(lost)
        self.facts.report(f"{'L' if claim.offset in lost else 'A'} {claim.job_id} {claim.offset}" for claim in claims)

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
        await self._settle("N", claim, self.queue.nack(claim, error, delay, dead, error_type, rule, effects))

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
        """See `Queue.release`."""
        await self._settle("R", claim, self.queue.release(claim, reason, delay, hold))

    async def _settle(self, kind: str, claim: Claim, call: Any) -> None:
        try:
            await call
        except ClaimLost:
            self.meter.lost += 1
            self.facts.report([f"L {claim.job_id} {claim.offset}"])
            raise
        self.meter.settled += 1
        self.facts.report([f"{kind} {claim.job_id} {claim.offset}"])

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """See `Queue.extend`."""
        return await self.queue.extend(claim, lease)

    async def drained(self, queues: str | Sequence[str]) -> None:
        """See `Queue.drained`."""
        await self.queue.drained(queues)

    async def cancel(self, job_id: str) -> Job:
        """See `Queue.cancel`."""
        job = await self.queue.cancel(job_id, actor="soak", reason="one of many")
        if job.state == "cancelled":
            self.facts.report([f"X {job_id}"])
        return job

    async def requeue(self, job_id: str) -> None:
        """See `Queue.requeue`."""
        await self.queue.requeue(job_id, actor="soak", reason="a second chance")
        self.facts.report([f"Q {job_id}"])
