"""The queue for threads without an event loop: `ledgerq.sync.Queue`.

A thread of its own has the event loop that owns the queue. Any thread may call; many calls at once share commits, as
the calls of tasks do.
"""

import asyncio
import atexit
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import Entropy
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.runtime.process import own_pid
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Store
from ledgerq.projections.runner import Projection
from ledgerq.worker.bulk import Bulk
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.checkpoints import Checkpoints
from ledgerq.worker.engine.core import DEFAULT_OPTIONS
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue as AsyncQueue
from ledgerq.worker.queue_effects import Values
from ledgerq.worker.schedules import Schedules
from ledgerq.worker.sync.blocking import Face, LoopThread, blocking, refuse_loop

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ledgerq.worker.remote.remote_queue import RemoteQueue
    from ledgerq.worker.tasks.handle import Handle
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["Queue", "SyncBulk", "SyncSchedules", "SyncValues"]


class SyncValues(Face):
    """The values of keys, as `Queue.kv` has them."""

    get = blocking(Values.get)
    keys = blocking(Values.keys)
    at = blocking(Values.at)


class SyncBulk(Face):
    """The bulk changes of a queue, as `Queue.bulk` has them."""

    requeue = blocking(Bulk.requeue)
    cancel = blocking(Bulk.cancel)
    delete = blocking(Bulk.delete)
    move = blocking(Bulk.move)
    resume = blocking(Bulk.resume)


class SyncSchedules(Face):
    """The schedules of a queue, as `Queue.schedules` has them."""

    set = blocking(Schedules.set)
    pause = blocking(Schedules.pause)
    resume = blocking(Schedules.resume)
    remove = blocking(Schedules.remove)
    run_now = blocking(Schedules.run_now)
    list = blocking(Schedules.list)
    get = blocking(Schedules.get)
    next = blocking(Schedules.next)


async def _close(queue: "AsyncQueue | RemoteQueue") -> None:
    await queue.close()


class Queue(Face):
    """A queue whose methods block the thread that calls them: those of `ledgerq.Queue`, with the same arguments.

    with Queue.open("jobs", tasks=app) as queue:
        job = queue.enqueue("mail", b"hello")

    `open` and `connect` open it at once. It is closed by `with`, by `close`, or when the process ends; calls that are
    on their way then raise `QueueClosed`. A forked child can't use it (`WrongProcess`), and opens its own.

    `Queue(queue)` is the face of a queue that a running event loop of this process has opened already, for the other
    threads.
    """

    def __init__(self, queue: "AsyncQueue | RemoteQueue") -> None:
        super().__init__(queue.owner, queue)
        self.asynchronous: AsyncQueue | RemoteQueue = queue
        """The queue itself, for its own event loop."""
        self._closing = threading.Lock()
        self._thread: LoopThread | None = None
        self._is_closed = False

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
    ) -> Self:
        """Open a queue as `Queue.open` of ledgerq does, with the same arguments, at once."""
        given = {name: value for name, value in locals().items() if name not in ("cls", "__class__")}
        opens: Callable[..., Opening[Any]] = AsyncQueue.open
        return cls._opened(lambda: opens(**given))

    @classmethod
    def connect(
        cls, urls: str, *, token: str | None = None, tasks: "Tasks | None" = None, patience: float = 60.0
    ) -> Self:
        """Connect to a service as `Queue.connect` of ledgerq does, with the same arguments, at once."""
        return cls._opened(lambda: AsyncQueue.connect(urls, token=token, tasks=tasks, patience=patience))

    @classmethod
    def _opened(cls, opening: Callable[[], Opening[Any]]) -> Self:
        """The face of a queue that is opened on a loop in a thread of its own."""
        refuse_loop("use `async with` and Queue.open or Queue.connect of ledgerq itself")
        thread = LoopThread()
        try:
            queue = cls(thread.owner.wait(opening, "", unreceived=_close))
        except BaseException:
            thread.end()
            raise
        queue._ends_with(thread)
        return queue

    def _ends_with(self, thread: LoopThread) -> None:
        """Let `close` end its thread, too, and the end of the process close the queue."""
        self._thread = thread
        atexit.register(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the queue, as `Queue.close` does; a second call does nothing, and neither does one in a forked child.

        Calls of other threads that are on their way raise `QueueClosed`; what they had in the log's open commit is
        written.
        """
        if own_pid() != self._owner.pid:
            return
        with self._closing:
            self._close()
            if self._thread is not None:
                thread, self._thread = self._thread, None
                thread.end()
                atexit.unregister(self._at_exit)

    def _close(self) -> None:
        self._is_closed = True
        if not self._owner.loop.is_closed():
            self._owner.wait(self.asynchronous.close, "use `await` and close of the queue itself")

    def _at_exit(self) -> None:
        """Close the queue; its loop is left as it is: to end one takes a new thread, and none begins any more."""
        if own_pid() == self._owner.pid:
            self._close()

    # ------------------------------------------------------------------ what is known without a wait

    @property
    def location(self) -> str:
        """The URL it was opened by."""
        return self.asynchronous.location

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or its event loop has ended."""
        return self._is_closed or self._owner.loop.is_closed()

    @property
    def failure(self) -> LedgerError | None:
        """The error for which nothing can be written any more, or None."""
        return self.asynchronous.failure

    def options(self, queue: str) -> QueueOptions:
        """The options in force for a queue."""
        return self.asynchronous.options(queue)

    def handle(self, job_id: str) -> "Handle[Any]":
        """The handle of a job, whose `result_sync` waits for its end."""
        return self.asynchronous.handle(job_id)

    # ------------------------------------------------------------------ enqueue and read

    enqueue = blocking(AsyncQueue.enqueue)
    enqueue_many = blocking(AsyncQueue.enqueue_many)
    get = blocking(AsyncQueue.get)
    payload = blocking(AsyncQueue.payload)
    result = blocking(AsyncQueue.result)
    progress = blocking(AsyncQueue.progress)
    finished = blocking(AsyncQueue.finished)
    history = blocking(AsyncQueue.history)
    jobs = blocking(AsyncQueue.jobs)
    stats = blocking(AsyncQueue.stats)
    queues = blocking(AsyncQueue.queues)
    drained = blocking(AsyncQueue.drained)

    # ------------------------------------------------------------------ operate

    cancel = blocking(AsyncQueue.cancel)
    requeue = blocking(AsyncQueue.requeue)
    pause = blocking(AsyncQueue.pause)
    limit = blocking(AsyncQueue.limit)
    hold = blocking(AsyncQueue.hold)
    release_hold = blocking(AsyncQueue.release_hold)
    limits = blocking(AsyncQueue.limits)
    resume = blocking(AsyncQueue.resume)

    @property
    def kv(self) -> SyncValues:
        """The values of keys."""
        return SyncValues(self._owner, self._part("kv"))

    @property
    def bulk(self) -> SyncBulk:
        """Changes of many jobs at once."""
        return SyncBulk(self._owner, self._part("bulk"))

    @property
    def schedules(self) -> SyncSchedules:
        """What is enqueued again and again."""
        return SyncSchedules(self._owner, self._part("schedules"))

    def _part(self, name: str) -> Any:
        found = getattr(self.asynchronous, name, None)
        if found is None:
            raise InvalidArgument(f"{name} belongs to the process that has the store open: a connection has none")
        return found

    @contextmanager
    def transaction(self) -> Iterator[Effects]:
        """Commit what the block enqueues, sets and deletes, all of it or none, as `Queue.transaction` does.

        `t.kv.get_sync` reads.
        """
        instead = self._instead("transaction")
        refuse_loop(instead)
        queue = self.asynchronous
        effects = queue.effects()
        try:
            yield effects
        finally:
            effects.close("the transaction is over")
        if isinstance(queue, AsyncQueue):  # a connection has no effects
            self._owner.wait(lambda: queue.commit(effects), instead)

    # ------------------------------------------------------------------ claim and settle

    claim = blocking(AsyncQueue.claim)
    ack = blocking(AsyncQueue.ack)
    ack_many = blocking(AsyncQueue.ack_many)
    nack = blocking(AsyncQueue.nack)
    release = blocking(AsyncQueue.release)
    extend = blocking(AsyncQueue.extend)
    read_step = blocking(AsyncQueue.read_step)
    finish_step = blocking(AsyncQueue.finish_step)

    def _wait(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self._part(name)
        unreceived = self._give_back if name == "claim" else None
        return self._owner.wait(lambda: call(*args, **kwargs), self._instead(name), unreceived)

    async def _give_back(self, claims: "list[Claim]") -> None:
        """Release claims whose caller was interrupted just when they came."""
        words = "released: its claimer was interrupted"
        await asyncio.gather(*(self.asynchronous.release(claim, words) for claim in claims), return_exceptions=True)
