"""The worker: handlers for queues, run side by side within limits, and an orderly end.

It is written against the methods of `Queue` that it uses (`WorkerQueue`), so that it can run on any object that has
them.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiostream import stream

from ledgerq.eventlog.clock import sleep_until
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, LedgerError
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, about_job, logger
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.projections.metrics.collector import LedgerCollector
from ledgerq.worker.claim_stream import claim_batches
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import Handler, HandlerFunction, Running, StopReason
from ledgerq.worker.metrics.worker_metrics import WorkerMeters, WorkerSource
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.signals import listen
from ledgerq.worker.tracing.provider import try_tracer
from ledgerq.worker.worker_queue import WorkerQueue

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Worker", "WorkerQueue"]

_CLAIM_AGAIN_MS: Final = 1000
_MAX_CONCURRENCY: Final = 10_000
_MAX_BATCH: Final = 1000
# A handler that ignores its cancellation must not keep the process alive.
_STUBBORN_WAIT_S: Final = 5.0

_log = logger("worker")

F = TypeVar("F", bound=HandlerFunction)


class Worker:
    """A worker: it runs handlers for the jobs of one queue object.

        worker = Worker(queue, concurrency=50)

        @worker.handler("mail", timeout=60)
        async def send(job): ...

        await worker.run()

    `concurrency`: handlers at a time. `prefetch`: claims held beyond that, so that a slot never waits for a commit
    (None: a quarter of the concurrency). `grace`: seconds that running handlers have after the first signal. `name`:
    the claimer's name in the log. `tracer_provider`: OpenTelemetry's, for a span around each try (None: that of the
    queue, if it was opened with one); `same_trace`: as a child of the span that enqueued the job, where by default it
    begins a trace of its own that links there. See tracing/spans.py.
    """

    def __init__(
        self,
        queue: WorkerQueue,
        *,
        concurrency: int = 50,
        prefetch: int | None = None,
        grace: float = 30.0,
        name: str | None = None,
        tracer_provider: "TracerProvider | None" = None,
        same_trace: bool = False,
    ) -> None:
        if type(concurrency) is not int or not 1 <= concurrency <= _MAX_CONCURRENCY:
            raise InvalidArgument(f"concurrency is a whole number from 1 to {_MAX_CONCURRENCY}, not {concurrency!r}")
        if prefetch is not None and (type(prefetch) is not int or not 0 <= prefetch <= _MAX_CONCURRENCY):
            raise InvalidArgument(f"prefetch is a whole number from 0 to {_MAX_CONCURRENCY}, not {prefetch!r}")
        self.queue = queue
        self.concurrency = concurrency
        self._capacity = concurrency + (concurrency // 4 if prefetch is None else prefetch)
        self._grace_ms = seconds_ms("grace", grace)
        self._name = name
        self._tracer = try_tracer(queue, tracer_provider, worker=name, same_trace=same_trace)
        self._handlers: dict[str, Handler] = {}
        self._held: dict[Claim, tuple[Running, asyncio.Task[None]]] = {}
        self._meters = WorkerMeters()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._aborting = asyncio.Event()
        self._failure: Exception | None = None
        self._interrupt: KeyboardInterrupt | None = None
        self._ran = False

    def handler(self, queue: str, *, timeout: float | None = None) -> Callable[[F], F]:
        """Register the decorated function for a queue: an `async def`, or a plain `def`, which runs in a thread.

        `timeout`: seconds until the handler is cancelled and the try counts as failed. A thread can't be cancelled: it
        goes on (see `job.stop_requested`) and keeps its slot until it ends, but its result no longer counts.
        """
        queue_name_bytes(queue)
        timeout_ms = None if timeout is None else seconds_ms("timeout", timeout)

        def register(function: F) -> F:
            if self._ran:
                raise InvalidArgument(
                    f"the worker takes no handler for queue {queue!r} any more: register before it runs"
                )
            if queue in self._handlers:
                raise InvalidArgument(f"queue {queue!r} has a handler already: {self._handlers[queue].function!r}")
            self._handlers[queue] = Handler.of(queue, function, timeout_ms)
            return function

        return register

    def collector(self) -> LedgerCollector:
        """Metrics of this worker for Prometheus, beside those of its queue: what its handlers do, and how long."""
        source = WorkerSource(
            self._meters,
            queues=lambda: [*self._handlers],
            running=lambda: [running.claim.queue for running, _ in [*self._held.values()] if running.handling],
            held=lambda: len(self._held),
            limit=self.concurrency,
        )
        return LedgerCollector(source)

    def stop(self) -> None:
        """Claim nothing more, let running handlers end within the grace time, then give their jobs back."""
        self._stopping.set()

    async def run(self, *, until_empty: bool = False, signals: bool = True) -> None:
        """Work until SIGTERM, SIGINT or `stop`; with `until_empty`, until its queues hold no unfinished job.

        The first signal is like `stop`, a second one ends at once. `signals=False` leaves signals alone (they are left
        alone outside the main thread anyway). Raises what ended the queue, `Fenced` for instance. A handler's errors
        fail its own try, whatever they are, `sys.exit` too; only KeyboardInterrupt also ends the worker at once, and is
        raised again when its job and all others are settled or given back.
        """
        running_loop()
        if not self._handlers:
            raise InvalidArgument("the worker has no handler: register one with @worker.handler(queue)")
        if self._ran:
            raise InvalidArgument("a worker runs once: make a new one")
        self._ran = True
        restore = listen(self._signalled) if signals else None
        self.queue.on_failure.append(self._failed)
        threads = DaemonThreads("ledgerq-handler")
        slots = asyncio.Semaphore(self.concurrency)
        claiming = asyncio.create_task(self._claim(slots, threads), name="ledgerq-claim")
        helpers = [claiming, asyncio.create_task(self._renew(), name="ledgerq-renew")]
        if until_empty:
            helpers.append(asyncio.create_task(self._until_drained(), name="ledgerq-drained"))
        try:
            await self._stopping.wait()
            await _end([claiming])
            await self._wind_down()
        except asyncio.CancelledError:
            await _end([claiming])
            await self._give_back()
            raise
        finally:
            await self._abandon()
            await _end(helpers)
            self.queue.on_failure.remove(self._failed)
            threads.shutdown()
            if restore is not None:
                restore()
        if self._failure is not None:
            _log.error("the worker ends: %s", self._failure, extra=about("worker_failed"))
            raise self._failure
        if self._interrupt is not None:
            raise self._interrupt

    # ------------------------------------------------------------------ claiming and handling

    async def _claim(self, slots: asyncio.Semaphore, threads: Executor) -> None:
        queues, clock, throttle = tuple(self._handlers), self.queue.clock, LogThrottle()
        while True:
            batches = claim_batches(self.queue, queues, capacity=self._free_slots, wait=None, worker=self._name)
            try:
                async with stream.iterate(batches).stream() as arriving:
                    async for batch in arriving:
                        for claim in batch:
                            handler = self._handlers[claim.queue]
                            running = Running(
                                self.queue,
                                claim,
                                handler,
                                clock=clock,
                                threads=threads,
                                tracer=self._tracer,
                                meters=self._meters,
                            )
                            task = asyncio.create_task(self._run_job(running, slots), name=f"ledgerq-{claim.queue}")
                            self._held[claim] = (running, task)
            except LedgerError as error:
                if error.permanent or self._failure is not None:
                    return self._failed(error)
                # The queue itself goes on; if it doesn't, `on_failure` is called before the next try.
                if throttle.may(clock.now_ms()):
                    words = _CLAIM_AGAIN_MS / 1000, error, throttle.take_left_out()
                    _log.warning("claiming failed, trying again in %g s: %s%s", *words, extra=about("claiming_failed"))
            except Exception as error:
                return self._failed(error)
            await sleep_until(clock, clock.now_ms() + _CLAIM_AGAIN_MS)

    async def _free_slots(self) -> int:
        """The number of further claims that may be held; waits until it is above 0."""
        while len(self._held) >= self._capacity:
            self._changed.clear()
            await self._changed.wait()
        return min(self._capacity - len(self._held), _MAX_BATCH)

    async def _run_job(self, running: Running, slots: asyncio.Semaphore) -> None:
        try:
            try:
                await slots.acquire()
            except asyncio.CancelledError:
                running.stop("released")
                await running.run()  # no handler runs, the claim is given back
            else:
                try:
                    await running.run()
                    if running.interrupt is not None:
                        self._interrupted(running)
                finally:
                    slots.release()
        except Exception as error:
            self._failed(error)
        finally:
            del self._held[running.claim]
            self._changed.set()

    async def _renew(self) -> None:
        """Renew all leases when a third of the shortest one has passed.

        Each by itself: that a claim is lost is raised once it is durable, and no other lease may end meanwhile.
        """
        lease_s = min(self.queue.options(queue).lease_s for queue in self._handlers)
        clock = self.queue.clock
        renewing: dict[Claim, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while self._failure is None:
                await sleep_until(clock, clock.now_ms() + max(1, round(lease_s * 1000 / 3)))
                renewing = {claim: task for claim, task in renewing.items() if not task.done()}
                for claim, (running, _) in self._held.items():
                    if claim not in renewing:
                        renewing[claim] = group.create_task(self._extend(claim, running))

    async def _extend(self, claim: Claim, running: Running) -> None:
        try:
            await self.queue.extend(claim, self.queue.options(claim.queue).lease_s)
            self._meters.renewals += 1
        except ClaimLost:
            running.stop("lost")
        except Exception as error:
            self._failed(error)

    async def _until_drained(self) -> None:
        try:
            await self.queue.drained(tuple(self._handlers))
        except Exception as error:
            self._failed(error)
        self.stop()

    # ------------------------------------------------------------------ the end

    async def _wind_down(self) -> None:
        """Let handlers that run end within the grace time, then give back what is left."""
        if self._failure is None:
            self._stop_all("released", but_begun=True)
        else:
            self._stop_all("lost")
        clock = self.queue.clock
        waiting = asyncio.ensure_future(self._wait_for_held())
        over = asyncio.ensure_future(sleep_until(clock, clock.now_ms() + self._grace_ms))
        abort = asyncio.ensure_future(self._aborting.wait())
        try:
            await asyncio.wait({waiting, over, abort}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end([waiting, over, abort])
        if self._held:
            await self._give_back()

    async def _give_back(self) -> None:
        self._stop_all("released")
        waiting = asyncio.ensure_future(self._wait_for_held())
        try:
            await asyncio.wait({waiting}, timeout=_STUBBORN_WAIT_S)
        finally:
            await _end([waiting])

    async def _abandon(self) -> None:
        """Give up what is still held now: its handlers don't end."""
        for running, task in self._held.values():
            claim = running.claim
            more = about_job("handler_stuck", claim.id, claim.queue, claim.attempt, claim.offset)
            _log.error("job %s (%s): its handler doesn't end", claim.job_id, claim.queue, extra=more)
            task.cancel()
        if self._held:
            await asyncio.wait({task for _, task in self._held.values()}, timeout=0.1)

    async def _wait_for_held(self) -> None:
        while self._held:
            self._changed.clear()
            await self._changed.wait()

    def _stop_all(self, reason: StopReason, *, but_begun: bool = False) -> None:
        for running, task in self._held.values():
            if not running.begun:
                running.stop(reason)
                task.cancel()  # it waits for a slot
            elif not but_begun:
                running.stop(reason)

    def _failed(self, error: Exception) -> None:
        """The queue's failure, as far as this worker has it: nothing can be claimed or settled any more."""
        if self._failure is None:
            self._failure = error
            self._stopping.set()
            self._aborting.set()

    def _interrupted(self, running: Running) -> None:
        """End the worker, since a handler ends the process. Its job is settled; the others are given back first."""
        claim = running.claim
        more = about_job("worker_failed", claim.id, claim.queue, claim.attempt, claim.offset)
        words = claim.job_id, claim.queue
        _log.error("the worker ends: the handler of job %s (%s) raised KeyboardInterrupt", *words, extra=more)
        self._interrupt = running.interrupt
        self._stopping.set()
        self._aborting.set()

    def _signalled(self) -> None:
        if self._stopping.is_set():
            self._aborting.set()
        self._stopping.set()


async def _end(tasks: Sequence["asyncio.Future[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
