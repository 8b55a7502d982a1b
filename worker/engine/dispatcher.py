"""The dispatcher: claims are served from the ready windows, first come first served, and what can't be served waits.

Theory of operation. Each queue has a ready window (the first of its pending jobs, in memory) and a FIFO of waiting
claims. Whenever one of both grows, `dispatch` matches them until one is empty; nothing is awaited between taking a job
from the window and staging its claimed event, so no job is given out twice. A window that runs low is refilled from the
store by a task of its own (refill.py), which calls `dispatch` again. A claim over several queues waits in the line of
each, and takes from a later one only when no earlier one may still bring a job. Leases begin when the claim is durable;
claims of callers that went away meanwhile are given back.

A claim is staged the moment a job and a waiter meet, so one that waited is in the same commit as the enqueued event.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim, ClaimWaiters, Waiter
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.leases import Lease, Leases
from ledgerq.worker.engine.refill import WindowRefill
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.job_logging import EndedClaims
from ledgerq.worker.options import QueueOptions, to_ms

__all__ = ["Dispatcher", "WatchCallback"]

WatchCallback = Callable[[str], None]
"""Called once with "cancel" (somebody wants the job to stop) or "lost" (the claim is no longer current)."""


class Dispatcher:
    """Ready windows on one side, waiting claims on the other."""

    def __init__(
        self, writer_state: WriterState, *, clock: Clock, options_of: Callable[[str], QueueOptions], ended: EndedClaims
    ) -> None:
        self.leases = Leases()
        self.waiters = ClaimWaiters()
        self.watchers: dict[bytes, tuple[int, WatchCallback]] = {}
        self._writer_state = writer_state
        self._clock = clock
        self._options_of = options_of
        self._fresh: dict[str, None] = {}
        self._impatient: dict[Waiter, None] = {}
        self._choosy: dict[Waiter, None] = {}
        self._ended: LedgerError | None = None
        self._ended_claims = ended
        self._refill = WindowRefill(
            writer_state, dispatch=self.dispatch, broken=self._broken, failed=self._refill_failed
        )

    # ------------------------------------------------------------------ changes of jobs

    def job_changed(self, before: Job | None, after: Job | None) -> None:
        """A job changed: leases and watchers of a claim that ended are dropped, new pending jobs will be served."""
        if before is not None and before.state == "claimed":
            if after is None or after.state != "claimed":
                self.leases.drop(before.spec.job_id)
                self._tell(before.spec.job_id, "lost")
            elif after.cancel_request is not None:
                self._tell(before.spec.job_id, "cancel")
        if after is not None and after.state == "pending":
            self._fresh[after.spec.queue] = None

    def _tell(self, job_id: bytes, what: str) -> None:
        watcher = self.watchers.pop(job_id, None) if what == "lost" else self.watchers.get(job_id)
        if watcher is not None:
            # Not from within the staging of an event: the callback may call the queue.
            asyncio.get_running_loop().call_soon(watcher[1], what)

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Tell `callback` when the claim's job is to stop, or the claim is lost; forgotten when it is settled."""
        job = self._writer_state.claimed.get(claim.id)
        if job is None or job.claim_offset != claim.offset or self._ended is not None:
            asyncio.get_running_loop().call_soon(callback, "lost")
            return
        self.watchers[claim.id] = (claim.offset, callback)
        if job.cancel_request is not None:
            asyncio.get_running_loop().call_soon(callback, "cancel")

    def forget(self, claim: Claim) -> None:
        """Its holder settles the claim now and needs no word of it."""
        watcher = self.watchers.get(claim.id)
        if watcher is not None and watcher[0] == claim.offset:
            del self.watchers[claim.id]

    # ------------------------------------------------------------------ serving

    def serve(self) -> None:
        """Hand out what became pending since the last call."""
        while self._fresh:
            queue, _ = self._fresh.popitem()
            if self.waiters.first(queue) is not None:
                self.dispatch(queue)

    def dispatch(self, queue: str) -> None:
        """Serve the waiters of a queue as far as its window goes; start filling it when that helps."""
        self._serve_line(queue)
        if self._choosy and self.waiters.first(queue) is not None and not self._may_bring(queue):
            # Those who asked for this queue first have to take from another one now.
            asked = [waiter.queues for waiter in self._choosy if queue in waiter.queues]
            for name in dict.fromkeys(name for queues in asked for name in queues[queues.index(queue) + 1 :]):
                self._serve_line(name)

    def _serve_line(self, queue: str) -> None:
        """Serve those who wait for this queue, in order, and let those go who don't want to wait for what may come."""
        writer_state = self._writer_state
        if writer_state.log.failure is not None:
            return
        paused = writer_state.paused(queue)
        while not paused and (waiter := self.waiters.first(queue)) is not None:
            if self._earlier_may_bring(waiter, queue):
                break
            claims = self._take(queue, waiter.limit, waiter.lease_ms, waiter.worker)
            if not claims:
                break
            self.waiters.remove(waiter)
            waiter.future.set_result(claims)
        if self.waiters.first(queue) is None:
            return
        if not paused and self._refill.needs(queue):
            self._refill.start(queue)
        for waiter in [*self._impatient]:
            if not waiter.future.done() and not any(self._may_serve(name) for name in waiter.queues):
                self.waiters.remove(waiter)
                waiter.future.set_result([])

    def _earlier_may_bring(self, waiter: Waiter, queue: str) -> bool:
        """Whether a queue that the waiter asked for before this one is still being read."""
        queues = waiter.queues
        return len(queues) > 1 and any(self._may_bring(name) for name in queues[: queues.index(queue)])

    def _may_bring(self, queue: str) -> bool:
        return not self._writer_state.paused(queue) and (self._refill.refilling(queue) or self._refill.needs(queue))

    def _may_serve(self, queue: str) -> bool:
        """Whether waiting for this queue may be worth it: jobs may come, or are kept for one who came before."""
        return self._may_bring(queue) or (
            not self._writer_state.paused(queue) and self._writer_state.window(queue).first() is not None
        )

    def _take(self, queue: str, limit: int, lease_ms: int | None, worker: str | None) -> list[Claim]:
        """Claim up to `limit` jobs that are at hand."""
        writer_state, window = self._writer_state, self._writer_state.window(queue)
        if lease_ms is None:
            lease_ms = to_ms(self._options_of(queue).lease_s)
        claims: list[Claim] = []
        while len(claims) < limit and (ready := window.take()) is not None:
            job = writer_state.apply(ready.job, decisions.claim(ready.job, lease_ms=lease_ms, worker=worker))
            assert job is not None
            assert ready.payload is not None
            spec = job.spec
            claims.append(
                Claim(
                    queue,
                    spec.job_id,
                    job.claim_offset,
                    job.attempt,
                    spec.max_attempts,
                    spec.priority,
                    job.enqueued_ms,
                    lease_ms,
                    0,  # see `_begin_leases`
                    ready.payload,
                )
            )
        if claims and self._refill.needs(queue):
            self._refill.start(queue)
        return claims

    async def claim(
        self, queues: Sequence[str], *, limit: int, lease_ms: int | None, wait_ms: int | None, worker: str | None
    ) -> list[Claim]:
        """Up to `limit` claims from the first of `queues` that has any; durable when this returns.

        Waits at most `wait_ms` (None: without end) and returns [] when the wait is over.
        """
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        claims: list[Claim] = []
        for queue in queues:
            if self.waiters.first(queue) is None and not self._writer_state.paused(queue):
                claims = self._take(queue, limit, lease_ms, worker)
                if claims or self._may_bring(queue):
                    break
        if not claims:
            claims = await self._wait(Waiter(queues, limit, lease_ms, worker), wait_ms)
        try:
            if claims:
                await self._writer_state.log.committed()
        except asyncio.CancelledError:
            self._give_back(claims)
            raise
        return self._begin_leases(claims)

    def _begin_leases(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims that are current, with leases from now on: however long the store took, nobody held them before.

        (A lease that began earlier could end before its holder knew of it, and each outage would cost a try.)
        """
        now_ms, current, begun = self._clock.now_ms(), self._writer_state.claimed, []
        for claim in claims:
            if (job := current.get(claim.id)) and job.claim_offset == claim.offset:
                expires_ms = now_ms + claim.lease_ms
                self.leases.hold(Lease(expires_ms, claim.id, claim.offset, now_ms))
                claim.lease_expires_ms = expires_ms  # nobody else has it yet
                begun.append(claim)
        return begun

    async def _wait(self, waiter: Waiter, wait_ms: int | None) -> list[Claim]:
        if wait_ms == 0:
            self._impatient[waiter] = None
        if len(waiter.queues) > 1:
            self._choosy[waiter] = None
        self.waiters.add(waiter)
        timer = None
        if wait_ms:
            timer = self._clock.call_at(self._clock.now_ms() + wait_ms, lambda: _resolve(waiter.future))
        try:
            for queue in waiter.queues:
                if not waiter.future.done():
                    self._serve_line(queue)
            return await waiter.future
        except asyncio.CancelledError:
            future = waiter.future
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(future.result())
            raise
        finally:
            self.waiters.remove(waiter)
            self._impatient.pop(waiter, None)
            self._choosy.pop(waiter, None)
            if timer is not None:
                timer.cancel()
            for queue in waiter.queues[1:]:
                self._serve_line(queue)  # what was kept for this one may be for the next one in line

    def _give_back(self, claims: list[Claim]) -> None:
        """Nobody received these: pending again, as if they had never been handed out."""
        if self._writer_state.log.failure is not None or self._ended is not None:
            return
        for claim in claims:
            job = self._writer_state.claimed.get(claim.id)
            if job is None or job.claim_offset != claim.offset:
                continue
            options, now_ms = self._options_of(claim.queue), self._clock.now_ms()
            before: Job | None = job
            for event in decisions.release(
                job, claim.offset, options=options, now_ms=now_ms, error="the claim was cancelled"
            ):
                before = self._writer_state.apply(before, event, claim.record)
        self.serve()

    def extend(self, claim: Claim, lease_ms: int) -> Claim:
        """Renew the lease to `lease_ms` from now. Memory only: a renewal is no transition. Raises `ClaimLost`."""
        if self.leases.expires_ms(claim.id, claim.offset) is None:
            decisions.current(None, claim.offset)
        now_ms = self._clock.now_ms()
        expires_ms = now_ms + lease_ms
        self.leases.hold(Lease(expires_ms, claim.id, claim.offset, now_ms))
        return replace(claim, lease_ms=lease_ms, lease_expires_ms=expires_ms)

    # ------------------------------------------------------------------ trouble and the end

    def _broken(self, job: Job, why: str) -> None:
        """A job without its payload can't run: it becomes a dead letter that says so, instead of blocking the queue."""
        options, now_ms = self._options_of(job.spec.queue), self._clock.now_ms()
        event = decisions.lose_payload(job, options=options, now_ms=now_ms, error=why)
        self._ended_claims.note(self._writer_state.apply(job, event), why)

    def _refill_failed(self, queue: str, error: LedgerError) -> None:
        for waiter in self.waiters.waiting(queue):
            self.waiters.remove(waiter)
            waiter.future.set_exception(error)

    def fail(self, error: LedgerError) -> None:
        """Nothing will be handed out any more: not to those who wait, and not to those who come later."""
        self._ended = error
        for waiter in self.waiters.everyone():
            self.waiters.remove(waiter)
            waiter.future.set_exception(error)
        watchers, self.watchers = self.watchers, {}
        for _, callback in watchers.values():
            asyncio.get_running_loop().call_soon(callback, "lost")

    async def close(self) -> None:
        """End the tasks that fill windows."""
        await self._refill.close()


def _resolve(future: asyncio.Future[list[Claim]]) -> None:
    if not future.done():
        future.set_result([])
