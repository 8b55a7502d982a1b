"""The settlement of claims: ack, nack, release. Each raises `ClaimLost` and stages nothing for a claim that is over."""

import asyncio
from collections.abc import Sequence
from itertools import repeat
from typing import Any, Final, TypeVar

from msgspec.structs import replace

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, ResultTooLarge
from ledgerq.eventlog.events import Held, JobEvent, Nacked
from ledgerq.eventlog.side_records import MAX_RESULT_BYTES
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim, ClaimName
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.effect_staging import stage_effects
from ledgerq.worker.retry_rules import RetryRule

__all__ = [
    "ack",
    "ack_many",
    "check_result",
    "nack",
    "not_acked",
    "release",
    "stage_ack",
    "stage_nack",
    "stage_release",
    "until_not_full",
]

Claimed = TypeVar("Claimed", Claim, ClaimName)

_NAMED_CLAIMS: Final = 10
# To seal results of so many bytes holds the event loop for less than a millisecond.
_AT_ONCE_BYTES: Final = 128 * 1024


def check_result(result: bytes | None) -> None:
    """Raise `InvalidArgument` for what is no result, `ResultTooLarge` for one above the limit."""
    if result is None:
        return
    if type(result) is not bytes:
        raise InvalidArgument(f"a result is bytes, not {type(result).__name__}: encode it first")
    if len(result) > MAX_RESULT_BYTES:
        raise ResultTooLarge(
            f"the result has {len(result)} bytes, more than {MAX_RESULT_BYTES}: store it elsewhere and return a "
            "reference"
        )


async def until_not_full(core: Core) -> None:
    """Wait until the log takes more."""
    if core.log.full:
        await core.log.until_not_full()
        core.log.check()


async def ack(core: Core, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
    """Ack a claim, as `Queue.ack` does."""
    if result is not None:
        check_result(result)
        await until_not_full(core)
    if effects:

        def settle() -> bool:
            stage_ack(core, claim, result)
            return True

        await stage_effects(core, effects, job=claim.id, settle=settle)
        return
    try:
        stage_ack(core, claim, result)
    except ClaimLost:
        await core.log.committed()  # a refusal waits for what it rests on, too
        if await not_acked(core, [claim]):
            raise
    await core.log.committed()


async def not_acked(core: Core, claims: Sequence[Claimed]) -> list[Claimed]:
    """Those of these claims, of which none is current, that have not acked their jobs: the rest is repeated calls."""
    jobs = await core.writer_state.jobs([claim.id for claim in claims])
    now_ms = core.clock.now_ms()
    lost: list[Claimed] = []
    for claim, job in zip(claims, jobs, strict=True):
        try:
            # A claim can't have become current again meanwhile.
            decisions.ack(job, claim.offset, options=core.options(claim.queue), now_ms=now_ms)
        except ClaimLost:
            lost.append(claim)
    return lost


def stage_ack(core: Core, claim: Claim | ClaimName, result: bytes | None = None) -> None:
    """Stage an ack of a claim that is current."""
    writer_state = core.writer_state
    job = writer_state.claimed.get(claim.id)
    event = decisions.ack(job, claim.offset, options=core.options(claim.queue), now_ms=core.clock.now_ms())
    assert event is not None  # the job is claimed
    core.dispatcher.forget(claim)
    if result is not None:
        event = replace(event, result=core.log.put_beside(result))
    writer_state.apply(job, event)


async def ack_many(core: Core, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
    """Ack several claims in one commit, or in more where their results fill one, as `Queue.ack_many` does."""
    if results is not None:
        if len(results) != len(claims):
            raise InvalidArgument(f"ack_many got {len(results)} results for {len(claims)} claims: give one for each")
        for result in results:
            check_result(result)
    lost: list[Claim] = []
    staged_bytes = 0
    for claim, result in zip(claims, repeat(None) if results is None else results, strict=False):
        if result is not None:
            await until_not_full(core)
            staged_bytes += len(result)
            if staged_bytes > _AT_ONCE_BYTES:
                staged_bytes = len(result)
                await asyncio.sleep(0)
                core.log.check()
        try:
            stage_ack(core, claim, result)
        except ClaimLost:
            lost.append(claim)
    await core.log.committed()
    if lost:
        lost = await not_acked(core, lost)
        await core.log.committed()
    if lost:
        names = ", ".join(claim.job_id for claim in lost[:_NAMED_CLAIMS])
        words = f"{len(lost)} of {len(claims)} claims are not current any more, the others were acked: {names}"
        raise ClaimLost(words, (claim.offset for claim in lost))


async def nack(core: Core, claim: Claim, error: str, *, effects: Effects | None = None, **how: Any) -> None:
    """Nack a claim, as `Queue.nack` does; `how` as for `stage_nack`."""
    if effects:
        if not how["dead"]:
            raise InvalidArgument("the effects of a job are committed when it is done or dead: give dead=True")

        def settle() -> bool:
            # One whose cancellation was requested is cancelled; a dead one may be moved then.
            first = stage_nack(core, claim, error, **how)[0]
            return isinstance(first, Nacked) and first.to == "dead"

        await stage_effects(core, effects, job=claim.id, settle=settle)
        return
    async with core.refusing():
        stage_nack(core, claim, error, **how)
    core.dispatcher.serve()
    await core.log.committed()


def stage_nack(
    core: Core,
    claim: Claim | ClaimName,
    error: str,
    *,
    delay_ms: int | None,
    dead: bool,
    error_type: str = "",
    rule: RetryRule | None = None,
) -> Sequence[JobEvent]:
    """Stage what follows from a nack; returns that."""
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
        error_type=error_type,
        rule=rule,
    )
    _stage(core, claim, job, events)
    return events


async def release(core: Core, claim: Claim, reason: str, *, delay_ms: int = 0, hold_ms: int = 0) -> None:
    """Release a claim, as `Queue.release` does."""
    async with core.refusing():
        stage_release(core, claim, reason, delay_ms=delay_ms, hold_ms=hold_ms)
    core.dispatcher.serve()
    await core.log.committed()


def stage_release(core: Core, claim: Claim | ClaimName, reason: str, *, delay_ms: int = 0, hold_ms: int = 0) -> None:
    """Stage what follows from a release; with `hold_ms` the queue is held back for so long, in the same commit."""
    job = core.writer_state.claimed.get(claim.id)
    options, now_ms = core.options(claim.queue), core.clock.now_ms()
    events = decisions.release(job, claim.offset, options=options, now_ms=now_ms, error=reason, delay_ms=delay_ms)
    if hold_ms and job is not None:
        # First, so that no claim which waits gets the job back.
        limits = core.writer_state.limits.of(job.queue)
        until_ms = max(limits.held_until_ms, core.log.upcoming_ms() + hold_ms)
        core.writer_state.apply_limits(Held(job.queue, until_ms, job.id, "", ""))
        core.dispatcher.limiting.changed(job.queue)
    ended = _stage(core, claim, job, events)
    if isinstance(first := events[0], Nacked) and first.to == "dead":  # its worker has put it off, and doesn't know
        core.ended.record(ended, str(first.error))


def _stage(core: Core, claim: Claim | ClaimName, job: Job | None, events: Sequence[JobEvent]) -> Job | None:
    core.dispatcher.forget(claim)
    for event in events:
        job = core.writer_state.apply(job, event, claim.record)
    return job
