"""The heartbeat of a client: which of the claims that it watches are lost, and which of their jobs are to stop.

It is asked once in a while, of whichever address answers: nothing at the service belongs to this client, so nothing
has to be made anew when another writer takes over.
"""

import asyncio
from contextlib import suppress
from typing import Final

from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.transport import Transport

__all__ = ["Heartbeat"]

_log = logger("worker")
_MAX_CLAIMS: Final = wire.MAX_HEARTBEAT_CLAIMS


class Heartbeat:
    """The claims of one client that are watched."""

    def __init__(self, transport: Transport, interval_s: float) -> None:
        self._transport = transport
        self._interval_s = interval_s
        self._watched: dict[wire.Name, WatchCallback] = {}
        self._stopped: set[wire.Name] = set()
        self._task: asyncio.Task[None] | None = None
        self._throttle = LogThrottle()

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Watch a claim from now on."""
        self._watched[claim.job_id, claim.offset] = callback
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="ledgerq-heartbeat")

    def forget(self, claim: Claim) -> None:
        """Watch a claim no more, since its holder settles it."""
        name = (claim.job_id, claim.offset)
        self._watched.pop(name, None)
        self._stopped.discard(name)

    async def close(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._interval_s)
            names = [*self._watched]
            for at in range(0, len(names), _MAX_CLAIMS):
                try:
                    await self._ask(names[at : at + _MAX_CLAIMS])
                except LedgerError as error:
                    if self._throttle.may(round(loop.time() * 1000)):
                        words = error, self._throttle.take_left_out()
                        _log.warning("a heartbeat failed: %s%s", *words, extra=about("heartbeat_failed"))

    async def _ask(self, names: list[wire.Name]) -> None:
        body = wire.HeartbeatBody(claims=names)
        answer, _ = await self._transport.call("POST", "/v1/heartbeat", wire.HeartbeatAnswer, body=body)
        for name in answer.lost:
            self._stopped.discard(name)
            if (callback := self._watched.pop(name, None)) is not None:
                _tell(callback, "lost")
        for name in answer.cancel:
            if name in self._watched and name not in self._stopped:
                self._stopped.add(name)
                _tell(self._watched[name], "cancel")


def _tell(callback: WatchCallback, what: str) -> None:
    with suppress(RuntimeError):
        asyncio.get_running_loop().call_soon(callback, what)
