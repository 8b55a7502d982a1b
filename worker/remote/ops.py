"""The calls of remote clients at a queue: many at a time, each with its own result, durable together.

Their look-ups are made together, and all of them wait for one commit. Claims are named by job and offset, and are kept:
they outlive this writer.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, LedgerError
from ledgerq.eventlog.runtime.redaction import redact_urls
from ledgerq.worker.claims import Claim, ClaimName
from ledgerq.worker.engine import settlement
from ledgerq.worker.engine.new_job import Prepared, prepare
from ledgerq.worker.options import NewJob, seconds_ms
from ledgerq.worker.queue import Queue
from ledgerq.worker.remote.wire import (
    AckOp,
    EnqueueOp,
    ErrorBody,
    ExtendOp,
    HeartbeatAnswer,
    NackOp,
    Name,
    NewJobBody,
    Op,
    OpResult,
    ReleaseOp,
)
from ledgerq.worker.retry_rules import RetryRule

__all__ = ["Ops", "error_body", "new_job"]

# So many, with so many bytes to be sealed, are prepared and staged in one turn of the event loop.
_AT_ONCE: Final = 50
_AT_ONCE_BYTES: Final = 128 * 1024

Allow = Callable[[str, str], None]
"""Raises when the caller lacks this scope, or for this queue; see worker/service/tokens.py."""


def error_body(error: LedgerError) -> ErrorBody:
    """An error as clients get it, without credentials that a URL in it may have."""
    return ErrorBody(error=type(error).__name__, message=redact_urls(str(error)), permanent=error.permanent)


def new_job(body: NewJobBody) -> dict[str, Any]:
    """The arguments of `Queue.enqueue` for a job, payload included, without the queue."""
    if body.unique_key is not None and body.unique_key_bytes is not None:
        raise InvalidArgument("give unique_key or unique_key_bytes, not both")
    return {
        "payload": body.payload,
        "priority": body.priority,
        "delay": body.delay,
        "run_at": body.run_at,
        "expires": body.expires,
        "deadline": body.deadline,
        "max_attempts": body.max_attempts,
        "unique_key": body.unique_key if body.unique_key_bytes is None else body.unique_key_bytes,
        "unique_until": body.unique_until,
        "unique_for": body.unique_for,
        "on_conflict": body.on_conflict,
        "debounce": body.debounce,
        "debounce_max": body.debounce_max,
        "headers": body.headers,
        "job_id": body.id,
        "task": body.task,
    }


def new_jobs(bodies: Sequence[NewJobBody]) -> list[NewJob]:
    """The jobs of one `enqueue_many`."""
    return [NewJob(**new_job(body)) for body in bodies]


class Ops:
    """The calls of remote clients at one queue object."""

    def __init__(self, queue: Queue) -> None:
        self._core = queue._core

    @property
    def epoch(self) -> int:
        """The epoch of this writer: higher than that of all before."""
        return self._core.log.epoch

    def queue_of(self, name: Name) -> ClaimName:
        """The claim of this name; the queue of one whose job is not claimed is empty."""
        id = job_id_bytes(name[0])
        job = self._core.writer_state.claimed.get(id)
        return ClaimName("" if job is None else job.queue, id, name[1])

    async def run(self, ops: Sequence[Op], allow: Allow) -> list[OpResult]:
        """Run these calls; a settlement of one claim may stand before an enqueue, and they are staged in that order.

        Raises what ends the queue; what concerns one call is its result.
        """
        core = self._core
        core.log.check()
        await settlement.until_not_full(core)
        results = [OpResult() for _ in ops]
        acks: list[tuple[int, ClaimName]] = []
        jobs: list[tuple[int, Prepared]] = []
        size_bytes = 0
        for at, op in enumerate(ops):
            size_bytes += _size_of(op)
            if at and (at % _AT_ONCE == 0 or size_bytes > _AT_ONCE_BYTES):
                size_bytes = _size_of(op)
                await asyncio.sleep(0)
                core.log.check()
            try:
                if isinstance(op, EnqueueOp):
                    jobs.append((at, self._prepared(op, allow)))
                else:
                    claim = self.queue_of(op.claim)
                    allow("work", claim.queue)
                    try:
                        results[at] = await self._settle(op, claim)
                    except ClaimLost as error:
                        results[at] = OpResult(error=error_body(error))
                        if isinstance(op, AckOp):
                            acks.append((at, claim))
            except LedgerError as error:
                core.log.check()
                results[at] = OpResult(error=error_body(error))
        if jobs:
            added = await core.admission.stage_each([prepared for _, prepared in jobs])
            for (at, _), one in zip(jobs, added, strict=True):
                if isinstance(one, LedgerError):
                    results[at] = OpResult(error=error_body(one))
                else:
                    results[at] = OpResult(id=one.job_id, created=one.created, replaced=one.replaced)
        core.dispatcher.serve()
        if acks:
            lost = set(await settlement.not_acked(core, [claim for _, claim in acks]))
            for at, claim in acks:
                if claim not in lost:
                    results[at] = OpResult()
        await core.log.committed()
        return results

    def _prepared(self, op: EnqueueOp, allow: Allow) -> Prepared:
        core = self._core
        core.check_name(op.queue)
        allow("enqueue", op.queue)
        return prepare(
            op.queue,
            options=core.options(op.queue),
            now_ms=core.clock.now_ms(),
            entropy=core.entropy,
            secret=core.log.secret,
            **new_job(op),
        )

    async def _settle(self, op: AckOp | NackOp | ReleaseOp | ExtendOp, claim: ClaimName) -> OpResult:
        core = self._core
        match op:
            case AckOp():
                if op.result is not None:
                    settlement.check_result(op.result)
                    await settlement.until_not_full(core)
                settlement.stage_ack(core, claim, op.result)
            case NackOp():
                delay_ms = None if op.delay is None else seconds_ms("delay", op.delay)
                rule = None if op.rule is None else _rule(op.rule.attempts, op.rule.base, op.rule.cap, op.rule.dead)
                settlement.stage_nack(
                    core, claim, op.error, delay_ms=delay_ms, dead=op.dead, error_type=op.error_type, rule=rule
                )
            case ReleaseOp():
                delay_ms = 0 if op.delay is None else seconds_ms("delay", op.delay)
                hold_ms = 0 if op.hold is None else seconds_ms("hold", op.hold)
                settlement.stage_release(core, claim, op.reason, delay_ms=delay_ms, hold_ms=hold_ms)
            case ExtendOp():
                lease_ms = seconds_ms("lease", op.lease, least_ms=1)
                return OpResult(lease_expires_ms=core.dispatcher.renew(claim, lease_ms))
        return OpResult()

    async def heartbeat(self, names: Sequence[Name], lease: float | None, allow: Allow) -> HeartbeatAnswer:
        """Renew those of these claims that are current, if asked; which are not, and the jobs of which are to stop."""
        core = self._core
        core.log.check()
        lease_ms = None if lease is None else seconds_ms("lease", lease, least_ms=1)
        lost: list[Name] = []
        cancel: list[Name] = []
        for at, name in enumerate(names):
            if at and at % (10 * _AT_ONCE) == 0:
                await asyncio.sleep(0)
                core.log.check()
            claim = self.queue_of(name)
            allow("work", claim.queue)
            job = core.writer_state.claimed.get(claim.id)
            if job is None or job.claim_offset != claim.offset:
                lost.append(name)
                continue
            if lease_ms is not None:
                core.dispatcher.renew(claim, lease_ms)
            if job.cancel_request is not None:
                cancel.append(name)
        if lost or cancel:
            await core.log.committed()
        return HeartbeatAnswer(lost=lost, cancel=cancel)

    def give_back(self, claims: list[Claim]) -> None:
        """Give back claims that their client is not there to receive: as if they had never been claimed."""
        self._core.dispatcher.give_back(claims)

    async def stored_job_queue(self, job_id: str) -> str:
        """The queue of a job that is not swept; raises `JobNotFound`."""
        return (await self._core.writer_state.require(job_id_bytes(job_id), job_id)).queue


def _size_of(op: Op) -> int:
    """The bytes that are sealed for a call."""
    return len(op.payload) if isinstance(op, EnqueueOp) else len(op.result or b"") if isinstance(op, AckOp) else 0


def claim_id(claim: Claim) -> Name:
    """The name of a claim."""
    return job_id_text(claim.id), claim.offset


def _rule(attempts: int | None, base: float | None, cap: float | None, dead: bool) -> RetryRule:
    """A retry rule of a client, checked: the exceptions that it is for stay there."""
    if attempts is not None and not 1 <= attempts <= 1_000_000:
        raise InvalidArgument(f"attempts is a whole number from 1 on, not {attempts!r}")
    for name, seconds in (("base", base), ("cap", cap)):
        if seconds is not None:
            seconds_ms(name, seconds)
    return RetryRule((), attempts, base, cap, dead)
