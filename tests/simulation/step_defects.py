"""Defects to plant in the steps and reports of jobs, as those of defects.py are."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.events import Claimed
from ledgerq.projections import job as jobs
from ledgerq.worker.engine import decisions, reports, step_staging
from ledgerq.worker.steps import steps

__all__ = ["STEP_DEFECTS"]

Patch = pytest.MonkeyPatch


def step_value_lost(patch: Patch) -> None:
    """The event of a step is written, and its value is not."""

    async def finish(core: Any, claim: Any, name: str, value: bytes | None) -> None:
        job = core.writer_state.claimed.get(claim.id)
        event = decisions.finish_step(job, claim.offset, name)
        assert value is not None
        sealed = core.log.put_beside(value)
        event = replace(event, value=sealed)
        core.writer_state.apply(job, event)
        del core.log.commit().payloads[keys.text_key(sealed.at)]
        await core.log.committed()

    patch.setattr(step_staging, "finish_step", finish)


def step_done_again(patch: Patch) -> None:
    """No try learns what an earlier one has done."""

    async def read_step(self: Any, claim: Any, name: str) -> None:
        return None

    real = steps.Steps._finish

    async def finish(self: Any, name: str, value: bytes | None) -> Any:
        if (done := await self._source.queue.read_step(self._claim, name)) is not None:
            return done
        return await real(self, name, value)

    patch.setattr("tests.support.queue_relay.QueueRelay.read_step", read_step)
    patch.setattr(steps.Steps, "_finish", finish)


def step_told_before_the_flush(patch: Patch) -> None:
    """`job.step` returns while its event is only staged."""

    async def finish(core: Any, claim: Any, name: str, value: bytes | None) -> None:
        job = core.writer_state.claimed.get(claim.id)
        event = decisions.finish_step(job, claim.offset, name)
        core.writer_state.apply(job, replace(event, value=core.log.put_beside(value)))

    patch.setattr(step_staging, "finish_step", finish)


def steps_forgotten_with_the_claim(patch: Patch) -> None:
    """A job's next claim knows nothing of the steps before."""
    real = jobs.evolve

    def evolve(job: Any, event: Any, offset: int, time_ms: int) -> Any:
        after = real(job, event, offset, time_ms)
        return after if type(event) is not Claimed or after is None else replace(after, steps=())

    for module in ("ledgerq.projections.fold", "ledgerq.worker.engine.writer_state"):
        patch.setattr(f"{module}.evolve", evolve)


def values_of_steps_left_at_the_sweep(patch: Patch) -> None:
    """The values of steps stay when their job is gone."""
    patch.setattr(jobs.Job, "beside", property(lambda self: self.texts))


def reports_left_behind(patch: Patch) -> None:
    """What a try has reported stays after its claim."""
    patch.setattr(reports.Reports, "ended", lambda self, before: None)


STEP_DEFECTS: Final[dict[str, Callable[[Patch], None]]] = {
    defect.__name__: defect
    for defect in (
        step_value_lost,
        step_done_again,
        step_told_before_the_flush,
        steps_forgotten_with_the_claim,
        values_of_steps_left_at_the_sweep,
        reports_left_behind,
    )
}
