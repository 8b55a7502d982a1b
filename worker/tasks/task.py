"""A task: a function that is enqueued by calls with its own arguments."""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, ParamSpec, TypeVar

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import UniqueUntil
from ledgerq.worker.engine.new_job import task_name
from ledgerq.worker.options import NewJob, OnConflict
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.sync.blocking import refuse_loop
from ledgerq.worker.tasks.argument_keys import Unique, argument_key, unique_names
from ledgerq.worker.tasks.handle import Handle
from ledgerq.worker.tasks.signature import Signature

if TYPE_CHECKING:
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.remote.remote_queue import RemoteQueue
    from ledgerq.worker.sync.sync_queue import Queue as SyncQueue
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["Definition", "Task"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_ENCODED_AT_ONCE: Final = 50


class Definition(NamedTuple):
    """What was given to `Tasks.task`."""

    name: str
    queue: str
    function: Callable[..., Any]
    signature: Signature
    is_async: bool
    max_attempts: int | None
    timeout_ms: int | None
    retry: tuple[RetryRule, ...]
    unique: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        name: str | None,
        queue: str,
        function: Callable[..., Any],
        max_attempts: int | None,
        timeout_ms: int | None,
        retry: tuple[RetryRule, ...],
        unique: Unique | None,
    ) -> "Definition":
        """The definition of an async or plain function; refuses what would never run."""
        yields = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        if not inspect.isroutine(function) or yields:
            raise InvalidArgument(f"a task is a function without yield, not {function!r}")
        name = task_name(function.__name__ if name is None else name)
        signature = Signature(name, function)
        is_async = inspect.iscoroutinefunction(function)
        names = unique_names(unique, signature)
        return cls(name, queue, function, signature, is_async, max_attempts, timeout_ms, retry, names)


class Task(Generic[P, R]):
    """A task of a `Tasks` registry: `await task.enqueue(...)` takes the arguments of its function."""

    def __init__(
        self,
        tasks: "Tasks",
        definition: Definition,
        options: Mapping[str, Any],
        queue: "Queue | RemoteQueue | None" = None,
    ) -> None:
        """Not called by users: decorate a function with `@app.task(...)`."""
        self.definition = definition
        self._tasks = tasks
        self._options = dict(options)
        self._queue = queue

    @property
    def name(self) -> str:
        """The name by which its jobs name it in the log."""
        return self.definition.name

    @property
    def queue(self) -> str:
        """The name of the queue that its jobs are in."""
        return self.definition.queue

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself, to be called without a queue."""
        return self.definition.function

    @property
    def signature(self) -> Signature:
        """Its arguments and its result as JSON."""
        return self.definition.signature

    def __repr__(self) -> str:
        return f"Task({self.name!r}, queue={self.queue!r})"

    def options(
        self,
        *,
        delay: float | None = None,
        run_at: datetime | None = None,
        expires: float | datetime | None = None,
        deadline: float | datetime | None = None,
        priority: int | None = None,
        max_attempts: int | None = None,
        unique_key: str | bytes | None = None,
        unique_until: UniqueUntil | None = None,
        unique_for: float | None = None,
        on_conflict: OnConflict | None = None,
        debounce: float | None = None,
        debounce_max: float | None = None,
        headers: Mapping[str, str] | None = None,
        job_id: str | None = None,
        queue: "Queue | RemoteQueue | SyncQueue | None" = None,
    ) -> "Task[P, R]":
        """The same task with these options for what is enqueued by it; see `Queue.enqueue`.

        `queue`: the open queue object to enqueue to, where several are open.
        """
        if isinstance(queue, str):
            raise InvalidArgument(
                f"queue is an open Queue, not a name; the queue of a task is given in @app.task(queue={queue!r})"
            )
        given = {
            "delay": delay,
            "run_at": run_at,
            "expires": expires,
            "deadline": deadline,
            "priority": priority,
            "max_attempts": max_attempts,
            "unique_key": unique_key,
            "unique_until": unique_until,
            "unique_for": unique_for,
            "on_conflict": on_conflict,
            "debounce": debounce,
            "debounce_max": debounce_max,
            "headers": headers,
            "job_id": job_id,
        }
        options = self._options | {name: value for name, value in given.items() if value is not None}
        chosen: Any = self._queue if queue is None else getattr(queue, "asynchronous", queue)
        return Task(self._tasks, self.definition, options, chosen)

    def schedule_options(self) -> Mapping[str, Any]:
        """The options for what a schedule enqueues; raises `InvalidArgument` for one that is of a single job."""
        own = {"unique"} if self.definition.unique is not None else set()
        if given := sorted((self._options.keys() - {"priority", "max_attempts"}) | own):
            raise InvalidArgument(f"a schedule of task {self.name!r} can't have the options {', '.join(given)}")
        return self._options

    async def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Add one job with these arguments; it is durable when this returns.

        Raises `InvalidArgument` for arguments that don't fit, before anything is written, and like `Queue.enqueue`.
        """
        return await self._enqueue(self.signature.encode(args, kwargs))

    async def _enqueue(self, payload: bytes) -> Handle[R]:
        tasks = self._tasks
        if tasks.inlined is not None:
            return await tasks.inlined.run(self.definition, self._new_job(payload))
        queue = self._queue or tasks.queue
        if tasks.enqueue_hooks:
            job = dict(self._new_job(payload))
            result = await queue.enqueue(self.queue, job.pop("payload"), **job)
        else:
            result = await queue.enqueue(self.queue, payload, task=self.name, **self._options_of(payload))
        return Handle(queue, result.job_id, self.signature, created=result.created, replaced=result.replaced)

    async def enqueue_many(self, calls: Iterable[Mapping[str, Any]]) -> list[Handle[R]]:
        """Add up to 10,000 jobs in one commit, all or none: each is given by its arguments, by their names."""
        jobs: list[NewJob] = []
        for at, arguments in enumerate(calls):
            if at % _ENCODED_AT_ONCE == _ENCODED_AT_ONCE - 1:
                await asyncio.sleep(0)
            if not isinstance(arguments, Mapping):
                what = type(arguments).__name__
                raise InvalidArgument(
                    f"calls[{at}]: enqueue_many takes arguments by their names, as in [dict(x=1)], not {what}"
                )
            try:
                jobs.append(self._new_job(self.signature.encode((), arguments)))
            except InvalidArgument as error:
                raise InvalidArgument(f"calls[{at}]: {error}") from error
        if self._tasks.inlined is not None:
            return [await self._tasks.inlined.run(self.definition, job) for job in jobs]
        queue = self._queue or self._tasks.queue
        results = await queue.enqueue_many(self.queue, jobs)
        return [
            Handle(queue, result.job_id, self.signature, created=result.created, replaced=result.replaced)
            for result in results
        ]

    def enqueue_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """The same as `enqueue` for a thread without an event loop, which waits; see `Handle.result_sync`.

        It may be any thread, and the queue one of `ledgerq.sync`, or of an event loop in another thread.
        """
        payload = self.signature.encode(args, kwargs)
        return self._wait(lambda: self._enqueue(payload), "enqueue")

    def enqueue_many_sync(self, calls: Iterable[Mapping[str, Any]]) -> list[Handle[R]]:
        """The same as `enqueue_many` for a thread without an event loop, which waits."""
        return self._wait(lambda: self.enqueue_many(calls), "enqueue_many")

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]], name: str) -> T:
        instead = f"use `await` and {name} of task {self.name!r} here"
        if self._tasks.inlined is not None:
            refuse_loop(instead)
            return asyncio.run(call())
        return (self._queue or self._tasks.queue).owner.wait(call, instead)

    def handle(self, job_id: str) -> Handle[R]:
        """The handle of a job of this task that was enqueued before, perhaps by another process."""
        return Handle(self._queue or self._tasks.queue, job_id, self.signature)

    def new_job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NewJob:
        """The job of a call with these arguments; raises `InvalidArgument` for arguments that don't fit."""
        return self._new_job(self.signature.encode(args, kwargs))

    def _options_of(self, payload: bytes) -> dict[str, Any]:
        """The options of a job with these arguments."""
        names = self.definition.unique
        if names is None or "unique_key" in self._options:
            return self._options
        return {**self._options, "unique_key": argument_key(self.name, names, self.signature, payload)}

    def _new_job(self, payload: bytes) -> NewJob:
        job = NewJob(payload, task=self.name, **self._options_of(payload))
        for hook in self._tasks.enqueue_hooks:
            job = hook(job)
            if not isinstance(job, NewJob):
                raise InvalidArgument(f"{hook!r} is to return the NewJob that is enqueued, not {job!r}")
        return job
