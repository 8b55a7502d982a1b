"""Handlers, the jobs that they get, and the protocols of what their execution (running.py) needs."""

import contextvars
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.runtime.event_loop import loop_or_none
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects, StagedValues
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.engine.reports import checked_report
from ledgerq.worker.job_logging import JobLogger, Outcome
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.steps.steps import Steps, StepSource

if TYPE_CHECKING:
    from ledgerq.worker.tasks.handle import Handle
    from ledgerq.worker.tasks.task import Task

__all__ = ["Handler", "JobContext", "Settler", "Trace", "Tracer"]


P = ParamSpec("P")
R = TypeVar("R")


class InThread(Protocol):
    """The way of a plain function into a thread, or of `detached`, which is the same, into the worker's executor."""

    def __call__(
        self, function: Callable[[], Any], detached: Callable[[Any], Any] | None = None
    ) -> Coroutine[Any, Any, Any]: ...


class JobQueue(StepSource, Protocol):
    """The part of a queue by which a job has effects and steps, and reports its progress."""

    def effects(self) -> Effects:
        """New effects, as `Queue.effects`."""

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """Report how far a try has come, as `Queue.report`."""


class JobContext:
    """The argument of a handler: the claimed job. `stop_requested` turns True when it should end.

    `state` is what the lifespan of the worker's tasks yielded, None without one.
    """

    def __init__(self, claim: Claim, in_thread: InThread | None = None, queue: JobQueue | None = None) -> None:
        self.claim = claim
        self.stop_requested = False
        self.state: Any = None
        self.staged: Effects | None = None
        """The effects of this try, if it has any."""
        self.is_over = False
        self._in_thread = in_thread
        self._queue = queue
        self._loop = loop_or_none()
        self._done_steps: Steps | None = None

    def close(self) -> None:
        """End the try: nothing is added to its effects, and none of its steps begins any more."""
        self.is_over = True
        if self.staged is not None:
            self.staged.close("the try is over")
        if self._done_steps is not None:
            self._done_steps.close()

    def in_thread(self, function: Callable[[], Any], detached: Callable[[Any], Any] | None = None) -> Awaitable[Any]:
        """Run the part of the try that is a plain function in a thread of the worker's; one at a time.

        `detached`: the same for the worker's executor, if it has one, see detached.py.
        """
        assert self._in_thread is not None
        return self._in_thread(function, detached)

    def _effects(self) -> Effects:
        if (effects := self.staged) is None:
            if self.is_over:
                raise InvalidState("the try is over: nothing can be added to its effects")
            if self._queue is None:
                raise InvalidState("this job has no queue, so it can have no effects")
            effects = self.staged = self._queue.effects()
        return effects

    def _steps(self) -> Steps:
        if (steps := self._done_steps) is None:
            if self.is_over:
                raise InvalidState("the try is over: no step of it can begin")
            if self._queue is None or self._in_thread is None or self._loop is None:
                raise InvalidState("this job has no queue, so it can have no steps")
            steps = self._done_steps = Steps(self._queue, self.claim, self._in_thread, self._loop)
        return steps

    @overload
    async def step(
        self, name: str, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @overload
    async def step(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function whose work is not to be done again: once it has returned, no later try calls it.

        What it returned, as JSON, is durable when this returns, and a later try gets it instead of a call. A try that
        ends before that has a later one call it again. `name`: one of its own for each step of the job, of at most 200.
        A plain function runs in a thread. What the function's annotation names has to come back from its JSON.

        Raises what the function raises, `ClaimLost`, `ResultDoesntFit`, `StepLost` for a value that is lost.
        """
        return await self._steps().run(name, partial(function, *args, **kwargs), function)

    def step_sync(self, name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for a plain handler, which runs in a thread: the function is called there."""
        value: R = self._steps().run_sync(name, partial(function, *args, **kwargs), function)
        return value

    def progress(self, fraction: float, text: str = "") -> None:
        """Report how far this try has come: a number from 0 to 1, and a text, as in `job.progress(0.4, "12 of 30")`.

        Shown by `Queue.progress` at once, and by `ledgerq show` within a second or so. It is gone with the try, and no
        event has it.
        """
        if self._queue is None or self._loop is None:
            raise InvalidState("this job has no queue to which it could report its progress")
        fraction, text = checked_report(fraction, text)
        if self.is_over:
            return
        if loop_or_none() is self._loop:
            self._queue.report(self.claim, fraction, text)
        else:
            self._loop.call_soon_threadsafe(self._queue.report, self.claim, fraction, text)

    @property
    def log(self) -> JobLogger:
        """A logger below `ledgerq.job` whose records have the job's ids, as those of the worker have."""
        return JobLogger(self.claim)

    @property
    def kv(self) -> StagedValues:
        """The values of keys: `get` reads now, `set` and `delete` are committed with the job's end, see `enqueue`."""
        return self._effects().kv

    @overload
    def enqueue(self, task: "Task[P, R]", /, *args: P.args, **kwargs: P.kwargs) -> "Handle[R]": ...
    @overload
    def enqueue(self, queue: str, payload: bytes, /, **options: Any) -> "Handle[bytes | None]": ...
    def enqueue(self, what: Any, /, *args: Any, **kwargs: Any) -> "Handle[Any]":
        """Enqueue a job in the commit in which this one is acked, or not at all: see `Effects.enqueue`.

        What a try has set and enqueued is dropped when it fails, is timed out, cancelled or given back, or its claim is
        lost; `raise Dead(..., keep=True)` commits it with the dead letter.
        """
        return self._effects().enqueue(what, *args, **kwargs)

    @property
    def payload(self) -> bytes:
        """The bytes as they were enqueued; raises `InvalidState` for a large payload."""
        return self.claim.payload

    def open_payload(self) -> AsyncIterator[bytes]:
        """The payload in pieces, as `Claim.open_payload`: `async for piece in job.open_payload()`."""
        return self.claim.open_payload()

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
    def task(self) -> str | None:
        """The name of the task that the job is for, None when it is for none."""
        return self.claim.task

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
    """A registered handler; `timeout_ms` None: no limit.

    `keeps_result`: it returns bytes, or None, with which its job is acked. `retry`: rules by exception. `choose` gives
    the handler for a claim, where a queue has more than one.
    """

    queue: str
    function: HandlerFunction
    timeout_ms: int | None
    is_async: bool
    task_name: str
    keeps_result: bool = False
    retry: Sequence[RetryRule] = ()
    choose: "Callable[[Claim], Handler] | None" = None

    @classmethod
    def of(cls, queue: str, function: HandlerFunction, timeout_ms: int | None, keeps_result: bool = False) -> "Handler":
        """Make a handler of an async or plain function (or an object with such a call); refuse what would never run."""
        called = getattr(function, "__call__", None)  # noqa: B004
        yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if called is None or yields:
            raise InvalidArgument(f"a handler is a function that takes a job, and has no yield, not {function!r}")
        is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        return cls(queue, function, timeout_ms, is_async, f"ledgerq-{queue}", keeps_result)


class Settler(JobQueue, Protocol):
    """The protocol of a queue by which a job is settled."""

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """Ack a claim, as `Queue.ack` does."""

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        """Ack claims, as `Queue.ack_many` does; the `offsets` of the `ClaimLost` that it raises name those lost."""

    async def nack(
        self,
        claim: Claim,
        error: str,
        delay: float | None = None,
        dead: bool = False,
        error_type: str = "",
        rule: RetryRule | None = None,
        effects: Effects | None = None,
    ) -> None:
        """Nack a claim, as `Queue.nack` does."""

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
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
