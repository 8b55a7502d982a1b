"""A small HTTP server for the pages of metrics_http.py, on the event loop that starts it; uvicorn speaks the protocol.

Whoever connects is bounded: in number, in the size of a request's head, and in the time for a request with its answer.
There is no authentication.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final

from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.logs import about, logger

__all__ = ["MetricsServer", "start_server"]

_log = logger("worker")

_MAX_CONNECTIONS: Final = 100
_MAX_HEAD_BYTES: Final = 16 * 1024
_EXCHANGE_LIMIT_S: Final = 15.0
_KEEP_ALIVE_S: Final = 5
_CLOSE_LIMIT_S: Final = 1
_CLOSE_POLL_S: Final = 0.02
_BACKLOG_CONNECTIONS: Final = 128
_MAX_PORT: Final = 65_535


class _Connection(H11Protocol):
    """One client. Uvicorn waits without end for a request to come and for its answer to be taken; this doesn't."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > _MAX_CONNECTIONS:
            transport.abort()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._arm()
        super().on_response_complete()

    def _arm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(_EXCHANGE_LIMIT_S, self.transport.abort)


class _Server(Server):
    """Uvicorn's server as a part of a program: it leaves signals alone, and ends however its clients behave."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the program's."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As it is, and tells when it listens."""
        await super().startup(sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let answers that are on their way be taken, for a moment; then cut what is left."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            try:
                connection.shutdown()
            except Exception:  # it was in the midst of refusing nonsense
                connection.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_LIMIT_S):
                await self._all_gone()
        self.cut()
        await asyncio.sleep(0)
        await super().shutdown(sockets)

    async def _all_gone(self) -> None:
        while self.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(_CLOSE_POLL_S)

    def cut(self) -> None:
        """Drop every connection at once."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class MetricsServer:
    """A server at work. `port` is the one it listens on, `url` where its pages are; `close` it, or use `async with`."""

    def __init__(self, server: _Server, host: str, sockets: list[socket.socket]) -> None:
        """Use `start_server`."""
        self.host = host
        self.port: int = sockets[0].getsockname()[1]
        self._server = server
        self._sockets = sockets
        self._task = asyncio.create_task(self._run(), name="ledgerq-metrics")

    @property
    def url(self) -> str:
        """`http://host:port`, without a slash at its end."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    async def _run(self) -> None:
        try:
            await self._server.serve(sockets=self._sockets)
        except Exception:
            _log.exception("the metrics at %s are not served any more", self.url, extra=about("metrics_failed"))
        finally:
            self._server.cut()
            for listening in self._sockets:
                listening.close()

    async def listening(self) -> None:
        """Return when it answers."""
        up = asyncio.ensure_future(self._server.is_up.wait())
        try:
            await asyncio.wait({up, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            self._task.cancel()
            raise
        finally:
            up.cancel()

    async def close(self) -> None:
        """Listen no more; answers on their way have a second. A second call waits for the first."""
        self._server.should_exit = True
        await asyncio.wait({self._task})

    async def __aenter__(self) -> "MetricsServer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


async def start_server(app: Any, host: str, port: int) -> MetricsServer:
    """Serve the ASGI application `app`; returns when it listens. Port 0 is a free one: the result says which.

    Raises `InvalidArgument` when that place can't be listened on.
    """
    sockets = await _listen(host, port)
    config = Config(
        app,
        http=_Connection,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=_BACKLOG_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CLOSE_LIMIT_S,
        h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
    )
    server = MetricsServer(_Server(config), host, sockets)
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
