"""The staging of steps: each is an event and its value, in one commit, while the claim is current."""

from msgspec.structs import replace

from ledgerq.eventlog.errors import ResultGone
from ledgerq.projections.texts import read_sealed
from ledgerq.worker.claims import Claim, ClaimName
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.settlement import check_result, until_not_full
from ledgerq.worker.outcomes import StepLost
from ledgerq.worker.steps.steps import DoneStep

__all__ = ["finish_step", "read_step"]


async def read_step(core: Core, claim: Claim | ClaimName, name: str) -> DoneStep | None:
    """The value of a step that the claimed job has done, as `Queue.read_step`."""
    async with core.refusing():
        job = decisions.current(core.writer_state.claimed.get(claim.id), claim.offset)
        found = decisions.done_step(job, name)
    if found is None:
        return None
    (sealed,) = found
    if sealed is None:
        return DoneStep(None)
    if core.writer_state.undurable(job.id):
        await core.log.committed()
    try:
        return DoneStep(await read_sealed(core.log.store, sealed, f"the value of step {name!r} of job {job.job_id}"))
    except ResultGone as error:
        raise StepLost(str(error)) from error


async def finish_step(core: Core, claim: Claim | ClaimName, name: str, value: bytes | None) -> None:
    """Record that a step is done, as `Queue.finish_step`."""
    check_result(value)
    await until_not_full(core)
    async with core.refusing():
        job = core.writer_state.claimed.get(claim.id)
        event = decisions.finish_step(job, claim.offset, name)
        if value is not None:
            event = replace(event, value=core.log.put_beside(value))
        core.writer_state.apply(job, event)
    await core.log.committed()
