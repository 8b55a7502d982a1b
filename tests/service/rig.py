"""A rig whose queue is a client: the real queue is served over a loopback socket, in the same process.

    async with RemoteRig() as rig:
        await rig.queue.enqueue("q", b"x")

`rig.local` is the queue behind it, and what `Rig` proves at its end is proven here, too.
"""

from types import TracebackType
from typing import Any

from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.remote.remote_queue import RemoteQueue, connect
from ledgerq.worker.service.http_server import Server
from ledgerq.worker.service.service_app import ServiceApp
from ledgerq.worker.tasks.registry import Tasks
from tests.support.rig import Rig

__all__ = ["RemoteRig"]


class RemoteRig(Rig):
    """A client with its service, store and clock; `options` are those of `Queue.open`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.local: Queue
        self.server: Server
        self.remote: RemoteQueue
        self._tasks: Tasks | None = None

    async def open(self, **options: Any) -> Queue:
        """Open the queue, serve it and connect to it."""
        given = self._options | options
        self._tasks = given.get("tasks") or self._tasks
        self.local = await super().open(**options | ({"tasks": None} if "tasks" in given else {}))
        default, queues = given.get("default", QueueOptions()), given.get("queues")
        self.server = await Server.start(ServiceApp(self.local, default=default, queues=queues))
        opening = connect(
            self.server.url, token=None, tasks=self._tasks, patience=20.0, clock=self.clock, entropy=self.entropy
        )
        self.remote = await opening
        self.queue = self.remote  # type: ignore[assignment]
        return self.queue

    async def _end(self) -> None:
        await self.remote.close()
        await self.server.close()
        self.queue = self.local

    async def reopen(self, **options: Any) -> Queue:
        """Close client, service and queue, and open them again."""
        await self._end()
        return await super().reopen(**options)

    async def crash(self, **options: Any) -> Queue:
        """Lose the service's process, with all that was not durable, and open the queue again."""
        await self._end()
        return await super().crash(**options)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()
        await super().__aexit__(kind, error, traceback)
