"""The HTTP server of the service: uvicorn with httptools, on the event loop of the queue, with guarded connections.

A connection is cut that does not send the head of a request in time, or one too long, or does not take its answer;
above the limit of connections a new one is cut at once.
"""

import asyncio
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.service.service_app import ServiceApp
from ledgerq.worker.service.tokens import is_loopback

__all__ = ["Guarded", "Server", "check_address", "parse_address"]

_MAX_HEAD_BYTES: Final = 32 * 1024
_HEAD_LIMIT_S: Final = 15.0
_TAKE_LIMIT_S: Final = 30.0
_KEEP_ALIVE_S: Final = 75
_MAX_CONNECTIONS: Final = 2000
_CLOSE_LIMIT_S: Final = 5
_BACKLOG: Final = 512


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, of an IPv6 address as `[HOST]:PORT`."""
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidArgument(f"an address to listen on is HOST:PORT, as in 127.0.0.1:8420, not {text!r}")
    return host, int(port)


def check_address(host: str, *, has_tokens: bool) -> None:
    """Refuse an address that others than this machine can reach, unless there are tokens."""
    if not is_loopback(host) and not has_tokens:
        raise InvalidArgument(
            f"{host} can be reached from other machines, and without tokens anyone there may do everything: "
            "give --tokens FILE, or listen on 127.0.0.1"
        )


class Guarded(HttpToolsProtocol):
    """A connection that is cut when its client takes too much."""

    max_connections = _MAX_CONNECTIONS
    head_limit_s = _HEAD_LIMIT_S
    max_head_bytes = _MAX_HEAD_BYTES
    take_limit_s = _TAKE_LIMIT_S

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = True
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        _connections.add(self)
        if len(self.connections) > self.max_connections:
            transport.abort()
            return
        self._await_head()

    def _await_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        if self._late is None:
            self._late = self.loop.call_later(self.head_limit_s, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        for timer in (self._late, self._stuck):
            if timer is not None:
                timer.cancel()
        self._late = self._stuck = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bound the head of a request, which the parser would gather without an end."""
        super().data_received(data)
        if self._late is None and not self._in_head and not self._in_body and self._is_idle:
            self._await_head()  # empty lines begin no request, and have ended the wait for one
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_head_bytes:
                self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        """Whether all requests that began are answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_message_begin(self) -> None:
        """The next request begins."""
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._in_head, self._in_body = False, True
        self._in_time()
        super().on_headers_complete()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def on_message_complete(self) -> None:
        """The body is there, too."""
        self._in_body = False
        self._in_time()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The answer is made: what is left of a body that nobody reads is thrown away, but not for long."""
        if self._in_body and self._late is None:
            self._late = self.loop.call_later(self.head_limit_s, self.transport.abort)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it is made."""
        super().pause_writing()
        self._stuck = self.loop.call_later(self.take_limit_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()


# Of this process: a forked child has copies, by which clients would wait for it when this process is gone.
_listening: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_connections: weakref.WeakSet[Guarded] = weakref.WeakSet()


def _forked() -> None:
    """Give up the copies of a forked child; their numbers stay taken, since what closes them is inherited, too."""
    numbers = [one.fileno() for one in [*_listening]]
    numbers += [one.transport.get_extra_info("socket").fileno() for one in [*_connections]]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in numbers:
        if number >= 0:
            with suppress(OSError):
                os.dup2(null, number, inheritable=False)
    os.close(null)


os.register_at_fork(after_in_child=_forked)


class _Uvicorn(uvicorn.Server):
    """The server without handlers of signals: the command has its own."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class Server:
    """A running server of one application: `await Server.start(...)`, and `close`."""

    def __init__(
        self, app: ServiceApp, listening: socket.socket, protocol: type[HttpToolsProtocol] | None = None
    ) -> None:
        """Serve on this socket, which is the server's from now on."""
        self.app = app
        self._address = listening.getsockname()
        _listening.add(listening)
        config = uvicorn.Config(
            app,
            http=protocol or Guarded,
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_LIMIT_S,
            backlog=_BACKLOG,
        )
        self._server = _Uvicorn(config)
        self._task = asyncio.create_task(self._server.serve([listening]), name="ledgerq-serve")

    @classmethod
    async def start(
        cls, app: ServiceApp, host: str = "127.0.0.1", port: int = 0, *, protocol: type[HttpToolsProtocol] | None = None
    ) -> "Server":
        """Listen at this address; port 0 is any free one. Raises `InvalidArgument` when that can't be."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # By its number, or the event loop leaves small answers to wait for acknowledgements.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.setblocking(False)
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            listening.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise InvalidArgument(f"the service can't listen at {host} port {port}: {reason}") from error
        listening.listen(_BACKLOG)  # who comes before the loop is there waits
        return cls(app, listening, protocol)

    @property
    def port(self) -> int:
        """The port that it listens on, where it has one."""
        return int(self._address[1])

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = self._address[0]
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    async def close(self) -> None:
        """Stop listening, end calls that wait, let the others be answered."""
        self.app.stop()
        self._server.should_exit = True
        await asyncio.wait({self._task})
        self.app.close()
