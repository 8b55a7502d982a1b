"""The part of a queue for those who work: claims and their settlement."""

from collections.abc import Sequence
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.keys import queue_names
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine import decisions, settlement, step_staging
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.engine.reports import checked_report
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.queue_operations import QueueOperations
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.steps.steps import DoneStep

__all__ = ["QueueClaims"]

_MAX_CLAIMS: Final = 10_000


class QueueClaims(QueueOperations):
    """The methods of a `Queue` for workers; see there."""

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
        kept: bool = False,
    ) -> list[Claim]:
        """Take up to `limit` (1 to 10,000) pending jobs, in order of priority, then of enqueueing.

        `queue` may be several names: the first that has jobs is served. `lease`: seconds until the claim ends by itself
        (None: the queue's option). `wait`: seconds to wait when there is none (0: not at all, None: without end).
        `worker`: the name of the claimer, for the log. `kept`: for a holder in another process; the claims go on when
        this writer ends, and have a full lease anew from when the next one opens the store. Returns [] when the wait is
        over. The claims are durable when this returns.
        """
        self._core.log.check()
        queues = queue_names(queue)
        if not queues:
            raise InvalidArgument("claim needs at least one queue name")
        for name in queues:
            self._core.check_name(name)
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= _MAX_CLAIMS:
            raise InvalidArgument(f"limit is a whole number from 1 to {_MAX_CLAIMS}, not {limit!r}")
        lease_ms = None if lease is None else seconds_ms("lease", lease, least_ms=1)
        wait_ms = 0 if wait == 0 else None if wait is None else seconds_ms("wait", wait)
        if worker is not None:
            worker = decisions.clip(worker, 255)
        if self._core.log.full:
            await self._core.log.until_not_full()
            self._core.log.check()
        return await self._core.dispatcher.claim(
            queues, limit=limit, lease_ms=lease_ms, wait_ms=wait_ms, worker=worker, kept=kept
        )

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """Ack a claim: its work is done. Raises `ClaimLost`, and appends nothing, when it is no longer current.

        An ack that is repeated, while the job's record is kept, changes nothing and returns.
        `result`: at most 1 MiB, kept as long as the job's record, in the same commit; raises `ResultTooLarge`.
        `effects`: come in the same commit, or the claim is still current: raises `EffectConflict`, `DuplicateJobId`.
        """
        self._core.log.check()
        await settlement.ack(self._core, claim, result, effects)

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        """Ack all claims in one commit. When some are lost the others are acked all the same; raises `ClaimLost`.

        `results`: one for each, or None; many large ones take more than one commit.
        """
        self._core.log.check()
        await settlement.ack_many(self._core, claims, results)

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
        """Nack a claim: its try failed; retry after backoff or `delay` seconds, or dead (asked for, or no try left).

        `error_type`: the name of the exception's class; `rule`: that of the exception, made by `on`, which goes before
        the job's attempts and the queue's backoff. Raises `ClaimLost`, and appends nothing, when the claim is over.
        `effects`: with `dead=True` they are committed with the dead letter; raises as `ack` does.
        """
        self._core.log.check()
        delay_ms = None if delay is None else seconds_ms("delay", delay)
        await settlement.nack(
            self._core,
            claim,
            error,
            delay_ms=delay_ms,
            dead=dead,
            error_type=error_type,
            rule=rule,
            effects=effects,
        )

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
        """Give the claim back unused: pending at once or due in `delay` seconds, the try not counted.

        A job that is put off 1,000 times in a row is dead. `hold`: no job of its queue is claimed for so many seconds,
        by the same commit. Raises `ClaimLost`.
        """
        self._core.log.check()
        delay_ms = 0 if delay is None else seconds_ms("delay", delay)
        hold_ms = 0 if hold is None else seconds_ms("hold", hold)
        await settlement.release(self._core, claim, reason, delay_ms=delay_ms, hold_ms=hold_ms)

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """Renew the lease to `lease` seconds from now; returns the claim with its new end. Raises `ClaimLost`."""
        self._core.log.check()
        lease_ms = seconds_ms("lease", lease, least_ms=1)
        async with self._core.refusing():
            return self._core.dispatcher.extend(claim, lease_ms)

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """A step that the job has done in this try or an earlier one; None when it is yet to be done.

        For those who settle claims themselves: `job.step` does it all. Raises `ClaimLost`, `StepLost` for one whose
        value is lost, `InvalidState` when the job has done 200 steps, which is the most.
        """
        self._core.log.check()
        return await step_staging.read_step(self._core, claim, name)

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """Record that a step is done, with its value, at most 1 MiB; durable when this returns.

        Raises `ClaimLost`, and appends nothing, when the claim is not current any more, `InvalidState` for one that is
        done already.
        """
        self._core.log.check()
        await step_staging.finish_step(self._core, claim, name, value)

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """Report how far a try has come, from 0 to 1: see `JobContext.progress`. Nothing for a claim that is over."""
        fraction, text = checked_report(fraction, text)
        job = self._core.writer_state.claimed.get(claim.id)
        if job is not None and job.claim_offset == claim.offset:
            self._core.reports.report(claim, fraction, text)

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Call `callback("cancel")` when the job is to stop, `callback("lost")` when the claim was ended otherwise."""
        self._core.dispatcher.watch(claim, callback)
