"""The worker: handlers for queues, run side by side within limits, and an orderly end.

It is written against the methods of `Queue` that it uses (`WorkerQueue`), so that it can run on any object that has
them.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ledgerq.eventlog.clock import sleep_until
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.runtime.log_records import about, about_job, logger
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.projections.metrics.collector import LedgerCollector
from ledgerq.worker.claiming import Claiming
from ledgerq.worker.claims import Claim
from ledgerq.worker.detached import check_function
from ledgerq.worker.execution import Handler, HandlerFunction
from ledgerq.worker.metrics.worker_metrics import WorkerMeters, WorkerSource
from ledgerq.worker.options import seconds_ms
from ledgerq.worker.running import Running
from ledgerq.worker.signals import listen
from ledgerq.worker.slots import Slots
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.tasks.task_handlers import TaskHandlers
from ledgerq.worker.tracing.provider import try_tracer
from ledgerq.worker.worker_queue import WorkerQueue

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["Worker", "WorkerQueue"]

_MAX_CONCURRENCY: Final = 10_000
_MAX_SETTLING: Final = 1_000_000
_MAX_SETTLING_BYTES: Final = 2**40
# So many renewals begin in one turn of the event loop.
_RENEWALS_AT_ONCE: Final = 100
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

    `concurrency`: handlers at a time. A slot is free when its handler has returned, and the outcome is then on its way
    to the log: no handler begins while `max_settling` outcomes, or those of jobs with `max_settling_bytes` of payload,
    are on their way. Claims are fetched ahead as far as the time of a commit and the rate at which handlers end ask
    for, and nearly none when handlers take long; `prefetch`: never more than so many (None: 5,000). `grace`: seconds
    that running handlers have after the first signal. `name`: the claimer's name in the log. `tracer_provider`:
    OpenTelemetry's, for a span around each try (None: that of the queue, if it was opened with one); `same_trace`: as a
    child of the span that enqueued the job, where by default it begins a trace of its own that links there. See
    tracing/spans.py. `tasks`: their queues are worked on, in the order of the tasks. `executor`: plain functions run in
    it, a `ProcessPoolExecutor` for those that compute, instead of in threads; see docs/guides/worker.md. It stays the
    caller's; when it breaks, the worker ends with its error.
    """

    def __init__(
        self,
        queue: WorkerQueue,
        *,
        concurrency: int = 50,
        prefetch: int | None = None,
        max_settling: int = 5000,
        max_settling_bytes: int = 32 * 1024 * 1024,
        grace: float = 30.0,
        name: str | None = None,
        tracer_provider: "TracerProvider | None" = None,
        same_trace: bool = False,
        tasks: Tasks | None = None,
        executor: Executor | None = None,
    ) -> None:
        if isinstance(queue, str):
            raise InvalidArgument(f"a worker needs an open queue, as in Worker(await Queue.open({queue!r}))")
        self.concurrency = _whole("concurrency", concurrency, 1, _MAX_CONCURRENCY)
        self.queue = queue
        self._grace_ms = seconds_ms("grace", grace)
        self._name = name
        self._tracer = try_tracer(queue, tracer_provider, worker=name, same_trace=same_trace)
        self._handlers: dict[str, Handler] = {}
        if tasks is not None and not isinstance(tasks, Tasks):
            raise InvalidArgument(f"tasks is what Tasks() makes, not {tasks!r}")
        self._tasks = tasks
        if executor is not None and not isinstance(executor, Executor):
            raise InvalidArgument(f"executor is an Executor of concurrent.futures, not {executor!r}")
        self._executor = executor
        self._meters = WorkerMeters()
        self._slots = Slots(
            queue,
            self._handlers,
            concurrency=concurrency,
            prefetch=None if prefetch is None else _whole("prefetch", prefetch, 0, _MAX_CONCURRENCY),
            max_settling=_whole("max_settling", max_settling, 1, _MAX_SETTLING),
            max_settling_bytes=_whole("max_settling_bytes", max_settling_bytes, 1, _MAX_SETTLING_BYTES),
            failed=self._failed,
            interrupted=self._interrupted,
        )
        self._stopping = asyncio.Event()
        self._aborting = asyncio.Event()
        self._failure: Exception | None = None
        self._interrupt: BaseException | None = None
        self._ran = False

    def handler(self, queue: str, *, timeout: float | None = None, keeps_result: bool = False) -> Callable[[F], F]:
        """Register the decorated function for a queue: an `async def`, or a plain `def`, which runs in a thread.

        `timeout`: seconds until the handler is cancelled and the try counts as failed. A thread can't be cancelled: it
        goes on (see `job.stop_requested`) and keeps its slot until it ends, but its result no longer counts.
        `keeps_result`: it returns bytes or None, the result with which its job is acked (see `Queue.ack`).
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
            handler = Handler.of(queue, function, timeout_ms, keeps_result)
            if isinstance(self._executor, ProcessPoolExecutor) and not handler.is_async:
                check_function(function)
            self._handlers[queue] = handler
            return function

        return register

    def collector(self) -> LedgerCollector:
        """Metrics of this worker for Prometheus, beside those of its queue: what its handlers do, and how long."""
        held = self._slots.held
        source = WorkerSource(
            self._meters,
            queues=lambda: [*self._handlers],
            running=lambda: [running.claim.queue for running in [*held.values()] if running.handling],
            held=lambda: len(held),
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
        if self._ran:
            raise InvalidArgument("a worker runs once: make a new one")
        async with self._task_handlers():
            if not self._handlers:
                if self._tasks is not None:
                    raise InvalidArgument("these Tasks have no task: import the modules that define them")
                raise InvalidArgument("the worker has no handler: register one with @worker.handler(queue)")
            self._ran = True
            await self._run(until_empty, signals)

    @asynccontextmanager
    async def _task_handlers(self) -> AsyncIterator[None]:
        """Take over the handlers of tasks, and keep their lifespan while the block runs."""
        if self._tasks is None:
            yield
            return
        of_tasks = TaskHandlers(self._tasks)
        handlers = of_tasks.of_queues()
        for queue in handlers:
            if queue in self._handlers:
                raise InvalidArgument(f"queue {queue!r} has tasks and a handler: give the tasks a queue of their own")
        async with self._tasks.lifetime() if self._tasks.lifetime is not None else nullcontext() as of_tasks.state:
            self._handlers |= handlers  # not before: where that failed the worker can be run again
            yield

    async def _run(self, until_empty: bool, signals: bool) -> None:
        restore = listen(self._signalled) if signals else None
        self.queue.on_failure.append(self._failed)
        threads = DaemonThreads("ledgerq-handler")
        claims = Claiming(self.queue, tuple(self._handlers), self._slots, self._name)
        self._slots.open(
            threads=threads,
            executor=self._executor,
            tracer=self._tracer,
            meters=self._meters,
            changed=claims.go_on,
        )
        claiming = asyncio.create_task(self._claim(claims), name="ledgerq-claim")
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
            await self._slots.abandon()
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

    # ------------------------------------------------------------------ working

    async def _claim(self, claims: Claiming) -> None:
        try:
            await claims.run()
        except Exception as error:
            self._failed(error)

    async def _renew(self) -> None:
        """Renew all leases when a third of the shortest one has passed.

        Each by itself: that a claim is lost is raised once it is durable, and no other lease may end meanwhile. Those
        whose settlements are on their way, too: `Queue` ends a lease when it takes a settlement, a queue of the user's
        own may do so later.
        """
        lease_s = min(self.queue.options(queue).lease_s for queue in self._handlers)
        clock = self.queue.clock
        renewing: dict[Claim, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            while self._failure is None:
                await sleep_until(clock, clock.now_ms() + max(1, round(lease_s * 1000 / 3)))
                renewing = {claim: task for claim, task in renewing.items() if not task.done()}
                due = [running for claim, running in self._slots.held.items() if claim not in renewing]
                for at, running in enumerate(due, start=1):
                    renewing[running.claim] = group.create_task(self._extend(running))
                    if at % _RENEWALS_AT_ONCE == 0:
                        await asyncio.sleep(0)

    async def _extend(self, running: Running) -> None:
        claim = running.claim
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
        slots, clock = self._slots, self.queue.clock
        if self._failure is None:
            slots.stop_all("released", but_begun=True)
        else:
            slots.stop_all("lost")
        waiting = asyncio.ensure_future(slots.emptied())
        over = asyncio.ensure_future(sleep_until(clock, clock.now_ms() + self._grace_ms))
        abort = asyncio.ensure_future(self._aborting.wait())
        try:
            await asyncio.wait({waiting, over, abort}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _end([waiting, over, abort])
        await self._give_back()

    async def _give_back(self) -> None:
        self._slots.stop_all("released")
        waiting = asyncio.ensure_future(self._slots.emptied())
        try:
            await asyncio.wait({waiting}, timeout=_STUBBORN_WAIT_S)
        finally:
            await _end([waiting])

    def _failed(self, error: Exception) -> None:
        """The queue's failure, as far as this worker has it: nothing can be claimed or settled any more."""
        if self._failure is None:
            self._failure = error
            self._stopping.set()
            self._aborting.set()

    def _interrupted(self, running: Running) -> None:
        """End the worker, as this try wants. Its job is settled; the others are given back first."""
        claim = running.claim
        more = about_job("worker_failed", claim.id, claim.queue, claim.attempt, claim.offset)
        words = claim.job_id, claim.queue, repr(running.interrupt)
        _log.error("the worker ends: job %s (%s) met %s", *words, extra=more)
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


def _whole(name: str, value: int, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InvalidArgument(f"{name} is a whole number from {least} to {most}, not {value!r}")
    return value
