"""The settlement of claims: ack, nack, release. Each raises `ClaimLost` and stages nothing for a claim that is over."""

from collections.abc import Sequence
from typing import Final

from ledgerq.eventlog.errors import ClaimLost
from ledgerq.eventlog.events import JobEvent
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core

__all__ = ["ack", "ack_many", "nack", "release"]

_NAMED_CLAIMS: Final = 10


async def ack(core: Core, claim: Claim) -> None:
    """Ack a claim, as `Queue.ack` does."""
    try:
        _stage_ack(core, claim)
    except ClaimLost:
        await core.log.committed()  # a refusal waits for what it rests on, too
        raise
    await core.log.committed()


def _stage_ack(core: Core, claim: Claim) -> None:
    writer_state = core.writer_state
    job = writer_state.claimed.get(claim.id)
    event = decisions.ack(job, claim.offset, options=core.options(claim.queue), now_ms=core.clock.now_ms())
    core.dispatcher.forget(claim)
    writer_state.apply(job, event)


async def ack_many(core: Core, claims: Sequence[Claim]) -> None:
    """Ack several claims in one commit, as `Queue.ack_many` does."""
    lost: list[Claim] = []
    for claim in claims:
        try:
            _stage_ack(core, claim)
        except ClaimLost:
            lost.append(claim)
    await core.log.committed()
    if lost:
        names = ", ".join(claim.job_id for claim in lost[:_NAMED_CLAIMS])
        words = f"{len(lost)} of {len(claims)} claims are not current any more, the others were acked: {names}"
        raise ClaimLost(words, (claim.offset for claim in lost))


async def nack(core: Core, claim: Claim, error: str, *, delay_ms: int | None, dead: bool) -> None:
    """Nack a claim, as `Queue.nack` does."""
    async with core.refusing():
        job = core.writer_state.claimed.get(claim.id)
        events = decisions.nack(
            job,
            claim.offset,
            options=core.options(claim.queue),
            now_ms=core.clock.now_ms(),
            error=error,
            delay_ms=delay_ms,
            dead=dead,
            fraction=core.entropy.fraction(),
        )
    await _settle(core, claim, job, events)


async def release(core: Core, claim: Claim, reason: str, *, delay_ms: int = 0) -> None:
    """Release a claim, as `Queue.release` does."""
    async with core.refusing():
        job = core.writer_state.claimed.get(claim.id)
        options, now_ms = core.options(claim.queue), core.clock.now_ms()
        events = decisions.release(job, claim.offset, options=options, now_ms=now_ms, error=reason, delay_ms=delay_ms)
    await _settle(core, claim, job, events)


async def _settle(core: Core, claim: Claim, job: Job | None, events: Sequence[JobEvent]) -> None:
    core.dispatcher.forget(claim)
    for event in events:
        job = core.writer_state.apply(job, event, claim.record)
    core.dispatcher.serve()
    await core.log.committed()
