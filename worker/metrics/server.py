"""A small HTTP server, by h11, for the pages of asgi.py, on the event loop that starts it.

Clients are bounded: in number, in the size of a request's head, and in the time for a request with its answer.
When there are too many, the connection whose client has been waited for longest is dropped for the new one, so that no
number of slow clients keeps a scrape out. There is no authentication.
"""

import asyncio
import socket
from types import TracebackType
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.worker.metrics.asgi import MetricsApp
from ledgerq.worker.metrics.connection import Connection

__all__ = ["MetricsServer", "start_server"]

_log = logger("worker")

_MAX_CONNECTIONS: Final = 100
_CLOSE_LIMIT_S: Final = 1.0
_BACKLOG_CONNECTIONS: Final = 128
_BUFFER_BYTES: Final = 16 * 1024
_MAX_PORT: Final = 65_535


class MetricsServer:
    """A running server. `port` is the one it listens on, `url` that of its pages; `close` it, or use `async with`."""

    def __init__(self, app: MetricsApp, host: str, sockets: list[socket.socket]) -> None:
        """Use `start_server`."""
        self.host = host
        self.port: int = sockets[0].getsockname()[1]
        self._app = app
        self._sockets = sockets
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()
        self._listening = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="ledgerq-metrics")

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at its end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def _run(self) -> None:
        servers: list[asyncio.Server] = []
        try:
            for listening in self._sockets:
                serving = asyncio.start_server(
                    self._connected, sock=listening, limit=_BUFFER_BYTES, backlog=_BACKLOG_CONNECTIONS
                )
                servers.append(await serving)
            self._listening.set()
            await self._closing.wait()
            for server in servers:
                server.close()
            await self._finish()
        except Exception:
            _log.exception("the metrics at %s are not served any more", self.url, extra=about("metrics_failed"))
        finally:
            for server in servers:
                server.close()
            for listening in self._sockets:
                listening.close()
            for connection in self._connections:
                connection.cut()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self._app.respond)
        if self._closing.is_set():
            connection.cut()
            return
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._drop_slowest()
        self._connections.add(connection)
        task = asyncio.create_task(connection.serve(), name="ledgerq-metrics-client")
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._ended(connection, done))

    def _drop_slowest(self) -> None:
        """Drop the connection whose client has been waited for for longest; one being answered only if all are."""
        since = {one: one.waiting_since_s for one in self._connections}
        waiting = [one for one, since_s in since.items() if since_s is not None] or list(since)
        slowest = min(waiting, key=lambda one: since[one] or 0.0)
        slowest.cut()
        # It is not counted any more, though its task ends only in a later turn of the loop.
        self._connections.remove(slowest)

    def _ended(self, connection: Connection, task: "asyncio.Task[None]") -> None:
        self._connections.discard(connection)
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a request for metrics failed", exc_info=error, extra=about("metrics_failed"))

    async def _finish(self) -> None:
        """Let answers that are on their way be taken, for a moment; then cut what is left."""
        for connection in self._connections:
            connection.is_last = True
            if not connection.is_answering:
                connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT_S)

    async def listening(self) -> None:
        """Wait until the server answers."""
        up = asyncio.ensure_future(self._listening.wait())
        try:
            await asyncio.wait({up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        finally:
            up.cancel()

    async def close(self) -> None:
        """Stop listening; answers on their way have a second. A second call waits for the first."""
        self._closing.set()
        await asyncio.wait({self._task})

    async def __aenter__(self) -> "MetricsServer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def start_server(app: MetricsApp, host: str, port: int) -> MetricsServer:
    """Serve the pages of `app`; returns when it listens. Port 0 is a free one: see the result's `port`.

    Raises `InvalidArgument` when that address can't be listened on.
    """
    server = MetricsServer(app, host, await _listen(host, port))
    await server.listening()
    return server


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for every address of `host`, on one port."""
    if not isinstance(host, str) or not host:
        raise InvalidArgument(f"host is a name or an address, for instance 127.0.0.1 or ::, not {host!r}")
    if type(port) is not int or not 0 <= port <= _MAX_PORT:
        raise InvalidArgument(f"port is a whole number from 0 (any free one) to {_MAX_PORT}, not {port!r}")
    sockets: list[socket.socket] = []
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listening = socket.socket(family, kind, protocol)
            sockets.append(listening)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.setblocking(False)
            listening.bind((address[0], sockets[0].getsockname()[1] or port, *address[2:]))
    except (OSError, UnicodeError) as error:
        for listening in sockets:
            listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidArgument(
            f"metrics can't be served at {host} port {port}: {reason}; choose another host or port (0: any free one)"
        ) from error
    return sockets
