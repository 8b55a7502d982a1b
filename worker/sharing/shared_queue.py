"""The queue of several processes: `Queue.open(url, share=True)`. The first is the store's writer, the others call it.

    async with Queue.open("jobs", share=True) as queue:
        await queue.enqueue("mail", b"hello")

When the writer ends, however it does, one of the others takes the store over. All of them have the same methods, those
of a client (remote/remote_queue.py). Next: shared_transport.py, which finds the writer.
"""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.entropy import Entropy, SystemEntropy
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.single_writer.hold import check_wait
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.remote.remote_queue import RemoteQueue
from ledgerq.worker.remote.service_errors import ServiceUnavailable
from ledgerq.worker.sharing.owner import Settings
from ledgerq.worker.sharing.shared_transport import SharedTransport

if TYPE_CHECKING:
    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["Settings", "SharedQueue", "open_shared"]

_log = logger("queue")
_PATIENCE_S: Final = 60.0
_HEARTBEAT_S: Final = 1.0
_FOLLOW_AGAIN_S: Final = 1.0


class SharedQueue(RemoteQueue):
    """The queue on a store that several processes of this machine have open. Not made by users: see `Queue.open`."""

    def __init__(self, transport: SharedTransport, location: str, clock: Clock, entropy: Entropy) -> None:
        super().__init__(transport, location, clock, entropy, _HEARTBEAT_S)
        self._shared = transport
        self._following: asyncio.Task[None] | None = None

    @property
    def is_writer(self) -> bool:
        """Whether this process is the store's writer now."""
        return self._shared.owner is not None

    async def begin(self, tasks: "Tasks | None") -> None:
        """Find the writer, or become it."""
        await super().begin(tasks)
        self._shared.begun()
        self._following = asyncio.create_task(self._follow(), name="ledgerq-follow")

    async def close(self) -> None:
        """End it; where this process is the writer, close the store, once calls on their way are answered."""
        self._shared.check_owner()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await super().close()

    async def _follow(self) -> None:
        """Notice the writer's end, so that a process without calls takes the store over, too: its schedules go on."""
        throttle, loop = LogThrottle(), asyncio.get_running_loop()
        while True:
            try:
                await self._shared.follow()
            except LedgerError as error:
                if throttle.may(round(loop.time() * 1000)):
                    words = self.location, error, throttle.take_left_out()
                    _log.warning("%s has no writer: %s%s", *words, extra=about("shared_writer"))
                await asyncio.sleep(_FOLLOW_AGAIN_S)


def open_shared(
    settings: Settings, wait: float | None, refused: dict[str, Any], patience_s: float = _PATIENCE_S
) -> Opening[SharedQueue]:
    """The queue on a shared store; `refused`: arguments of `Queue.open` that can't be given with `share`."""
    if given := [name for name, value in refused.items() if value]:
        raise InvalidArgument(f"share=True can't be combined with {', '.join(given)}: one process alone opens it so")
    location = parse_location(settings.url)
    if not location.is_file:
        raise InvalidArgument(
            f"{location.original}: only a store in a folder of this machine can be shared; serve another kind with "
            "`ledgerq serve`, and connect with Queue.connect"
        )
    check_wait(take_over=False, wait=wait)

    async def make() -> SharedQueue:
        running_loop()
        transport = SharedTransport(settings, location.folder, wait, patience_s)
        queue = SharedQueue(transport, settings.url, settings.clock, settings.entropy or SystemEntropy())
        try:
            while True:
                try:
                    await queue.begin(settings.tasks)
                except ServiceUnavailable:
                    if not transport.waits:
                        raise
                else:
                    return queue
        except BaseException:
            with suppress(LedgerError):
                await queue.close()
            raise

    return Opening(make)
