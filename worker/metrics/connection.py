"""A client's connection to the server of server.py: requests in, answers out, each within bounds.

h11 parses and writes HTTP/1.1; this moves the bytes. What a client may take of time and memory is bounded here: the
head of a request in total, and the time for a request with its answer. A body is never read, only thrown away.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import h11

from ledgerq.eventlog.clock import SystemClock
from ledgerq.worker.metrics.asgi import Response

__all__ = ["Connection"]

_MAX_HEAD_BYTES: Final = 16 * 1024
_EXCHANGE_LIMIT_S: Final = 15.0
_KEEP_ALIVE_S: Final = 5.0
_CHUNK_BYTES: Final = 4096
_TOO_LONG: Final = 431

Respond = Callable[[dict[str, Any]], Awaitable[Response]]


class Connection:
    """A connection at work; `serve` ends when it is over.

    `waiting_since_s`: since when the client owes something (the rest of its request, that it takes its answer,
    the next request), on the loop's clock; None while its answer is being made. With `is_last` set no request follows.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, respond: Respond) -> None:
        """`respond` makes an answer from an ASGI scope, and never raises."""
        self.is_answering = False
        self.is_last = False
        self.waiting_since_s: float | None = asyncio.get_running_loop().time()
        self._reader = reader
        self._writer = writer
        self._respond = respond
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        # Only an empty buffer shows that the client has taken its answer.
        writer.transport.set_write_buffer_limits(high=0)

    async def serve(self) -> None:
        """Answer requests until the client goes or is cut off; never raises for a client's faults."""
        patience_s = _EXCHANGE_LIMIT_S
        try:
            # What the client breaks in the protocol or of the connection ends it, and so does what it does too slowly.
            with suppress(OSError, TimeoutError, h11.ProtocolError):
                while await self._exchange(patience_s):
                    patience_s = _KEEP_ALIVE_S
        finally:
            self.cut()

    def cut(self) -> None:
        """Drop the connection at once."""
        self._writer.transport.abort()

    async def _exchange(self, patience_s: float) -> bool:
        """Serve one request, whose first byte has `patience_s`; whether another one may follow."""
        async with asyncio.timeout(patience_s) as limit:
            try:
                request = await self._request(limit)
            except h11.RemoteProtocolError as error:
                await self._refuse(error.error_status_hint)
                return False
            if request is None:
                return False
            await self._answer(request)
            self.is_answering, self.waiting_since_s = False, asyncio.get_running_loop().time()
            if not self.is_last and self._http.our_state is self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
                return True
            await self._drain_input()
            return False

    async def _request(self, limit: asyncio.Timeout) -> h11.Request | None:
        """The head of the next request; None when the client has gone."""
        head_bytes = len(self._http.trailing_data[0])
        while (event := self._http.next_event()) is h11.NEED_DATA:
            room_bytes = _MAX_HEAD_BYTES - head_bytes
            if not room_bytes:
                raise h11.RemoteProtocolError("the head of the request is too long", _TOO_LONG)
            data = await self._reader.read(min(_CHUNK_BYTES, room_bytes))
            limit.reschedule(self._deadline_s())
            head_bytes += len(data)
            self._http.receive_data(data)
        if not isinstance(event, h11.Request):
            return None
        # A request without a body ends here, and only after such a one the connection is kept.
        self._http.next_event()
        return event

    def _deadline_s(self) -> float:
        since_s = self.waiting_since_s
        return (asyncio.get_running_loop().time() if since_s is None else since_s) + _EXCHANGE_LIMIT_S

    async def _answer(self, request: h11.Request) -> None:
        self.is_answering, self.waiting_since_s = True, None
        target, _, query = request.target.partition(b"?")
        scope = {
            "type": "http",
            "method": request.method.decode("latin-1"),
            "path": unquote(target.decode("latin-1")),
            "root_path": "",
            "query_string": query,
            "headers": list(request.headers),
        }
        response = await self._respond(scope)
        self.waiting_since_s = asyncio.get_running_loop().time()
        await self._send(response, with_body=request.method != b"HEAD")

    async def _refuse(self, status: int) -> None:
        """Answer a request that can't be understood with its fault, if the client is still there."""
        if self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reason = HTTPStatus(status).phrase
            await self._send(Response(status, f"{reason}\n".encode()))
            await self._drain_input()

    async def _send(self, response: Response, *, with_body: bool = True) -> None:
        date = formatdate(SystemClock().now_ms() / 1000, usegmt=True).encode()
        fields = [(b"date", date), *response.fields()]
        if self.is_last or self._http.their_state is not h11.DONE:
            fields.append((b"connection", b"close"))
        reason = HTTPStatus(response.status).phrase.encode()
        parts: list[h11.Event] = [h11.Response(status_code=response.status, headers=fields, reason=reason)]
        parts += [h11.Data(data=response.body)] if with_body else []
        # In one piece: with `writelines` of CPython 3.12 an empty part at the end is tried again without end, and a
        # full buffer holds up no `drain`.
        self._writer.write(b"".join(self._http.send(part) or b"" for part in [*parts, h11.EndOfMessage()]))
        await self._writer.drain()

    async def _drain_input(self) -> None:
        """Throw away what else the client sends, so that the system lets it read the answer before it is cut off."""
        if self._writer.can_write_eof():
            self._writer.write_eof()
        while await self._reader.read(_CHUNK_BYTES):
            pass
