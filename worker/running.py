"""The execution of one claimed job: its handler runs, and is stopped when it must; then its claim is settled.

A handler has one task, and nothing waits for that task: its end is a callback, and the slot is free with it. What
follows (settling.py) is no longer the slot's business.
"""

import asyncio
import concurrent.futures
import contextvars
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from ledgerq.eventlog.clock import Clock, Timer, stopwatch_s
from ledgerq.eventlog.errors import DuplicateJobId, EffectConflict, UniqueKeyHeld
from ledgerq.worker.claims import Claim
from ledgerq.worker.detached import returned, run_detached
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.decisions import is_last
from ledgerq.worker.execution import Handler, JobContext, Settler, Trace, Tracer
from ledgerq.worker.job_logging import Outcome, say_outcome
from ledgerq.worker.kept_results import kept_result
from ledgerq.worker.metrics.worker_metrics import WorkerMeters
from ledgerq.worker.outcomes import (
    Dead,
    Elsewhere,
    RateLimited,
    Retry,
    Snooze,
    error_text,
    plain_text,
)
from ledgerq.worker.retry_rules import rule_for

__all__ = ["Runner", "Running", "StopReason"]

StopReason = Literal["cancel", "lost", "timeout", "deadline", "released"]
_STOP_ERRORS: Final = {
    "cancel": "stopped: its cancellation was requested",
    "deadline": "stopped: the job's deadline is over",
    "released": "released: the worker ended",
    "late": "released: no handler was free for it in time",
}


class Runner(NamedTuple):
    """What all executions of one worker use. `handled` is called when a handler has ended, in the worker's context.

    `executor`: the user's, in which plain functions run instead of in `threads`.
    """

    queue: Settler
    clock: Clock
    threads: concurrent.futures.Executor
    handled: Callable[["Running"], None]
    tracer: Tracer | None = None
    meters: WorkerMeters | None = None
    executor: concurrent.futures.Executor | None = None


class Running:
    """The execution of one claim in a worker: `begin` it, and settle it once its handler has ended."""

    __slots__ = (
        *("_begun_s", "_handler", "_job", "_runner", "_task", "_thread", "_timer", "_took_s", "_trace"),
        *("arrived_ms", "begun", "begun_ms", "claim", "effects", "error", "handling", "interrupt", "result", "stopped"),
    )

    def __init__(self, runner: Runner, claim: Claim, handler: Handler, arrived_ms: int) -> None:
        self.claim = claim
        self.arrived_ms = arrived_ms
        self.stopped: StopReason | None = None
        self.begun = False
        self.begun_ms = 0
        self.handling = False
        self.error: BaseException | None = None
        """What the handler raised."""
        self.result: bytes | None = None
        """What its job is acked with."""
        self.effects: Effects | None = None
        """What is to be committed with its end."""
        self.interrupt: BaseException | None = None
        """The exception by which the worker has to end, once its claim is settled: by which the handler ends the
        process, or its executor can run nothing more."""
        self._runner = runner
        self._handler = handler
        self._job: JobContext | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: concurrent.futures.Future[Any] | None = None
        self._timer: Timer | None = None
        self._trace: Trace | None = None
        self._begun_s = self._took_s = 0.0

    def begin(self) -> None:
        """Begin the handler. Its end, soon or late, is reported to `Runner.handled`, and never within this call."""
        runner, handler = self._runner, self._handler
        self._job = JobContext(self.claim, self._call_in_thread, self._runner.queue)
        self._begun_s = stopwatch_s()
        self.begun_ms = runner.clock.now_ms()
        self.begun = self.handling = True
        runner.queue.watch(self.claim, self._told)
        if handler.timeout_ms is not None:
            self._timer = runner.clock.call_at(self.begun_ms + handler.timeout_ms, partial(self.stop, "timeout"))
        if self.claim.terms is not None and (deadline_ms := self.claim.deadline_ms):
            self._keep_deadline(deadline_ms)
        if handler.is_async and runner.tracer is None and self.stopped is None:
            self._make_task(None)
        else:
            # A stop of the claim that is due by now must come before a thread or a span begins, which can't be undone.
            asyncio.get_running_loop().call_soon(self._begin)

    def _keep_deadline(self, deadline_ms: int) -> None:
        """Stop the try when its job's deadline is over, unless it has to end before."""
        timeout_ms = self._handler.timeout_ms
        if deadline_ms <= self.begun_ms:
            self.stop("deadline")
        elif timeout_ms is None or deadline_ms < self.begun_ms + timeout_ms:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._runner.clock.call_at(deadline_ms, partial(self.stop, "deadline"))

    def _begin(self) -> None:
        if self.stopped is not None:
            self.error = asyncio.CancelledError()
            self._end()
            return
        tracer = self._runner.tracer
        if tracer is not None:
            self._trace = tracer.begin(self.claim)
        self._make_task(None if self._trace is None else self._trace.context)

    def _make_task(self, context: contextvars.Context | None) -> None:
        self._task = asyncio.create_task(self._handle(), name=self._handler.task_name, context=context)
        self._task.add_done_callback(self._ended)

    def _told(self, what: str) -> None:
        self.stop("cancel" if what == "cancel" else "lost")

    def stop(self, reason: StopReason) -> None:
        """Make the handler end, or never begin; the first reason counts, and none once it has ended."""
        if self.stopped is None and (self.handling or not self.begun):
            self.stopped = reason
            if self._job is not None:
                self._job.stop_requested = True
            if self._task is not None:
                self._task.cancel()

    def abandon(self) -> "list[asyncio.Task[None]]":
        """Cancel a handler that doesn't end, once more; returns its task, if it has one."""
        if self._task is None:
            return []
        self._task.cancel()
        return [self._task]

    async def _handle(self) -> None:
        """Run the handler in its task; whatever it raises is kept, so that the task itself always returns.

        SystemExit and KeyboardInterrupt would end the loop at once, and with it all that could settle this job and the
        others: the first fails the try, and no more; the second also ends the worker, see `interrupt`.
        """
        task, job = asyncio.current_task(), self._job
        assert job is not None
        try:
            # Called in the task: one that is cancelled before it begins must not leave a coroutine that is never
            # awaited.
            if self._handler.is_async:
                value = await self._handler.function(job)
            else:
                function = self._handler.function
                value = await self._call_in_thread(partial(function, job), function)
                if inspect.isawaitable(value):
                    value = await value
            if self._handler.keeps_result:
                self.result = kept_result(value)
        except asyncio.CancelledError as error:
            if self.stopped is None and task is not None and task.cancelling() > 0:
                self.stopped = "released"  # cancelled from outside
                job.stop_requested = True
            self.error = error
        except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
            if isinstance(error, GeneratorExit) and not _is_running(task):
                raise  # this coroutine is closed itself, since its loop is gone
            if isinstance(error, KeyboardInterrupt):
                self.interrupt = error
            self.error = RuntimeError(f"the handler raised {error!r}")
            self.error.__cause__ = error
        except BaseException as error:
            self.error = error

    async def _call_in_thread(self, function: Callable[[], Any], detached: Callable[[Any], Any] | None = None) -> Any:
        if (executor := self._runner.executor) is not None and detached is not None:
            return await self._call_in_executor(executor, detached)
        context = contextvars.copy_context()
        self._thread = self._runner.threads.submit(context.run, function)
        return await asyncio.wrap_future(self._thread)

    async def _call_in_executor(self, executor: concurrent.futures.Executor, detached: Callable[[Any], Any]) -> Any:
        try:
            self._thread = executor.submit(run_detached, detached, replace(self.claim, store=None))
        except Exception as error:  # it is broken, or was shut down: no fault of this job
            self.stopped, self.interrupt = "released", error
            raise
        try:
            return returned(await asyncio.wrap_future(self._thread))
        except concurrent.futures.BrokenExecutor as error:
            # What the handler itself raised comes back within a value. This one may have ended the process.
            if not isinstance(error.__cause__, Elsewhere):
                self.interrupt = error
            raise

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled():  # before its first step
            if self.stopped is None:
                self.stopped = "released"
            self.error = asyncio.CancelledError()
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._trace is not None:
            self._trace.handled(self.error)
        self._took_s = stopwatch_s() - self._begun_s
        self.handling = False
        if self._job is not None:
            self._job.close()
            self.effects = self._job.staged or None
        # Thousands may be on their way to the log: what only the handler needed goes now.
        self._task = self._job = self._timer = None
        if self._thread is not None and self._thread.done():
            self._thread = None  # it keeps what the handler returned
        self._runner.handled(self)

    # ------------------------------------------------------------------ settling

    @property
    def size_bytes(self) -> int:
        """The bytes that its settlement keeps in memory."""
        size_bytes = len(self.claim.record.payload) + (0 if self.result is None else len(self.result))
        return size_bytes if self.effects is None else size_bytes + self.effects.size_bytes

    @property
    def is_done(self) -> bool:
        """Whether the handler ended well, so that an ack without effects is all that is left."""
        return self.begun and self.error is None and self.effects is None and self.stopped != "lost"

    @property
    def keeps_slot(self) -> bool:
        """Whether a thread goes on after its time: its slot isn't free."""
        return self._thread is not None and not self._thread.done()

    async def thread_ended(self) -> None:
        """Wait for the end of a thread that goes on after its time."""
        thread = self._thread
        if thread is None or thread.done() or thread.cancel():
            return
        waiting = asyncio.wrap_future(thread)
        # What it raises now counts no more, and asyncio would report an exception that was never retrieved.
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.wait({waiting})

    async def settle(self) -> Outcome:
        """Settle a claim whose handler did not end well, never began, or has effects. Raises the queue's errors."""
        queue, claim, error = self._runner.queue, self.claim, self.error
        if self.stopped == "lost":
            return "lost"
        if self.stopped == "released" or not self.begun:
            await queue.release(claim, _STOP_ERRORS["released" if self.stopped else "late"])
            return "released"
        if self.stopped == "cancel":
            await queue.nack(claim, _STOP_ERRORS["cancel"])
            return "cancelled"
        if self.stopped == "timeout":
            text = f"timed out after {(self._handler.timeout_ms or 0) / 1000:g} s"
            return await self._fail(TimeoutError(text), text)
        if self.stopped == "deadline":
            return await self._fail(TimeoutError(_STOP_ERRORS["deadline"]), _STOP_ERRORS["deadline"])
        if error is None:
            return await self._ack_with_effects()
        if isinstance(error, Snooze):
            await queue.release(claim, plain_text(error), delay=error.delay)
            return "released"
        if isinstance(error, RateLimited):
            await queue.release(claim, plain_text(error), hold=error.retry_after)
            return "released"
        name = type(error).__name__
        if isinstance(error, Dead):
            return await self._bury(error)
        if isinstance(error, Retry):
            await queue.nack(claim, plain_text(error), delay=error.delay, error_type=name)
            return "dead" if is_last(claim.attempt, claim.max_attempts, None) else "retry"
        return await self._fail(error, error_text(error))

    async def _ack_with_effects(self) -> Outcome:
        try:
            await self._runner.queue.ack(self.claim, self.result, effects=self.effects)
        except (EffectConflict, DuplicateJobId, UniqueKeyHeld) as error:
            self.error = error
            return await self._fail(error, plain_text(error))
        return "done"

    async def _bury(self, error: Dead) -> Outcome:
        queue, text, name = self._runner.queue, plain_text(error) or "dead", type(error).__name__
        if self.effects is None or not error.keep:
            await queue.nack(self.claim, text, dead=True, error_type=name)
            return "dead"
        try:
            await queue.nack(self.claim, text, dead=True, error_type=name, effects=self.effects)
        except (EffectConflict, DuplicateJobId, UniqueKeyHeld) as conflict:
            self.error = conflict
            return await self._fail(conflict, plain_text(conflict))
        return "dead"

    async def _fail(self, error: BaseException, text: str) -> Outcome:
        claim, rule = self.claim, rule_for(error, self._handler.retry)
        name = type(error).__name__
        if rule is None:
            await self._runner.queue.nack(claim, text, error_type=name)
        else:
            await self._runner.queue.nack(claim, text, dead=rule.dead, error_type=name, rule=rule)
        return "dead" if is_last(claim.attempt, claim.max_attempts, rule) else "retry"

    def settled(self, outcome: Outcome) -> None:
        """Report the outcome of the try, which is durable, to log, trace and meters."""
        if not self.begun and self.stopped is None:
            return  # it came too early, and was no try
        timed_out_s = (self._handler.timeout_ms or 0) / 1000 if self.stopped == "timeout" else None
        error, self.error = self.error, None
        rule = None if error is None else rule_for(error, self._handler.retry)
        said = (self.claim, outcome, error, timed_out_s, None if rule is None else rule.attempts)
        if self._trace is None:
            say_outcome(*said)
        else:
            # There, so that the record carries the ids of the trace.
            self._trace.context.run(say_outcome, *said)
            self._trace.end(outcome, error, timed_out_s is not None)
        if self._runner.meters is not None:
            self._runner.meters.ended(self.claim, outcome, self._took_s, timed_out=timed_out_s is not None)


def _is_running(task: "asyncio.Task[Any] | None") -> bool:
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs
        return False
