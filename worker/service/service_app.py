"""The service as an ASGI application: requests are bounded, checked and answered, in JSON or msgpack.

The order of the checks: route, token, epoch, scope, body. What a client may take is bounded here and in http_server.py:
the size of a body and the time for it, and the number of calls that wait. No error shows a payload or a credential.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

import msgspec

from ledgerq.eventlog import errors
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.process import package_version
from ledgerq.worker.metrics.asgi import ALIVE, METRICS, READY, MetricsApp
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.remote import service_errors, wire
from ledgerq.worker.remote.ops import error_body
from ledgerq.worker.remote.service_errors import NotAllowed
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.call import Call
from ledgerq.worker.service.openapi import openapi
from ledgerq.worker.service.routes import Route, find
from ledgerq.worker.service.tokens import ANYONE, Caller, is_loopback

__all__ = ["Limits", "ServiceApp"]

_log = logger("queue")
_MAX_QUERY_BYTES: Final = 4096
_MAX_QUERY_FIELDS: Final = 200
_DESCRIPTION: Final = "/v1/openapi.json"

_STATUS: Final[tuple[tuple[type[LedgerError], int], ...]] = (
    (service_errors.NotAllowed, 403),
    (errors.JobNotFound, 404),
    (errors.ResultGone, 404),
    (errors.ScheduleNotFound, 404),
    (errors.PayloadMissing, 404),
    (errors.ClaimLost, 409),
    (errors.DuplicateJobId, 409),
    (errors.UniqueKeyHeld, 409),
    (errors.InvalidState, 409),
    (errors.PayloadTooLarge, 413),
    (errors.ResultTooLarge, 413),
    (errors.InvalidArgument, 400),
    (errors.Fenced, 421),
    (errors.QueueClosed, 503),
    (errors.LogPoisoned, 503),
)

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Limits(NamedTuple):
    """What clients may take. `polls`: calls that wait, of all clients and of one token."""

    body_bytes: int = wire.MAX_BODY_BYTES
    body_s: float = 60.0
    polls: int = 4000
    polls_of_token: int = 1000


class _Refusal(Exception):
    """A request that is refused before it is a call."""

    def __init__(self, status: int, error: str, message: str, *, permanent: bool = True, close: bool = False) -> None:
        self.status = status
        self.body = wire.ErrorBody(error=error, message=message, permanent=permanent)
        self.close = close


class _Gone(Exception):
    """The client has gone: there is nobody to answer."""


class ServiceApp:
    """The application on one queue object. `callers`: by the SHA-256 of their tokens; None: anyone may do all."""

    def __init__(
        self,
        queue: Queue,
        callers: Mapping[bytes, Caller] | None = None,
        *,
        default: QueueOptions,
        queues: Mapping[str, QueueOptions] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._api = Api(queue, dict(queues or {}), default)
        self._callers = callers
        self._limits = limits or Limits()
        self._metrics = Metrics(queue)
        self._pages: MetricsApp = self._metrics.asgi
        self._polls: dict[str, int] = {}
        self._stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._description = json.dumps(openapi(package_version())).encode()

    def stop(self) -> None:
        """End the calls that wait, whose clients try elsewhere then, and answer no more of them."""
        if not self._stopping.done():
            self._stopping.set_result(None)

    def close(self) -> None:
        """Let the metrics go."""
        self._metrics.close()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI 3, http only."""
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        as_msgpack = wire.MSGPACK.encode() in headers.get(b"accept", headers.get(b"content-type", b""))
        undo: Callable[[], None] | None = None
        close = False
        try:
            status, body, kind, undo = await self._answer(scope, headers, receive, as_msgpack)
        except _Gone:
            return
        except _Refusal as refusal:
            status, close = refusal.status, refusal.close
            body, kind = _encoded(refusal.body, as_msgpack)
        except LedgerError as error:
            status = _status(error)
            body, kind = _encoded(error_body(error), as_msgpack)
        except Exception:
            _log.exception("a request failed", extra=about("request_failed"))
            status = 500
            failed = wire.ErrorBody(error="InternalError", message="the service failed: see its log", permanent=True)
            body, kind = _encoded(failed, as_msgpack)
        fields = [
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(body)),
            (wire.EPOCH_HEADER.encode(), b"%d" % self._api.ops_of.epoch),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
        ]
        if status == 401:
            fields.append((b"www-authenticate", b"Bearer"))
        if close:
            fields.append((b"connection", b"close"))
        try:
            await send({"type": "http.response.start", "status": status, "headers": fields})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
        except BaseException:
            if undo is not None:
                undo()
            raise

    async def _answer(
        self, scope: dict[str, Any], headers: dict[bytes, bytes], receive: Receive, as_msgpack: bool
    ) -> tuple[int, bytes, str, Callable[[], None] | None]:
        path, method = scope["raw_path"].decode("latin-1"), scope["method"]
        if self._callers is None:
            _refuse_pages(headers)
        if path in (METRICS, ALIVE, READY):
            return await self._page(path, scope, headers)
        found = find(path)
        caller = self._caller(headers)
        if path == _DESCRIPTION and method in ("GET", "HEAD"):
            return 200, self._description, wire.JSON, None
        if found is None:
            raise _Refusal(404, "NotFound", f"there is no such path: see {_DESCRIPTION}")
        routes, name = found
        if (route := routes.get(method)) is None:
            raise _Refusal(405, "NotFound", f"this path has {', '.join(routes)}")
        self._check_epoch(headers)
        caller.allow(route.scope)
        if len(scope["query_string"]) > _MAX_QUERY_BYTES:
            raise _Refusal(414, "InvalidArgument", f"a query has at most {_MAX_QUERY_BYTES} bytes")
        query = _query(scope["query_string"])
        body = None if route.body is None else _decoded(route.body, await self._body(headers, receive), headers)
        call = Call(caller, name, query, body)
        answer = await (self._polled(route, call, receive) if route.is_long else route.act(self._api, call))
        return 200, *_encoded(answer, as_msgpack), call.undo

    def _caller(self, headers: Mapping[bytes, bytes]) -> Caller:
        if self._callers is None:
            return ANYONE
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        caller = self._callers.get(hashlib.sha256(token.strip()).digest()) if kind.lower() == b"bearer" else None
        if caller is None:
            raise _Refusal(401, "NotAllowed", "give a token: Authorization: Bearer TOKEN")
        return caller

    def _check_epoch(self, headers: Mapping[bytes, bytes]) -> None:
        """A client that has seen a later writer must not be answered by this one, which is over and may not know it."""
        seen = headers.get(wire.EPOCH_HEADER.encode(), b"0")
        epoch = self._api.ops_of.epoch
        if not seen.isdigit() or len(seen) > 20:
            raise _Refusal(400, "InvalidArgument", f"{wire.EPOCH_HEADER} is a whole number")
        if int(seen) > epoch:
            raise _Refusal(421, "Fenced", f"this is the writer of epoch {epoch}, a later one is known", permanent=False)

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes
        too_large = _Refusal(413, "PayloadTooLarge", f"a request has at most {limit} bytes: split it")
        length = headers.get(b"content-length", b"0")
        if len(length) > 20 or not length.isdigit() or int(length) > limit:
            raise too_large
        parts: list[bytes] = []
        size_bytes = 0
        try:
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    parts.append(message.get("body", b""))
                    size_bytes += len(parts[-1])
                    if size_bytes > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            words = f"the request was not complete within {self._limits.body_s:g} s"
            raise _Refusal(408, "InvalidArgument", words, permanent=False, close=True) from None

    async def _polled(self, route: Route, call: Call, receive: Receive) -> wire.Message:
        """Run a call that may wait; it ends when its client goes, or the service stops."""
        name = call.caller.name
        mine, all_polls = self._polls.get(name, 0), sum(self._polls.values())
        if mine >= self._limits.polls_of_token or all_polls >= self._limits.polls:
            raise _Refusal(429, "TooManyCalls", "too many calls wait already", permanent=False)
        self._polls[name] = mine + 1
        working = asyncio.ensure_future(_run(route.act(self._api, call)))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            ends: set[asyncio.Future[Any]] = {working, leaving, self._stopping}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                raise _Gone
            if not working.done():
                raise _Refusal(503, "QueueClosed", "the service stops: try again", permanent=False)
            return working.result()
        except BaseException:
            # What came in the same moment has nobody who receives it either.
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            if call.undo is not None:
                call.undo()
            raise
        finally:
            leaving.cancel()
            self._polls[name] -= 1
            if not self._polls[name]:
                del self._polls[name]

    async def _page(
        self, path: str, scope: dict[str, Any], headers: dict[bytes, bytes]
    ) -> tuple[int, bytes, str, Callable[[], None] | None]:
        """The pages for monitoring: the metrics for tokens that may read everything, the other two for all."""
        if path == METRICS:
            caller = self._caller(headers)
            caller.allow("read")
            if caller.prefixes is not None:
                raise NotAllowed(f"the token {caller.name!r} is for some queues, and the metrics are of all")
        plain = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        response = await self._pages.respond({**scope, "headers": plain})
        body = response.body
        if path == READY and self._callers is not None:
            # The reasons name the store, which is for those alone who may read.
            body = b'{"ready": true}\n' if response.status == 200 else b'{"ready": false}\n'
        return response.status, body, response.content_type, None


async def _run(work: Awaitable[wire.Message]) -> wire.Message:
    return await work


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _query(text: bytes) -> dict[str, list[str]]:
    try:
        return parse_qs(text.decode("latin-1"), max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError as error:
        raise InvalidArgument(f"a query has at most {_MAX_QUERY_FIELDS} fields") from error


def _refuse_pages(headers: Mapping[bytes, bytes]) -> None:
    """Refuse what a web page of elsewhere has a browser on this machine send; only a token would tell who it is.

    Such a request names the page's origin, or has the name of its host, which was made to lead here.
    """
    host = headers.get(b"host", b"localhost").decode("latin-1")
    name = host.removeprefix("[").partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if b"origin" in headers or not is_loopback(name):
        raise _Refusal(403, "NotAllowed", "without tokens only programs on this machine are served: give --tokens FILE")


def _status(error: LedgerError) -> int:
    found = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return found if found != 500 or error.permanent else 503


def _decoded(kind: type[wire.Message], body: bytes, headers: Mapping[bytes, bytes]) -> wire.Message:
    content_type = headers.get(b"content-type", wire.JSON.encode()).partition(b";")[0].strip().lower().decode("latin-1")
    if content_type not in (wire.JSON, wire.MSGPACK):
        raise _Refusal(415, "InvalidArgument", f"content-type is {wire.JSON} or {wire.MSGPACK}")
    decode = msgspec.json.decode if content_type == wire.JSON else msgspec.msgpack.decode
    try:
        return decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # Its words name the field, and not what stands there.
        raise InvalidArgument(f"the request is no {kind.__name__}: {error}") from None


def _encoded(message: wire.Message, as_msgpack: bool) -> tuple[bytes, str]:
    if as_msgpack:
        return msgspec.msgpack.encode(message), wire.MSGPACK
    return msgspec.json.encode(message), wire.JSON
