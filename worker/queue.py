"""The queue: what a program opens, enqueues to, claims from and settles with.

Every call decides at once, in memory, stages its events in the open commit, and returns when that commit is durable.
One event loop owns a queue. Cancelling a call never half-does it: what was staged is committed all the same, and claims
that were not received are given back. Next: worker.py, which runs handlers on top of these methods.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from ledgerq.eventlog.clock import Clock, SystemClock
from ledgerq.eventlog.entropy import Entropy
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.events import UniqueUntil
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Store
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.runner import Projection
from ledgerq.worker.bulk import Bulk
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.engine.checkpoints import Checkpoints, begin_noting
from ledgerq.worker.engine.core import DEFAULT_OPTIONS, Core, open_core
from ledgerq.worker.engine.enqueue import Enqueuer
from ledgerq.worker.engine.large_payloads import Stream
from ledgerq.worker.engine.scheduling import begin_ticks
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.options import NewJob, OnConflict, QueueOptions
from ledgerq.worker.queue_claims import QueueClaims
from ledgerq.worker.queue_view import QueueView, view_of
from ledgerq.worker.schedules import Schedules
from ledgerq.worker.tracing.provider import check_provider, traced_enqueuer

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ledgerq.worker.remote.remote_queue import RemoteQueue
    from ledgerq.worker.sharing.shared_queue import SharedQueue
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["Queue"]


class Queue(QueueClaims):
    """A durable job queue on one store: `await Queue.open(url)`, or `async with Queue.open(url) as queue`."""

    def __init__(self, core: Core, tracer_provider: "TracerProvider | None" = None) -> None:
        """Not called by users: use `open`."""
        super().__init__(core)
        self._log = core.log
        self._writer_state = core.writer_state
        self._clock = core.clock
        self.bulk = Bulk(core)
        """Changes of many jobs at once."""
        self.schedules = Schedules(core)
        """What is enqueued again and again."""
        self._enqueuer = Enqueuer(core) if tracer_provider is None else traced_enqueuer(core, tracer_provider)
        self._tracer_provider = tracer_provider

    # ------------------------------------------------------------------ opening and closing

    @overload
    @classmethod
    def open(
        cls,
        url: str | Path = "memory:///",
        *,
        share: Literal[False] = False,
        default: QueueOptions = DEFAULT_OPTIONS,
        queues: Mapping[str, QueueOptions] | None = None,
        ready_window: int = 10_000,
        commit_interval_ms: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        store: Store | None = None,
        store_options: StoreOptions | None = None,
        projections: Iterable[Projection] = (),
        accept_rollback: bool = False,
        take_over: bool = False,
        wait: float | None = 0.0,
        tracer_provider: "TracerProvider | None" = None,
        tasks: "Tasks | None" = None,
        checkpoints: Checkpoints | None = None,
    ) -> Opening[Self]: ...
    @overload
    @classmethod
    def open(
        cls,
        url: str | Path,
        *,
        share: Literal[True],
        default: QueueOptions = DEFAULT_OPTIONS,
        queues: Mapping[str, QueueOptions] | None = None,
        ready_window: int = 10_000,
        commit_interval_ms: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        store_options: StoreOptions | None = None,
        accept_rollback: bool = False,
        wait: float | None = 0.0,
        tasks: "Tasks | None" = None,
    ) -> "Opening[SharedQueue]": ...
    @classmethod
    def open(
        cls,
        url: str | Path = "memory:///",
        *,
        share: bool = False,
        default: QueueOptions = DEFAULT_OPTIONS,
        queues: Mapping[str, QueueOptions] | None = None,
        ready_window: int = 10_000,
        commit_interval_ms: float | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        store: Store | None = None,
        store_options: StoreOptions | None = None,
        projections: Iterable[Projection] = (),
        accept_rollback: bool = False,
        take_over: bool = False,
        wait: float | None = 0.0,
        tracer_provider: "TracerProvider | None" = None,
        tasks: "Tasks | None" = None,
        checkpoints: Checkpoints | None = None,
    ) -> "Opening[Self] | Opening[SharedQueue]":
        """Open the store at `url` (or `store`, already open) for writing.

        While another writer has it open this raises `StoreInUse`, after `wait` seconds (None: never) in which it opens
        as soon as the other has ended; with `take_over` it fences the other instead. See
        eventlog/single_writer/hold.py.

        `share`: several processes of this machine open a store in a folder; one writes it, and when that ends another
        one does. All get a `SharedQueue`, with the methods of `Queue` that `connect` has; see worker/sharing.

        `default` and `queues` are the options of queues; `ready_window` is how many pending jobs of each queue
        are kept in memory; commits follow each other at least `commit_interval_ms` apart (None: the fewer events
        one has, the longer it waits for more, up to 50 ms on object stores and 2 ms elsewhere; after a quiet time
        none waits: see eventlog/pace.py); `projections` are the user's own; `tracer_provider` switches tracing on, see
        tracing/spans.py; `tasks` are enqueued to this queue; the log notes published `checkpoints`. Use the result with
        `await` or `async with`.

        Raises `InvalidArgument`, `StoreUnavailable`, `LogRolledBack` (unless `accept_rollback`), `LogCorrupt`,
        `FormatTooNew`, `NotRebuilt`, `StoreInUse`, and `Fenced` when another one took it over at the same moment.
        """
        if tasks is not None and not callable(getattr(tasks, "opened", None)):
            raise InvalidArgument(f"tasks is what Tasks() makes, not {tasks!r}")
        place = str(url.absolute()) if isinstance(url, Path) else url
        parts: dict[str, Any] = {
            "default": default,
            "queues": queues,
            "ready_window": ready_window,
            "commit_interval_ms": commit_interval_ms,
            "clock": clock,
            "entropy": entropy,
            "store_options": store_options,
            "accept_rollback": accept_rollback,
        }
        own = {"store": store, "take_over": take_over, "projections": projections, "tracer_provider": tracer_provider}
        if share:
            return _shared(place, parts, {**own, "checkpoints": checkpoints}, wait, tasks)
        return cls._alone(place, parts | own | {"wait": wait}, tasks, checkpoints)

    @classmethod
    def _alone(
        cls, url: str, parts: dict[str, Any], tasks: "Tasks | None", checkpoints: Checkpoints | None
    ) -> Opening[Self]:
        if (tracer_provider := parts.pop("tracer_provider")) is not None:
            check_provider(tracer_provider)

        async def make() -> Self:
            core = await open_core(url, parts.pop("store"), parts.pop("store_options"), **parts)
            queue = cls(core, tracer_provider)
            if checkpoints is not None:
                await begin_noting(core, checkpoints)
            await begin_ticks(core, tasks)
            if tasks is not None:
                core.on_close.append(tasks.opened(queue))
            return queue

        return Opening(make)

    @staticmethod
    def view(url: str, *, pinned: bool = False, clock: Clock | None = None) -> Opening[QueueView]:
        """Open the store at `url` for reading alone, beside its writer: jobs, counters, events, and the past.

        It shows what is durable, within about half a second; `pinned`: as of one commit. Use the result with `await` or
        `async with`; see worker/queue_view.py. Raises `StoreNotFound`, `StoreUnavailable`, `FormatTooNew`.
        """
        return view_of(url, pinned, clock)

    @staticmethod
    def connect(
        urls: str, *, token: str | None = None, tasks: "Tasks | None" = None, patience: float = 60.0
    ) -> "Opening[RemoteQueue]":
        """Connect to the service (`ledgerq serve`) at `urls`, one or several addresses separated by commas.

        `patience`: for so many seconds a call is repeated, at each address in turn, while none answers it; then it
        raises `ServiceUnavailable`. Use the result with `await` or `async with`; see worker/remote/remote_queue.py.

        Raises `InvalidArgument`, `NotAllowed`, `ServiceUnavailable`.
        """
        try:
            from ledgerq.worker.remote.remote_queue import connect
        except ImportError as error:
            raise InvalidArgument("Queue.connect needs a client library: pip install 'ledgerq[client]'") from error
        return connect(urls, token=token, tasks=tasks, patience=patience)

    async def close(self) -> None:
        """Commit what is staged, end all tasks, close the store. Claims still held end when it is next opened."""
        await self._core.close()

    @property
    def location(self) -> str:
        """The URL it was opened by."""
        return self._log.store.location

    @property
    def failure(self) -> LedgerError | None:
        """The error for which nothing can be written any more (`Fenced`, `OutcomeUnknown`, ...), or None."""
        return self._log.failure

    @property
    def on_failure(self) -> list[Callable[[LedgerError], None]]:
        """The list of functions called when the queue fails (`Fenced`, ...): append to it, remove from it."""
        return self._core.on_failure

    @property
    def log(self) -> EventLog:
        """The event log: `read`, `tail`, `verify`, `head`."""
        return self._log

    @property
    def clock(self) -> Clock:
        """The clock it was opened with."""
        return self._clock

    @property
    def tracer_provider(self) -> "TracerProvider | None":
        """OpenTelemetry's provider that it was opened with: workers use it too."""
        return self._tracer_provider

    def options(self, queue: str) -> QueueOptions:
        """The options in force for a queue."""
        return self._core.options(queue)

    # ------------------------------------------------------------------ enqueue

    async def enqueue(
        self,
        queue: str,
        payload: bytes | Stream,
        *,
        priority: int | None = None,
        delay: float | None = None,
        run_at: datetime | None = None,
        expires: float | datetime | None = None,
        deadline: float | datetime | None = None,
        max_attempts: int | None = None,
        unique_key: str | bytes | None = None,
        unique_until: UniqueUntil = "finished",
        unique_for: float | None = None,
        on_conflict: OnConflict = "keep",
        debounce: float | None = None,
        debounce_max: float | None = None,
        headers: Mapping[str, str] | None = None,
        job_id: str | None = None,
        task: str | None = None,
    ) -> EnqueueResult:
        """Add one job; it is durable when this returns.

        `payload`: bytes; or an open file or an async iterator of bytes, which is read in pieces and may be large.
        `priority`: lower first (0 to 2^32-1). `delay` (seconds) or `run_at` (aware datetime): not before then.
        `expires` and `deadline` (seconds from now, or aware datetimes): no try begins later, a retry neither, and a job
        that still waits then is cancelled; at its deadline a try that runs is stopped, too.
        `unique_key`: while an unfinished job of the queue has it (`unique_until="claimed"`: one never claimed), nothing
        is added and `created` is False. `unique_for`: it is held for so many seconds at least, whatever becomes of the
        job (`unique_until="period"`: for that alone). `on_conflict`: `"replace"` puts this payload, with due time and
        terms, in the place of those of a job that waits; `"raise"` raises `UniqueKeyHeld`. `debounce`: due so many
        seconds after the last call with this key, whose payload counts (`debounce_max`: after the first, at most).
        `job_id`: a ULID of your own; raises `DuplicateJobId` when it is in use.
        `task`: the name of the task that it is for, whose arguments the payload is, as a JSON object.

        Raises `InvalidArgument`, `InvalidQueueName`, `PayloadTooLarge`, before anything is written.
        """
        return await self._enqueuer.one(
            queue,
            payload,
            headers,
            priority=priority,
            delay=delay,
            run_at=run_at,
            expires=expires,
            deadline=deadline,
            max_attempts=max_attempts,
            unique_key=unique_key,
            unique_until=unique_until,
            unique_for=unique_for,
            on_conflict=on_conflict,
            debounce=debounce,
            debounce_max=debounce_max,
            job_id=job_id,
            task=task,
        )

    async def enqueue_many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> list[EnqueueResult]:
        """Add up to 10,000 jobs in one commit: all or none. Each is a payload, or a `NewJob` with options."""
        return await self._enqueuer.many(queue, jobs)


def _shared(
    url: str, parts: dict[str, Any], refused: dict[str, Any], wait: float | None, tasks: "Tasks | None"
) -> "Opening[SharedQueue]":
    try:
        from ledgerq.worker.sharing.shared_queue import Settings, open_shared
    except ImportError as error:
        raise InvalidArgument("share=True needs a server and a client: pip install 'ledgerq[serve,client]'") from error
    clock = parts.pop("clock") or SystemClock()
    return open_shared(Settings(url=url, clock=clock, tasks=tasks, **parts), wait, refused)
