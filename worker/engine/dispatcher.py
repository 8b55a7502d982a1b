"""The dispatcher: claims are served from the ready windows, first come first served, and what can't be served waits.

Theory of operation.

State held. `waiters` has a FIFO of waiting claim calls for each queue, `leases` when each current claim ends,
`watchers` the callbacks of claims. `_fresh` has the queues with jobs that became pending since the last `serve`,
`_impatient` the calls that wait for a refill and no longer, `_choosy` those that name several queues, `_late` the
queues that are dispatched again in the next turn of the event loop. The ready windows (the first pending jobs of each
queue, in memory) belong to the writer's state.

Invariants. Nothing is awaited between taking a job from a window and staging its claimed event, so no job is given out
twice. A call takes jobs at once only when no other call waits for that queue. A call for several queues waits in the
line of each, and takes from a later one only when no earlier one may still bring a job. A claim is returned only when
its event is durable, and its lease begins then.

Order of steps. Whenever jobs or waiters of a queue are added, they are matched until one side is empty: `job_changed`
marks the queue, `serve` (called once the caller has staged all of its events) dispatches it. A claim is staged the
moment a job and a waiter meet, so one that waited is in the same commit as the enqueued event. A window that runs low
is refilled from the store by a task of its own (refill.py), which calls `dispatch` again.

What may fail. Claims of a call that was cancelled are given back, without counting as attempts. A refill that fails
fails the calls that wait for its queue, and the next call starts another one. A job whose payload is lost becomes a
dead letter instead of blocking its queue. When the queue fails or closes, all waiting and later calls get the error,
and watchers are called with "lost".
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.projections.job import Job
from ledgerq.worker.claims import Claim, ClaimName, ClaimWaiters, Waiter
from ledgerq.worker.engine import decisions
from ledgerq.worker.engine.late_jobs import LATE_AT_ONCE, LateJobs
from ledgerq.worker.engine.leases import Lease, Leases
from ledgerq.worker.engine.limiting import Limiting
from ledgerq.worker.engine.refill import WindowRefill
from ledgerq.worker.engine.watchers import WatchCallback, Watchers
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.job_logging import EndedClaims
from ledgerq.worker.options import QueueOptions, to_ms

__all__ = ["Dispatcher", "WatchCallback"]


class Dispatcher:
    """The dispatcher of one queue object: it matches ready jobs with waiting claims and keeps the leases."""

    def __init__(
        self, writer_state: WriterState, *, clock: Clock, options_of: Callable[[str], QueueOptions], ended: EndedClaims
    ) -> None:
        self.leases = Leases()
        self.waiters = ClaimWaiters()
        self.watchers = Watchers()
        self._writer_state = writer_state
        self._clock = clock
        self._options_of = options_of
        self._fresh: dict[str, None] = {}
        self._impatient: dict[Waiter, None] = {}
        self._choosy: dict[Waiter, None] = {}
        self._ended: LedgerError | None = None
        self._ended_claims = ended
        self._late = LateJobs(writer_state, clock=clock, options_of=options_of, dispatch=self.dispatch)
        self.limiting = Limiting(writer_state, clock=clock, options_of=options_of, dispatch=self.dispatch)
        self._refill = WindowRefill(
            writer_state, dispatch=self.dispatch, broken=self._broken, failed=self._refill_failed
        )

    # ------------------------------------------------------------------ changes of jobs

    def job_changed(self, before: Job | None, after: Job | None) -> None:
        """Follow the change of a job: lease and watcher of an ended claim are dropped, a pending job will be served."""
        if before is not None and before.state == "claimed":
            if after is None or after.state != "claimed":
                self.leases.drop(before.spec.id)
                self.watchers.tell(before.spec.id, "lost")
                self.limiting.settled(before.spec.queue)
            elif after.cancel_request is not None and before.cancel_request is None:
                self.watchers.tell(before.spec.id, "cancel")
        if after is not None and after.state == "pending":
            self._fresh[after.spec.queue] = None

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Call `callback` when the claim's job is to stop, or the claim is lost; forgotten when it is settled."""
        self.watchers.add(None if self._ended else self._writer_state.claimed.get(claim.id), claim, callback)

    def forget(self, claim: Claim | ClaimName) -> None:
        """Drop the watcher of a claim that its holder settles now."""
        self.watchers.drop(claim)

    # ------------------------------------------------------------------ serving

    def serve(self) -> None:
        """Dispatch the jobs that became pending since the last call."""
        while self._fresh:
            queue, _ = self._fresh.popitem()
            if self.waiters.first(queue) is not None:
                self.dispatch(queue)

    def dispatch(self, queue: str) -> None:
        """Serve the waiters of a queue as far as its window goes; start filling it when that helps."""
        self._serve_line(queue)
        if self._choosy and self.waiters.first(queue) is not None and not self._may_bring(queue):
            # Calls that named this queue first have to take from another one now.
            asked = [waiter.queues for waiter in self._choosy if queue in waiter.queues]
            for name in dict.fromkeys(name for queues in asked for name in queues[queues.index(queue) + 1 :]):
                self._serve_line(name)

    def _serve_line(self, queue: str) -> None:
        """Serve the calls that wait for this queue, in order, and end those that don't wait for jobs that may come."""
        writer_state = self._writer_state
        if writer_state.log.failure is not None:
            return
        paused = writer_state.paused(queue)
        while not paused and (waiter := self.waiters.first(queue)) is not None:
            if self._earlier_may_bring(waiter, queue):
                break
            claims = self._take(queue, waiter.limit, waiter.lease_ms, waiter.worker, waiter.kept)
            if not claims:
                break
            self.waiters.remove(waiter)
            waiter.future.set_result(claims)
        if self.waiters.first(queue) is None:
            return
        if queue in self.limiting.refused:
            self.limiting.wake_later(queue)
        elif not paused and self._refill.needs(queue):
            self._refill.start(queue)
        for waiter in [*self._impatient]:
            if not waiter.future.done() and not any(self._may_serve(name) for name in waiter.queues):
                self.waiters.remove(waiter)
                waiter.future.set_result([])

    def _earlier_may_bring(self, waiter: Waiter, queue: str) -> bool:
        """Whether a queue that the waiter named before this one may still bring a job."""
        queues = waiter.queues
        return len(queues) > 1 and any(self._may_bring(name) for name in queues[: queues.index(queue)])

    def _may_bring(self, queue: str) -> bool:
        may = queue in self._late or self._refill.refilling(queue) or self._refill.needs(queue)
        return may and not self._is_closed(queue)

    def _may_serve(self, queue: str) -> bool:
        """Whether waiting for this queue may be worth it: jobs may come, or are kept for an earlier call."""
        return self._may_bring(queue) or (
            not self._is_closed(queue) and self._writer_state.window(queue).first() is not None
        )

    def _is_closed(self, queue: str) -> bool:
        """Whether the queue has no job to give now, whatever it holds."""
        return self._writer_state.paused(queue) or queue in self.limiting.refused

    def _take(
        self, queue: str, limit: int, lease_ms: int | None, worker: str | None, kept: bool = False
    ) -> list[Claim]:
        """Claim up to `limit` jobs of the window whose payloads are in memory."""
        if queue in self._late:
            return []
        writer_state, window = self._writer_state, self._writer_state.window(queue)
        is_limited = queue not in self.limiting.unlimited
        if is_limited:
            if window.first() is not None:
                self.limiting.record(queue)
            limit = min(limit, self.limiting.room(queue))
            is_limited = queue not in self.limiting.unlimited
        if lease_ms is None:
            lease_ms = to_ms(self._options_of(queue).lease_s)
        claims: list[Claim] = []
        late = 0
        while len(claims) < limit and late < LATE_AT_ONCE and (ready := window.take()) is not None:
            if ready.job.spec.terms is not None and self._late.cancel(ready.job):
                late += 1
                continue
            event = decisions.claim(ready.job, lease_ms=lease_ms, worker=worker, kept=kept)
            job = writer_state.apply(ready.job, event)
            assert job is not None
            assert ready.payload is not None
            spec = job.spec
            claims.append(
                Claim(
                    queue,
                    spec.id,
                    job.claim_offset,
                    job.attempt,
                    spec.max_attempts,
                    spec.priority,
                    job.enqueued_ms,
                    lease_ms,
                    0,  # see `_begin_leases`
                    ready.payload,
                    spec.terms,
                    is_limited,
                )
            )
        if is_limited and claims:
            self.limiting.room(queue)
        if claims and self._refill.needs(queue):
            self._refill.start(queue)
        if late == LATE_AT_ONCE and not claims:
            self._late.go_on_later(queue)
        return claims

    async def claim(
        self,
        queues: Sequence[str],
        *,
        limit: int,
        lease_ms: int | None,
        wait_ms: int | None,
        worker: str | None,
        kept: bool = False,
    ) -> list[Claim]:
        """Claim up to `limit` jobs of the first of `queues` that has any; durable when this returns.

        Waits at most `wait_ms` (None: without end) and returns [] when the wait is over.
        """
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        claims: list[Claim] = []
        for queue in queues:
            if self.waiters.first(queue) is None and not self._writer_state.paused(queue):
                claims = self._take(queue, limit, lease_ms, worker, kept)
                if claims or self._may_bring(queue):
                    break
        if not claims:
            claims = await self._wait(Waiter(queues, limit, lease_ms, worker, kept), wait_ms)
        try:
            if claims:
                await self._writer_state.log.committed()
        except asyncio.CancelledError:
            self.give_back(claims)
            raise
        return self._begin_leases(claims)

    def _begin_leases(self, claims: Sequence[Claim]) -> list[Claim]:
        """The claims that are current, with leases from now on: however long the store took, they had no holder before.

        (A lease that began earlier could end before its holder knew of it, and each outage would cost a try.)
        """
        now_ms, current, begun = self._clock.now_ms(), self._writer_state.claimed, []
        store = self._writer_state.log.store
        for claim in claims:
            if (job := current.get(claim.id)) and job.claim_offset == claim.offset:
                expires_ms = now_ms + claim.lease_ms
                self.leases.hold(Lease(expires_ms, claim.id, claim.offset, now_ms))
                claim.lease_expires_ms = expires_ms  # no caller has it yet
                claim.store = store
                begun.append(claim)
        return begun

    def keep_claims(self) -> None:
        """Begin full leases, from now, for the claims that outlived the last writer, whose renewals are not known."""
        now_ms = self._clock.now_ms()
        for job in self._writer_state.claimed.values():
            self.leases.hold(Lease(now_ms + job.lease_ms, job.id, job.claim_offset, now_ms))

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
                self.give_back(future.result())
            raise
        finally:
            self.waiters.remove(waiter)
            self._impatient.pop(waiter, None)
            self._choosy.pop(waiter, None)
            if timer is not None:
                timer.cancel()
            for queue in waiter.queues[1:]:
                self._serve_line(queue)  # what was kept for this call may be for the next one

    def give_back(self, claims: list[Claim]) -> None:
        """Release claims that their caller did not receive: pending again, as if they had never been claimed."""
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
        """Renew the lease to `lease_ms` from now, see `renew`."""
        expires_ms = self.renew(claim, lease_ms)
        return replace(claim, lease_ms=lease_ms, lease_expires_ms=expires_ms)

    def renew(self, claim: Claim | ClaimName, lease_ms: int) -> int:
        """Let the lease end in `lease_ms`; returns when that is. It is in memory only. May raise `ClaimLost`."""
        if self.leases.expires_ms(claim.id, claim.offset) is None:
            decisions.current(None, claim.offset)
        now_ms = self._clock.now_ms()
        expires_ms = now_ms + lease_ms
        self.leases.hold(Lease(expires_ms, claim.id, claim.offset, now_ms))
        return expires_ms

    # ------------------------------------------------------------------ failures and the end

    def _broken(self, job: Job, why: str) -> None:
        """Make a job without its payload a dead letter with that error: it can't run, and would block the queue."""
        options, now_ms = self._options_of(job.spec.queue), self._clock.now_ms()
        event = decisions.lose_payload(job, options=options, now_ms=now_ms, error=why)
        self._ended_claims.record(self._writer_state.apply(job, event), why)

    def _refill_failed(self, queue: str, error: LedgerError) -> None:
        for waiter in self.waiters.waiting(queue):
            self.waiters.remove(waiter)
            waiter.future.set_exception(error)

    def fail(self, error: LedgerError) -> None:
        """End all waiting calls with `error`, and all later ones."""
        self._ended = error
        for waiter in self.waiters.everyone():
            self.waiters.remove(waiter)
            waiter.future.set_exception(error)
        self.watchers.lose_all()

    async def close(self) -> None:
        """End the tasks that refill windows, and timers."""
        self.limiting.close()
        await self._refill.close()


def _resolve(future: asyncio.Future[list[Claim]]) -> None:
    if not future.done():
        future.set_result([])
