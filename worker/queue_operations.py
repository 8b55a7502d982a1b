"""The part of a queue for its operators."""

from ledgerq.projections.job import Job
from ledgerq.worker.engine import commands
from ledgerq.worker.queue_effects import QueueEffects

__all__ = ["QueueOperations"]


class QueueOperations(QueueEffects):
    """The methods of a `Queue` for operators; see there."""

    async def cancel(self, job_id: str, *, actor: str, reason: str) -> Job:
        """Cancel a waiting job at once; of a claimed one, ask its worker to stop (`job.cancel_request` is set then).

        Returns the job as it is now. Raises `JobNotFound`, and `InvalidState` for a finished job.
        """
        return await commands.cancel(self._core, job_id, actor=actor, reason=reason)

    async def requeue(self, job_id: str, *, actor: str, reason: str) -> Job:
        """Give a dead job a new start, with no attempts used. Raises `JobNotFound`, and `InvalidState` otherwise."""
        return await commands.requeue(self._core, job_id, actor=actor, reason=reason)

    async def pause(self, queue: str, *, actor: str, reason: str) -> None:
        """Let no jobs of this queue be claimed until `resume`; jobs can be added. Pausing twice changes nothing."""
        await commands.set_paused(self._core, queue, True, actor=actor, reason=reason)

    async def resume(self, queue: str, *, actor: str, reason: str) -> None:
        """Let jobs of this queue be claimed again."""
        await commands.set_paused(self._core, queue, False, actor=actor, reason=reason)
