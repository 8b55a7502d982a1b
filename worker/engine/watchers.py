"""The watchers of claims: who is told that a job is to stop, or that its claim is no longer current."""

import asyncio
from collections.abc import Callable

from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim, ClaimName

__all__ = ["WatchCallback", "Watchers"]

WatchCallback = Callable[[str], None]
"""Called once with "cancel" (an operator wants the job to stop) or "lost" (the claim is no longer current)."""


class Watchers:
    """The callbacks by job, each for one claim. None is called within a call of this: it may call the queue."""

    def __init__(self) -> None:
        self._by_job: dict[bytes, tuple[int, WatchCallback]] = {}

    def __len__(self) -> int:
        return len(self._by_job)

    def add(self, job: Job | None, claim: Claim, callback: WatchCallback) -> None:
        """Call `callback` when the job, which is claimed, is to stop or its claim ends; None: it has ended already."""
        loop = asyncio.get_running_loop()
        if job is None or job.claim_offset != claim.offset:
            loop.call_soon(callback, "lost")
            return
        self._by_job[claim.id] = (claim.offset, callback)
        if job.cancel_request is not None:
            loop.call_soon(callback, "cancel")

    def tell(self, id: bytes, what: str) -> None:
        """Call the watcher of a job's claim, if it has one."""
        watcher = self._by_job.pop(id, None) if what == "lost" else self._by_job.get(id)
        if watcher is not None:
            asyncio.get_running_loop().call_soon(watcher[1], what)

    def drop(self, claim: Claim | ClaimName) -> None:
        """Drop the watcher of a claim that its holder settles now."""
        watcher = self._by_job.get(claim.id)
        if watcher is not None and watcher[0] == claim.offset:
            del self._by_job[claim.id]

    def lose_all(self) -> None:
        """Call all with "lost", and drop them."""
        watchers, self._by_job = self._by_job, {}
        for _, callback in watchers.values():
            asyncio.get_running_loop().call_soon(callback, "lost")
