"""The limits and holds of a queue on another machine."""

from urllib.parse import quote

from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.projections.limits import Limits
from ledgerq.worker.engine.decisions import operator
from ledgerq.worker.limits import new_limits
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.remote import limit_messages as messages
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.remote_reads import RemoteReads

__all__ = ["RemoteLimits"]


class RemoteLimits(RemoteReads):
    """The methods of a `RemoteQueue` for limits; see `Queue`."""

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
        """Set all limits of a queue, as `Queue.limit` does."""
        new_limits(queue, max_running=max_running, rate=rate, burst=burst, actor=actor, reason=reason)
        body = messages.LimitBody(max_running=max_running, rate=rate, burst=burst, actor=actor, reason=reason)
        await self._change(queue, "limit", body)

    async def hold(self, queue: str, *, seconds: float, actor: str, reason: str) -> None:
        """Let no job of the queue be claimed for so many seconds from now."""
        seconds_ms("seconds", seconds, least_ms=1)
        await self._change(queue, "hold", messages.HoldBody(seconds=seconds, actor=actor, reason=reason))

    async def release_hold(self, queue: str, *, actor: str, reason: str) -> None:
        """Let a queue that is held go on at once."""
        await self._change(queue, "release-hold", wire.ReasonBody(actor=actor, reason=reason))

    async def _change(self, queue: str, what: str, body: wire.ReasonBody) -> None:
        self._check()
        queue_name_bytes(queue)
        operator(body.actor or "", body.reason)
        await self._transport.call("POST", f"/v1/queues/{quote(queue, safe='')}/{what}", wire.Done, body=body)

    async def limits(self) -> list[Limits]:
        """The limits of all queues that have any, and what is used of them; not why they were set."""
        self._check()
        answer, _ = await self._transport.call("GET", "/v1/limits", messages.LimitsAnswer)
        return [messages.limits_of(one) for one in answer.limits]
