"""The registry of tasks: it has no queue and no loop, and can be imported from anywhere."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar, overload

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import MissedPolicy, OverlapPolicy, UniqueUntil
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.worker.engine.scheduling import Wanted, schedule_name, wanted
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob, OnConflict, seconds_ms
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.tasks.argument_keys import Unique
from ledgerq.worker.tasks.calling import Middleware
from ledgerq.worker.tasks.inline import InlineRun
from ledgerq.worker.tasks.task import Definition, Task

if TYPE_CHECKING:
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.remote.remote_queue import RemoteQueue
    from ledgerq.worker.sync.sync_queue import Queue as SyncQueue

__all__ = ["EnqueueHook", "TaskDecorator", "Tasks"]

P = ParamSpec("P")
R = TypeVar("R")

EnqueueHook = Callable[[NewJob], NewJob]
HookT = TypeVar("HookT", bound=EnqueueHook)
MiddlewareT = TypeVar("MiddlewareT", bound=Middleware)
TaskT = TypeVar("TaskT", bound=Task[..., Any])
LifespanT = TypeVar("LifespanT", bound=Callable[[], AsyncIterator[Any]])
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]

_MAX_ATTEMPTS: Final = 1_000_000


class TaskDecorator:
    """What `Tasks.task` gives: it makes a `Task` of a function; one that takes the job takes it first."""

    def __init__(self, register: Callable[[Callable[..., Any]], Task[..., Any]]) -> None:
        self._register = register

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Task[..., Any]:
        """Make a task of this function."""
        return self._register(function)


class Tasks:
    """The tasks of a program.

    app = Tasks()

    @app.task(queue="mail", max_attempts=5, timeout=60, retry=[on(ConnectionError, attempts=10)])
    async def send(user_id: int) -> str: ...

    async with Queue.open("jobs", tasks=app) as queue:
        handle = await send.enqueue(user_id=3)
        await Worker(queue, tasks=app).run()
    """

    def __init__(self, name: str = "tasks") -> None:
        """`name`: of these tasks, by which their schedules are told from those of other tasks of the same store."""
        self.name = schedule_name(name)
        """The name of these tasks."""
        self.schedules: dict[str, Wanted] = {}
        """Those of `cron`, by name."""
        self.middleware: list[Middleware] = []
        """Those of `use`, the outermost first."""
        self.enqueue_hooks: list[EnqueueHook] = []
        """Those of `on_enqueue`, in order."""
        self.inlined: InlineRun | None = None
        """How tasks are run while `inline` is in force."""
        self.lifetime: Lifespan | None = None
        """That of `lifespan`."""
        self._tasks: dict[str, Task[..., Any]] = {}
        self._open: list[Queue | RemoteQueue] = []
        self._bound: Queue | RemoteQueue | None = None

    # ------------------------------------------------------------------ registering

    def task(
        self,
        function: None = None,
        /,
        *,
        queue: str = "default",
        name: str | None = None,
        max_attempts: int | None = None,
        timeout: float | None = None,
        retry: Sequence[RetryRule] = (),
        unique: Unique | None = None,
        unique_until: UniqueUntil | None = None,
        unique_for: float | None = None,
        on_conflict: OnConflict | None = None,
        debounce: float | None = None,
        debounce_max: float | None = None,
    ) -> TaskDecorator:
        """Make the decorated function a task: an `async def`, or a plain `def`, which runs in a thread.

        `queue`: the queue of its jobs. `name`: its name in the log (None: the function's); what jobs name must be kept
        when code is moved. `max_attempts`: the tries of its jobs (None: the queue's option). `timeout`: seconds of a
        try. `retry`: rules made by `on`, of which the first that is for an exception counts. `unique`: its jobs have
        unique keys made of all their arguments (`"args"`) or of some (`("user_id",)`), and `unique_until` to
        `debounce_max` are about those, see `Queue.enqueue`.

        Its parameters are annotated with types that pydantic knows, and so is what it returns; a first parameter that
        is a `JobContext` gets the job.
        """
        if function is not None:
            raise InvalidArgument("write @app.task() with parentheses: it takes the task's options")
        queue_name_bytes(queue)
        timeout_ms = None if timeout is None else seconds_ms("timeout", timeout, least_ms=1)
        if max_attempts is not None and (type(max_attempts) is not int or not 1 <= max_attempts <= _MAX_ATTEMPTS):
            raise InvalidArgument(f"max_attempts is a whole number from 1 to {_MAX_ATTEMPTS}, not {max_attempts!r}")
        rules = tuple(retry)
        if not all(isinstance(rule, RetryRule) for rule in rules):
            raise InvalidArgument(f"retry is a list of rules, as in [on(ConnectionError, attempts=10)], not {retry!r}")

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            definition = Definition.of(name, queue, function, max_attempts, timeout_ms, rules, unique)
            if definition.name in self._tasks:
                other = self._tasks[definition.name].function
                raise InvalidArgument(f"there is a task {definition.name!r} already, {other!r}: give one a name=")
            task: Task[..., Any] = Task(self, definition, {}).options(
                max_attempts=max_attempts,
                unique_until=unique_until,
                unique_for=unique_for,
                on_conflict=on_conflict,
                debounce=debounce,
                debounce_max=debounce_max,
            )
            self._tasks[definition.name] = task
            return task

        return TaskDecorator(register)

    def cron(
        self,
        spec: str | None = None,
        /,
        *,
        every: timedelta | None = None,
        name: str | None = None,
        zone: str = "UTC",
        missed: MissedPolicy = "last",
        overlap: OverlapPolicy = "skip",
        jitter: float = 0.0,
        grace: float = 60.0,
        args: Mapping[str, Any] | None = None,
    ) -> Callable[[TaskT], TaskT]:
        """Enqueue the decorated task at each tick of a cron expression, or once in a while (`every`).

        Write it above `@app.task(...)`. The schedule is set when a queue opens with these tasks, and removed when one
        opens with them after it was taken out of the code; `name` None: the task's. The rest is as for
        `Queue.schedules.set`.
        """
        if (spec is None) == (every is None) or callable(spec):
            raise InvalidArgument('a schedule is @app.cron("30 2 * * *") or @app.cron(every=timedelta(hours=1))')
        when = spec if spec is not None else every
        assert when is not None

        def register(task: TaskT) -> TaskT:
            if not isinstance(task, Task):
                raise InvalidArgument(f"write @app.cron(...) above @app.task(...): {task!r} is no task")
            one = wanted(name, when, task, args, zone=zone, missed=missed, overlap=overlap, jitter=jitter, grace=grace)
            if one.name in self.schedules:
                raise InvalidArgument(f"there is a schedule {one.name!r} already: give one a name=")
            self.schedules[one.name] = one
            return task

        return register

    def use(self, middleware: MiddlewareT) -> MiddlewareT:
        """Run `async def middleware(job, call_next)` around each try; the first one used is the outermost.

        It awaits `call_next(job)`, which returns what the task returns, and returns that, or something else.
        """
        self.middleware.append(middleware)
        return middleware

    def on_enqueue(self, hook: HookT) -> HookT:
        """Let `hook(new_job)` return the `NewJob` that is enqueued in the place of each: with headers, say."""
        self.enqueue_hooks.append(hook)
        return hook

    def lifespan(self, function: LifespanT) -> LifespanT:
        """Run the decorated async generator around each worker's run: what it yields is `job.state`."""
        if self.lifetime is not None:
            raise InvalidArgument("these tasks have a lifespan already: one can enter several others")
        self.lifetime = asynccontextmanager(function)
        return function

    def get(self, name: str) -> Task[..., Any] | None:
        """The task of this name."""
        return self._tasks.get(name)

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._tasks.values())

    # ------------------------------------------------------------------ the queue to enqueue to

    def opened(self, queue: "Queue | RemoteQueue") -> Callable[[], Coroutine[Any, Any, None]]:
        """Enqueue to this queue, which `Queue.open` opened with these tasks, until what this returns is called."""
        queue.tasks = self
        self._open.append(queue)

        async def closed() -> None:
            self._open.remove(queue)
            if self._bound is queue:
                self._bound = None

        return closed

    def bind(self, queue: "Queue | RemoteQueue | SyncQueue") -> None:
        """Enqueue to this queue from now on, where several are open; until it is closed."""
        chosen = getattr(queue, "asynchronous", queue)
        if chosen not in self._open:
            raise InvalidArgument("only a queue that is open, by Queue.open(..., tasks=app), can be bound")
        self._bound = chosen

    @property
    def queue(self) -> "Queue | RemoteQueue":
        """The queue that tasks are enqueued to; raises `InvalidArgument` when none is open, or several are."""
        if self._bound is not None:
            return self._bound
        able = [queue for queue in self._open if queue.failure is None] or self._open
        if not able:
            raise InvalidArgument("no queue is open for these tasks: open one with Queue.open(url, tasks=app)")
        if len(able) > 1:
            places = ", ".join(queue.location for queue in able)
            raise InvalidArgument(
                f"several queues are open for these tasks ({places}): name one with task.options(queue=queue), or for "
                "all tasks with app.bind(queue)"
            )
        return able[0]

    @contextmanager
    def inline(self, state: Any = None, values: dict[str, bytes] | None = None) -> Iterator[None]:
        """Run tasks at once, in the call of `enqueue` and without a queue, while the block runs: for tests.

        `state` is their `job.state`; `values` the keys that they read and change. What one enqueues by its job is run
        when it has returned. A task that raises has a handle whose `result` raises `JobFailed`.
        """
        before, self.inlined = self.inlined, InlineRun(self.middleware, state, {} if values is None else values)
        try:
            yield
        finally:
            self.inlined = before
