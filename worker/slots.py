"""The claims that a worker holds and the slots of its handlers.

A claim waits for a slot, its handler runs in it, and its settlement is on its way: the slot is free once the handler
has returned. No handler begins while too many settlements are on their way, see settling.py.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor

from ledgerq.eventlog.clock import Timer
from ledgerq.eventlog.runtime.log_records import about, about_job, logger
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import Handler, Tracer
from ledgerq.worker.metrics.worker_metrics import WorkerMeters
from ledgerq.worker.options import to_ms
from ledgerq.worker.prefetch import Prefetch
from ledgerq.worker.running import Runner, Running, StopReason
from ledgerq.worker.settling import Settling
from ledgerq.worker.worker_queue import WorkerQueue

__all__ = ["Slots"]

_log = logger("worker")


class Slots:
    """The slots of one worker: `open` them before the first claim arrives.

    `failed` is called with what ends the worker, `interrupted` with a settled try that ends it.
    """

    def __init__(
        self,
        queue: WorkerQueue,
        handlers: Mapping[str, Handler],
        *,
        concurrency: int,
        prefetch: int | None,
        max_settling: int,
        max_settling_bytes: int,
        failed: Callable[[Exception], None],
        interrupted: Callable[[Running], None],
    ) -> None:
        self.held: dict[Claim, Running] = {}
        self.prefetch = Prefetch(concurrency=concurrency, limit=prefetch)
        self.settling = Settling(
            queue,
            queue.clock,
            limit=max_settling,
            limit_bytes=max_settling_bytes,
            settled=self._settled,
            failed=failed,
            committed=lambda took_ms: self.prefetch.committed(took_ms),
        )
        self._queue = queue
        self._handlers = handlers
        self._clock = queue.clock
        self._concurrency = concurrency
        self._failed = failed
        self._interrupted = interrupted
        self._changed: Callable[[], None]
        self._runner: Runner
        self._waiting: deque[Running] = deque()
        self._waiting_bytes = 0
        self._busy = 0
        self._outliving: dict[Running, asyncio.Task[None]] = {}
        self._is_turning = False
        self._is_closed = False
        self._late: Timer | None = None
        self._ended = asyncio.Event()

    def open(
        self,
        *,
        threads: Executor,
        executor: Executor | None,
        tracer: Tracer | None,
        meters: WorkerMeters,
        changed: Callable[[], None],
    ) -> None:
        """Make ready for claims of the queues that have handlers.

        `changed` is called once in a turn of the event loop in which handlers ended or claims arrived.
        """
        lease_ms = min(to_ms(self._queue.options(queue).lease_s) for queue in self._handlers)
        self.prefetch.begin(self._clock.now_ms(), lease_ms)
        self._runner = Runner(self._queue, self._clock, threads, self._handled, tracer, meters, executor)
        self._changed = changed

    @property
    def free(self) -> int:
        """How many slots are free beyond those that the claims in hand will take; negative when more are in hand."""
        return self._concurrency - self._busy - len(self._waiting)

    @property
    def ahead(self) -> int:
        """How many claims to hold for slots that aren't free yet."""
        waiting = len(self._waiting)
        return self.prefetch.claims(self._clock.now_ms(), self._waiting_bytes / waiting if waiting else 0.0)

    def arrive(self, claims: Sequence[Claim]) -> None:
        """Take claims in hand, and begin their handlers as slots become free."""
        now_ms = self._clock.now_ms()
        for claim in claims:
            handler = self._handlers[claim.queue]
            if handler.choose is not None:
                handler = handler.choose(claim)
            running = self.held[claim] = Running(self._runner, claim, handler, now_ms)
            self._waiting.append(running)
            self._waiting_bytes += len(claim.record.payload)
        self._begin_waiting()
        if self._waiting and self._late is None:
            self._watch_waiting()
        self._turn_soon()

    def _begin_waiting(self) -> None:
        waiting, settling = self._waiting, self.settling
        while waiting and self._busy < self._concurrency and not self._is_closed and not settling.full:
            running = self._next_waiting()
            self._busy += 1
            try:
                running.begin()
            except Exception as error:
                self._busy -= 1
                del self.held[running.claim]
                self._failed(error)

    def _next_waiting(self) -> Running:
        running = self._waiting.popleft()
        self._waiting_bytes -= len(running.claim.record.payload)
        return running

    def _handled(self, running: Running) -> None:
        """A handler has ended: its slot is free, unless its thread goes on, and its claim is settled."""
        self.prefetch.ended(self._clock.now_ms() - running.begun_ms, len(running.claim.record.payload))
        is_left = self._is_closed and running.stopped == "released"  # at the worker's end, which doesn't wait for it
        if running.keeps_slot and not is_left:
            self._outliving[running] = asyncio.create_task(self._outlive(running), name="ledgerq-outlive")
        else:
            self._busy -= 1
        self.settling.add(running)
        self._begin_waiting()
        self._turn_soon()

    async def _outlive(self, running: Running) -> None:
        try:
            await running.thread_ended()
        finally:
            del self._outliving[running]
            self._busy -= 1
            self._begin_waiting()
            self._turn_soon()
            self._ended.set()

    def _settled(self, running: Running) -> None:
        """A settlement is over."""
        del self.held[running.claim]
        if running.interrupt is not None:
            self._interrupted(running)
        if self._waiting:
            self._begin_waiting()
        self._ended.set()

    def _turn_soon(self) -> None:
        if not self._is_turning:
            self._is_turning = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turning = False
        self.settling.flush()
        self._changed()

    # ------------------------------------------------------------------ claims that wait for too long

    def _watch_waiting(self) -> None:
        due_ms = self._waiting[0].arrived_ms + self.prefetch.patience_ms
        self._late = self._clock.call_at(due_ms, self._return_late)

    def _return_late(self) -> None:
        """Give all waiting claims back if the first has waited for too long, since the others would wait longer."""
        self._late = None
        now_ms, waiting = self._clock.now_ms(), self._waiting
        # (What arrived later than now has waited for as long, by a clock that was set back.)
        if waiting and not 0 <= now_ms - waiting[0].arrived_ms < self.prefetch.patience_ms:
            self.prefetch.was_wrong(now_ms)
            _log.info(
                "gave back %d claims, for which no handler was free in time",
                len(waiting),
                extra=about("claims_returned", claims=len(waiting)),
            )
            self._settle_waiting()
            self._turn_soon()  # slots may be free though no handler runs whose end would ask for more
        if waiting:
            self._watch_waiting()

    def _settle_waiting(self) -> None:
        while self._waiting:
            self.settling.add(self._next_waiting())

    # ------------------------------------------------------------------ the end

    def stop_all(self, reason: StopReason, *, but_begun: bool = False) -> None:
        """Let no handler begin any more, and settle the claims that wait; end the handlers that run, too."""
        self._is_closed = True
        if self._late is not None:
            self._late.cancel()
        for running in self._waiting:
            running.stop(reason)
        self._settle_waiting()
        if not but_begun:
            for running in [*self.held.values()]:
                running.stop(reason)

    async def emptied(self) -> None:
        """Wait until all handlers have ended and all settlements are over."""
        while self.held or self._outliving:
            self._ended.clear()
            await self._ended.wait()

    async def abandon(self) -> None:
        """Give up what is still held now: its handlers don't end, or its settlements don't become durable."""
        tasks = [*self.settling.tasks, *self._outliving.values()]
        for running in [*self.held.values(), *(one for one in self._outliving if one.claim not in self.held)]:
            claim = running.claim
            what = "its handler doesn't end" if running.handling or running.keeps_slot else "its outcome is not durable"
            more = about_job("handler_stuck", claim.id, claim.queue, claim.attempt, claim.offset)
            _log.error("job %s (%s): %s", claim.job_id, claim.queue, what, extra=more)
            tasks += running.abandon()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.1)
