"""The writer of a shared store: a queue in this process, served to the store's other processes over its socket."""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import Entropy
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.single_writer.hold import current_writer
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.stores import open_store
from ledgerq.worker.engine.core import open_core
from ledgerq.worker.engine.scheduling import begin_ticks
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.http_server import Server
from ledgerq.worker.service.own_calls import own_call
from ledgerq.worker.service.service_app import Limits, ServiceApp
from ledgerq.worker.sharing.socket_file import SocketFile

if TYPE_CHECKING:
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["Owner", "Settings", "serve_socket"]

# All clients are of one user, and each waits for something nearly all the time.
_LIMITS: Final = Limits(polls_of_token=Limits().polls)


class Settings(NamedTuple):
    """What the writer of a shared store opens it with; see `Queue.open`."""

    url: str
    default: QueueOptions
    queues: Mapping[str, QueueOptions] | None
    ready_window: int
    commit_interval_ms: float | None
    clock: Clock
    entropy: Entropy | None
    store_options: StoreOptions | None
    accept_rollback: bool
    tasks: "Tasks | None"


async def serve_socket(
    ending: AsyncExitStack,
    file: SocketFile,
    queue: Queue,
    default: QueueOptions,
    queues: Mapping[str, QueueOptions] | None,
) -> None:
    """Serve a queue on its store's socket until `ending` ends."""
    ending.push_async_callback(asyncio.to_thread, file.remove)
    server = Server(ServiceApp(queue, None, default=default, queues=queues, limits=_LIMITS), file.listening)
    ending.push_async_callback(server.close)


class Owner:
    """The writer, opened: use `open`."""

    def __init__(self, queue: Queue, api: Api, ending: AsyncExitStack) -> None:
        self.queue = queue
        self.over = asyncio.Event()
        """Set when it can write no more, or is closed."""
        self._api = api
        self._ending = ending
        queue.on_failure.append(lambda _: self.over.set())
        if queue.failure is not None:
            self.over.set()

    @classmethod
    async def open(cls, settings: Settings) -> "Owner":
        """Open the store, as its one writer, and serve it. Raises `StoreInUse` while it has another."""
        url, clock = settings.url, settings.clock
        location = parse_location(url)
        # This makes no file, as opening would.
        if (writer := await current_writer(location, clock)) is not None:
            raise writer
        store = await open_store(url, clock=clock, options=settings.store_options, share=True)
        async with AsyncExitStack() as ending:
            ending.push_async_callback(store.close)
            # Before the queue is ready, so that clients find it and wait.
            file = await asyncio.to_thread(SocketFile, location.folder)
            ending.push_async_callback(asyncio.to_thread, file.remove)
            core = await open_core(
                url,
                store,
                None,
                take_over=False,
                wait=0.0,
                accept_rollback=settings.accept_rollback,
                default=settings.default,
                queues=settings.queues,
                ready_window=settings.ready_window,
                commit_interval_ms=settings.commit_interval_ms,
                clock=clock,
                entropy=settings.entropy,
            )
            queue = Queue(core)
            ending.push_async_callback(queue.close)
            await begin_ticks(core, settings.tasks)
            await serve_socket(ending, file, queue, settings.default, settings.queues)
            return cls(queue, Api(queue, dict(settings.queues or {}), settings.default), ending.pop_all())

    @property
    def epoch(self) -> int:
        """The epoch of this writer."""
        return self._api.ops_of.epoch

    async def call(self, method: str, path: str, data: bytes | None, query: Mapping[str, Any] | None) -> bytes:
        """The answer to a call of this process."""
        return await own_call(self._api, method, path, data, query)

    async def close(self) -> None:
        """Let calls on their way be answered, then close the queue, and with it the store."""
        self.over.set()
        await self._ending.aclose()
