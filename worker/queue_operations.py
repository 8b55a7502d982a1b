"""The part of a queue for its operators."""

from ledgerq.projections.job import Job
from ledgerq.projections.limits import Limits
from ledgerq.worker.engine import commands, limit_commands
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

    async def limit(
        self,
        queue: str,
        *,
        max_running: int | None = None,
        rate: str | None = None,
        burst: int | None = None,
        actor: str,
        reason: str,
    ) -> None:
        """Set all limits of the queue's claims, which go before those of the program's options from here on.

        `max_running`: so many of its jobs may be claimed at a time; `rate`: "600/min", "10/s", "100/10s", of which
        `burst` may come at once (None: what comes in 50 ms). With none of them those of the options are in force again.
        """
        await limit_commands.set_limits(
            self._core, queue, max_running=max_running, rate=rate, burst=burst, actor=actor, reason=reason
        )

    async def hold(self, queue: str, *, seconds: float, actor: str, reason: str) -> None:
        """Let no job of the queue be claimed for so many seconds from now, also if it was held for longer before."""
        await limit_commands.hold(self._core, queue, seconds=seconds, actor=actor, reason=reason)

    async def release_hold(self, queue: str, *, actor: str, reason: str) -> None:
        """Let a queue that is held go on at once. One that is not held stays as it is."""
        await limit_commands.release_hold(self._core, queue, actor=actor, reason=reason)

    async def limits(self) -> list[Limits]:
        """The limits of all queues that have any, and what is used of them."""
        return await self._core.durably(self._core.view.limits())
