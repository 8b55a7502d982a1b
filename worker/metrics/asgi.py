"""The ASGI application of the pages that monitoring reads: `/metrics`, `/healthz`, `/readyz`.

It needs no framework and can be mounted in one. Readiness is checked in readiness.py; server.py serves
this on a port of its own.
"""

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.eventlog.runtime.log_records import LogThrottle, about, logger
from ledgerq.eventlog.runtime.printable import printable, printable_json

__all__ = ["MetricsApp", "Response", "gzip_wanted", "render"]

_log = logger("worker")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Encoder = Callable[[Collector], bytes]
Readiness = Callable[[], Awaitable[list[str]]]
Headers = list[tuple[bytes, bytes]]

METRICS: Final = "/metrics"
ALIVE: Final = "/healthz"
READY: Final = "/readyz"
# Encoding a sample takes 5 to 10 microseconds, and other tasks want their turn within a millisecond.
_SLICE_SAMPLES: Final = 50
_SLICE_S: Final = 0.0005
# Beyond this a thread compresses, which leaves the loop alone meanwhile.
_INLINE_GZIP_BYTES: Final = 64 * 1024
_GZIP_LEVEL: Final = 1
_MAX_QUERY_BYTES: Final = 8 * 1024
_OTHER_LOOP_LIMIT_S: Final = 5.0
_REFRESH_LIMIT_S: Final = 1.0
_TEXT: Final = "text/plain; charset=utf-8"
_OWN_SUFFIXES: Final = ("_created", "_gsum", "_gcount")
_EOF: Final = b"# EOF\n"


class Response(NamedTuple):
    """The answer to a request; `headers` without the length, which follows from `body`."""

    status: int
    body: bytes
    content_type: str = _TEXT
    headers: Headers = []  # noqa: RUF012 - it is never changed

    def fields(self) -> Headers:
        """All header fields."""
        length = str(len(self.body)).encode()
        return [(b"content-type", self.content_type.encode()), (b"content-length", length), *self.headers]


class MetricsApp:
    """The application. `readiness` gives the reasons why the service is not ready, one line each.

    `refresh` brings up to date what a scrape can't read by itself; it is awaited for a second at most. All work is
    done on the loop that made this, whichever loop the server that it is mounted in runs on.
    """

    def __init__(
        self, registry: CollectorRegistry, readiness: Readiness, refresh: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._registry = registry
        self._readiness = readiness
        self._refresh = refresh
        self._loop = running_loop()
        self._rendering = asyncio.Lock()
        self._throttle = LogThrottle()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3: http, lifespan, and a refusal of websockets."""
        match scope["type"]:
            case "http":
                response = await self._on_own_loop(scope)
                await send({"type": "http.response.start", "status": response.status, "headers": response.fields()})
                body = b"" if scope["method"] == "HEAD" else response.body
                await send({"type": "http.response.body", "body": body})
            case "lifespan":
                await _answer_lifespan(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})
            case other:
                raise ValueError(f"the ASGI scope {other!r} is none that is served here")

    async def _on_own_loop(self, scope: Scope) -> Response:
        if asyncio.get_running_loop() is self._loop:
            return await self.respond(scope)
        if self._loop.is_closed():
            return Response(503, b"the event loop that this watched has ended\n")
        answer = asyncio.run_coroutine_threadsafe(self.respond(scope), self._loop)
        try:
            async with asyncio.timeout(_OTHER_LOOP_LIMIT_S):
                return await asyncio.wrap_future(answer)
        except TimeoutError:
            return Response(503, b"the event loop that this watches does not answer\n")

    async def respond(self, scope: Scope) -> Response:
        """The answer to one request; never raises."""
        path, method = _path(scope), scope["method"]
        if path not in (METRICS, ALIVE, READY):
            return Response(404, f"not here: there are {METRICS}, {ALIVE} and {READY}\n".encode())
        if method not in ("GET", "HEAD"):
            return Response(405, b"only GET and HEAD\n", headers=[(b"allow", b"GET, HEAD")])
        try:
            if path == METRICS:
                return await self._metrics(scope)
            if path == READY:
                return _ready(await self._readiness())
        except Exception as error:
            if self._throttle.may(round(self._loop.time() * 1000)):
                left_out = self._throttle.take_left_out()
                _log.exception("%s can't be answered%s", path, left_out, extra=about("metrics_failed"))
            text = printable(" ".join(f"{type(error).__name__}: {error}".split()))
            return Response(500, f"{path} can't be answered: {text}\n".encode())
        return Response(200, b"ok\n", headers=[(b"cache-control", b"no-store")])

    async def _metrics(self, scope: Scope) -> Response:
        if len(scope.get("query_string", b"")) > _MAX_QUERY_BYTES:
            return Response(414, f"a query has at most {_MAX_QUERY_BYTES} bytes here\n".encode())
        names = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("name[]")
        headers = _joined(scope["headers"])
        encoder, content_type = _encoder(headers.get(b"accept", ""))
        source: Any = self._registry if names is None else self._registry.restricted_registry(names)
        # One at a time: many readers at once share the loop fairly with all other tasks.
        async with self._rendering:
            if self._refresh is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_REFRESH_LIMIT_S):
                        await self._refresh()
            body = await render(source, encoder)
        fields: Headers = [(b"cache-control", b"no-store"), (b"vary", b"accept, accept-encoding")]
        if gzip_wanted(headers.get(b"accept-encoding", "")):
            fields.append((b"content-encoding", b"gzip"))
            if len(body) > _INLINE_GZIP_BYTES:
                body = await asyncio.to_thread(gzip.compress, body, _GZIP_LEVEL)
            else:
                body = gzip.compress(body, _GZIP_LEVEL)
        return Response(200, body, content_type, fields)


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    """Answer lifespan events with nothing to do: serving begins and ends with the queue, not with the outer server."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _path(scope: Scope) -> str:
    """The path below the mount point; mounted as `/metrics` the application answers there, too.

    By the standard `path` begins with `root_path`; some servers and frameworks leave that away.
    """
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    path = path.rstrip("/")
    return METRICS if root and not path else path


def _ready(reasons: list[str]) -> Response:
    body = printable_json(json.dumps({"ready": not reasons, "reasons": reasons}, ensure_ascii=False)) + "\n"
    fields: Headers = [(b"cache-control", b"no-store")]
    return Response(503 if reasons else 200, body.encode(errors="replace"), "application/json", fields)


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, str]:
    """Fields by lower-case name; those that were repeated are one list, as HTTP has it."""
    joined: dict[bytes, str] = {}
    for name, value in headers:
        name, text = name.lower(), value.decode("latin-1")
        joined[name] = f"{joined[name]}, {text}" if name in joined else text
    return joined


def _encoder(accept: str) -> tuple[Encoder, str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):
        return choose_encoder("")  # a version that is no number


def gzip_wanted(accept_encoding: str) -> bool:
    """Whether the `Accept-Encoding` field asks for gzip: by name, and not with a quality of 0."""
    for accepted in accept_encoding.split(","):
        name, *parameters = (part.strip().lower() for part in accepted.split(";"))
        if name in ("gzip", "x-gzip"):
            quality = next((part[2:] for part in parameters if part.startswith("q=")), "1")
            return quality.strip("0.") != ""
    return False


async def render(source: Collector, encoder: Encoder) -> bytes:
    """The text that `encoder` makes of all of `source`, in slices that leave the loop to others in between.

    All metrics are gathered before the first one is encoded, so that they are of one moment.
    """
    loop = asyncio.get_running_loop()
    families = list(source.collect())
    parts: list[bytes] = []
    began_s = loop.time()
    for family in families:
        for part in _encoded(family, encoder):
            parts.append(part)
            if loop.time() - began_s > _SLICE_S:
                await asyncio.sleep(0)
                began_s = loop.time()
    ends = encoder(_Some([])) == _EOF
    return b"".join([*parts, _EOF] if ends else parts)


class _Some(Collector):
    """A registry that holds just these metrics."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """These metrics."""
        return self._families


def _encoded(family: Metric, encoder: Encoder) -> Iterator[bytes]:
    """A family's lines, a slice at a time: only the first one has the lines above the samples."""
    samples = family.samples
    # Text has the creation times as metrics of their own after the others, so such a family stays whole.
    if len(samples) <= _SLICE_SAMPLES or any(sample.name.endswith(_OWN_SUFFIXES) for sample in samples):
        yield encoder(_Some([family])).removesuffix(_EOF)
        return
    for at in range(0, len(samples), _SLICE_SAMPLES):
        part = Metric(family.name, family.documentation, family.type, family.unit)
        part.samples = samples[at : at + _SLICE_SAMPLES]
        text = encoder(_Some([part])).removesuffix(_EOF)
        while at and text.startswith(b"# "):
            text = text[text.index(b"\n") + 1 :]
        yield text
