"""The execution of one claimed job: its handler runs, is stopped when it must, and its claim is settled."""

import asyncio
import concurrent.futures
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, Protocol

from ledgerq.eventlog.clock import Clock, stopwatch_s
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.job_logging import Outcome, say_outcome
from ledgerq.worker.metrics.worker_metrics import WorkerMeters
from ledgerq.worker.outcomes import Dead, Retry, error_text, plain_text

__all__ = ["Handler", "JobContext", "Running", "Settler", "StopReason", "Trace", "Tracer"]

StopReason = Literal["cancel", "lost", "timeout", "released"]
_STOP_ERRORS: Final = {"cancel": "stopped: its cancellation was requested", "released": "released: the worker ended"}


class JobContext:
    """The argument of a handler: the claimed job. `stop_requested` turns True when it should end."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.stop_requested = False

    @property
    def payload(self) -> bytes:
        """The bytes as they were enqueued."""
        return self.claim.payload

    @property
    def headers(self) -> dict[str, str]:
        """The headers as they were enqueued; empty when there were none."""
        return self.claim.headers

    @property
    def id(self) -> bytes:
        """The ULID's 16 bytes, as in events."""
        return self.claim.id

    @property
    def job_id(self) -> str:
        """The ULID's text, as in `Queue`."""
        return self.claim.job_id

    @property
    def queue(self) -> str:
        """The queue's name."""
        return self.claim.queue

    @property
    def attempt(self) -> int:
        """Which try this is, from 1."""
        return self.claim.attempt

    @property
    def max_attempts(self) -> int:
        """How many tries the job has in all."""
        return self.claim.max_attempts

    @property
    def priority(self) -> int:
        """Lower comes first."""
        return self.claim.priority

    @property
    def offset(self) -> int:
        """The offset of this try's claimed event: no other try has it."""
        return self.claim.offset

    @property
    def enqueued_ms(self) -> int:
        """When the job was enqueued, in ms since the Unix epoch."""
        return self.claim.enqueued_ms

    @property
    def lease_ms(self) -> int:
        """How long the lease is, in ms; the worker renews it for as long as the handler runs."""
        return self.claim.lease_ms

    @property
    def lease_expires_ms(self) -> int:
        """When the lease ends unless it is renewed, in ms since the Unix epoch."""
        return self.claim.lease_expires_ms

    @property
    def lease_expires_at(self) -> datetime:
        """`lease_expires_ms` as a time in UTC."""
        return self.claim.lease_expires_at


HandlerFunction = Callable[[JobContext], Any] | Callable[[JobContext], Awaitable[Any]]


class Handler(NamedTuple):
    """A registered handler; `timeout_ms` None: no limit."""

    queue: str
    function: HandlerFunction
    timeout_ms: int | None
    is_async: bool

    @classmethod
    def of(cls, queue: str, function: HandlerFunction, timeout_ms: int | None) -> "Handler":
        """Make a handler of an async or plain function (or an object with such a call); refuse what would never run."""
        called = getattr(function, "__call__", None)  # noqa: B004
        yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if called is None or yields:
            raise InvalidArgument(f"a handler is a function that takes a job, and has no yield, not {function!r}")
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        return cls(queue, function, timeout_ms, is_async)


class Settler(Protocol):
    """The protocol of a queue by which a job is settled."""

    async def ack(self, claim: Claim) -> None:
        """Ack a claim, as `Queue.ack` does."""

    async def nack(self, claim: Claim, error: str, delay: float | None = None, dead: bool = False) -> None:
        """Nack a claim, as `Queue.nack` does."""

    async def release(self, claim: Claim, reason: str = "released") -> None:
        """Release a claim, as `Queue.release` does."""

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Watch a claim, as `Queue.watch` does."""


class Trace(Protocol):
    """The trace of one try; see tracing/spans.py."""

    @property
    def context(self) -> contextvars.Context:
        """The context in which the handler runs, so that its own spans are children of this try."""

    def handled(self, error: BaseException | None) -> None:
        """Record that the handler has ended."""

    def end(self, outcome: Outcome, error: BaseException | None, timed_out: bool) -> None:
        """End the trace of a try whose outcome is durable."""


class Tracer(Protocol):
    """The tracer of tries; see tracing/spans.py."""

    def begin(self, claim: Claim) -> Trace | None:
        """Begin the trace of a try, whose handler is about to run."""


class Running:
    """The execution of one claim in a worker."""

    def __init__(
        self,
        queue: Settler,
        claim: Claim,
        handler: Handler,
        *,
        clock: Clock,
        threads: concurrent.futures.Executor,
        tracer: Tracer | None = None,
        meters: WorkerMeters | None = None,
    ) -> None:
        self.claim = claim
        self.stopped: StopReason | None = None
        self.begun = False
        self.interrupt: KeyboardInterrupt | None = None
        """The exception by which the handler ends the process: its try has failed, and the worker has to end, too."""
        self._queue = queue
        self._handler = handler
        self._clock = clock
        self._threads = threads
        self._job = JobContext(claim)
        self._handling: asyncio.Future[Any] | None = None
        self._thread: concurrent.futures.Future[Any] | None = None
        self._tracer = tracer
        self._meters = meters
        self.handling = False
        self._trace: Trace | None = None

    def stop(self, reason: StopReason) -> None:
        """Make the handler end; the first reason counts."""
        if self.stopped is None:
            self.stopped = reason
            self._job.stop_requested = True
            if self._handling is not None:
                self._handling.cancel()

    async def run(self) -> None:
        """Run the handler and settle the claim. Raises the queue's errors, but for a claim that was lost."""
        self.begun = True
        self._queue.watch(self.claim, lambda what: self.stop("cancel" if what == "cancel" else "lost"))
        timer = None
        if self._handler.timeout_ms is not None:
            due_ms = self._clock.now_ms() + self._handler.timeout_ms
            timer = self._clock.call_at(due_ms, lambda: self.stop("timeout"))
        error: BaseException | None = None
        begun_s = stopwatch_s()
        self.handling = True
        try:
            await self._handle()
        except asyncio.CancelledError as cancelled:
            if self.stopped is None and self._cancelled_from_outside():
                self.stop("released")
            error = cancelled
        except BaseException as raised:
            # Anything else came from outside and ends this task: Ctrl-C in these very lines, or it is being closed.
            if not (isinstance(raised, Exception) or self._is_of_handler(raised)):
                raise
            error = raised
            if isinstance(raised, KeyboardInterrupt):
                self.interrupt = raised
        finally:
            if timer is not None:
                timer.cancel()
            if self._trace is not None:
                self._trace.handled(error)
            self.handling = False
        took_s = stopwatch_s() - begun_s
        outcome: Outcome = "unknown"
        try:
            outcome = await self._settle(error)
        except ClaimLost:
            outcome = "lost"
        finally:
            self._tell(outcome, error)
            if self._meters is not None:
                self._meters.ended(self.claim, outcome, took_s, timed_out=self.stopped == "timeout")
        if self._thread is not None and self.stopped != "released":
            await _ended(self._thread)

    def _tell(self, outcome: Outcome, error: BaseException | None) -> None:
        timed_out_s = (self._handler.timeout_ms or 0) / 1000 if self.stopped == "timeout" else None
        if self._trace is None:
            say_outcome(self.claim, outcome, error, timed_out_s)
        else:
            # There, so that the record carries the ids of the trace.
            self._trace.context.run(say_outcome, self.claim, outcome, error, timed_out_s)
            self._trace.end(outcome, error, timed_out_s is not None)

    def _is_of_handler(self, error: BaseException) -> bool:
        handling = self._handling
        ended = handling is not None and handling.done() and not handling.cancelled()
        return ended and handling is not None and handling.exception() is error

    def _cancelled_from_outside(self) -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    async def _handle(self) -> None:
        # A stop of the claim that is due by now must come before a thread begins: that can't be undone.
        await asyncio.sleep(0)
        if self.stopped is not None:
            raise asyncio.CancelledError
        if self._tracer is not None:
            self._trace = self._tracer.begin(self.claim)
        traced = None if self._trace is None else self._trace.context
        if self._handler.is_async:
            # Called in the task: one that is cancelled before it begins must not leave a coroutine that is never
            # awaited.
            handling = self._contained(lambda: self._handler.function(self._job))
            self._handling = asyncio.create_task(handling, context=traced)
        else:
            context = contextvars.copy_context() if traced is None else traced.copy()
            self._thread = self._threads.submit(context.run, self._handler.function, self._job)
            self._handling = asyncio.wrap_future(self._thread)
        result = await self._handling
        if not self._handler.is_async and inspect.isawaitable(result):
            self._handling = asyncio.create_task(self._contained(lambda: result), context=traced)
            if self.stopped is not None:
                self._handling.cancel()
            await self._handling

    async def _contained(self, begin: Callable[[], Awaitable[Any]]) -> Any:
        """Await a handler, in a task of its own, and change the three errors that no task can hand on as they are.

        SystemExit and KeyboardInterrupt would end the loop at once, and with it all that could settle this job and the
        others: the first fails the try, and no more; the second also ends the worker, see `interrupt`. GeneratorExit
        would close whichever coroutine awaits the task.
        """
        task = asyncio.current_task()
        try:
            return await begin()
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            if isinstance(error, GeneratorExit) and not _is_running(task):
                raise  # this coroutine is closed itself, since its loop is gone
            if isinstance(error, KeyboardInterrupt):
                self.interrupt = error
            raise RuntimeError(f"the handler raised {error!r}") from error

    async def _settle(self, error: BaseException | None) -> Outcome:
        queue, claim = self._queue, self.claim
        if self.stopped == "lost":
            return "lost"
        if error is None:
            await queue.ack(claim)
            return "done"
        if self.stopped == "released":
            await queue.release(claim, _STOP_ERRORS["released"])
            return "released"
        if self.stopped == "cancel":
            await queue.nack(claim, _STOP_ERRORS["cancel"])
            return "cancelled"
        if self.stopped == "timeout":
            await queue.nack(claim, f"timed out after {(self._handler.timeout_ms or 0) / 1000:g} s")
        elif isinstance(error, Dead):
            await queue.nack(claim, plain_text(error) or "dead", dead=True)
        elif isinstance(error, Retry):
            await queue.nack(claim, plain_text(error), delay=error.delay)
        else:
            await queue.nack(claim, error_text(error))
        return "dead" if isinstance(error, Dead) or claim.attempt >= claim.max_attempts else "retry"


def _is_running(task: "asyncio.Task[Any] | None") -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs
        return False


async def _ended(thread: "concurrent.futures.Future[Any]") -> None:
    """Wait for a thread that goes on after its time: its slot isn't free."""
    if thread.done() or thread.cancel():
        return
    waiting = asyncio.wrap_future(thread)
    # What it raises now counts no more, and asyncio would report an exception that was never retrieved.
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait({waiting})
