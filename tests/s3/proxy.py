"""A proxy before an S3 server that knows where each request begins and ends, and lets chosen ones fail.

    proxy.plan = chosen(Fault.LOSE_ANSWER, "wal", "PUT", every=3)
    proxy.plan = at_random(seed, [Fault.DELAY, Fault.SLOW_DOWN], share=0.1)
    proxy.plan = None

It speaks as much HTTP/1.1 as S3 clients and servers do: bodies of a known length or in chunks, connections kept alive.
"""

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

__all__ = ["NETWORK_FAULTS", "Fault", "FaultProxy", "Plan", "Request", "at_random", "chosen", "fault_proxy"]

DELAY_S = 0.15
_LIMIT_BYTES = 64 * 1024 * 1024


class Fault(StrEnum):
    """What becomes of one request."""

    DELAY = "it reaches the server late"
    DROP_REQUEST = "the connection ends before the server hears of it"
    CUT_REQUEST = "the connection ends half way through the body of the request"
    LOSE_ANSWER = "the server does it, and the connection ends instead of the answer"
    CUT_ANSWER = "the server does it, and the connection ends half way through the answer"
    ERROR_500 = "500 InternalError, and the server does not hear of it"
    ERROR_500_AFTER = "the server does it, and the answer is 500 InternalError"
    ERROR_503 = "503 ServiceUnavailable"
    SLOW_DOWN = "503 SlowDown"
    CONFLICT = "409 ConditionalRequestConflict, as AWS answers while an equal request is still being served"
    DENY = "403 InvalidAccessKeyId"
    DENY_ROLE = "403 AccessDenied"
    HTML = "a page of HTML with status 200"
    GARBAGE = "bytes that are no HTTP"
    HOLD = "nothing, until the plan changes: then it goes on its way"


# What a network and a busy service do to anybody, and what must be invisible to the callers of a queue.
NETWORK_FAULTS = (
    Fault.DELAY,
    Fault.DROP_REQUEST,
    Fault.CUT_REQUEST,
    Fault.LOSE_ANSWER,
    Fault.CUT_ANSWER,
    Fault.ERROR_500,
    Fault.ERROR_500_AFTER,
    Fault.ERROR_503,
    Fault.SLOW_DOWN,
)

_ANSWERS = {
    Fault.ERROR_500: (500, "Internal Server Error", "InternalError"),
    Fault.ERROR_500_AFTER: (500, "Internal Server Error", "InternalError"),
    Fault.ERROR_503: (503, "Service Unavailable", "ServiceUnavailable"),
    Fault.SLOW_DOWN: (503, "Slow Down", "SlowDown"),
    Fault.CONFLICT: (409, "Conflict", "ConditionalRequestConflict"),
    Fault.DENY: (403, "Forbidden", "InvalidAccessKeyId"),
    Fault.DENY_ROLE: (403, "Forbidden", "AccessDenied"),
}


class Request(NamedTuple):
    """What a plan may go by. `kind` is the folder within the store (wal, manifest, compacted, ...), or `anchor`."""

    method: str
    path: str
    kind: str
    is_conditional: bool
    body_bytes: int


Plan = Callable[[Request], Fault | None]


def chosen(fault: Fault, kind: str = "", method: str = "", *, every: int = 1, times: int | None = None) -> Plan:
    """Each `every`-th request of that kind and method meets the fault, so many times; an empty text means any."""
    seen = met = 0

    def plan(request: Request) -> Fault | None:
        nonlocal seen, met
        if (kind and request.kind != kind) or (method and request.method != method):
            return None
        seen += 1
        if seen % every or met == times:
            return None
        met += 1
        return fault

    return plan


def at_random(seed: int, faults: Sequence[Fault], *, share: float) -> Plan:
    """A `share` of all requests meets one of the faults."""
    rng = random.Random(seed)
    return lambda request: rng.choice(faults) if rng.random() < share else None


class FaultProxy:
    """The proxy; `plan` gives each request's fault. `met` counts faults by kind; `seen` requests by kind and method."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._plan: Plan | None = None
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.met: Counter[Fault] = Counter()
        self.met_kinds: Counter[tuple[Fault, str]] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.port = 0

    @property
    def endpoint(self) -> str:
        """The URL that leads through it."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def plan(self) -> Plan | None:
        """What happens to each request that comes; None: nothing."""
        return self._plan

    @plan.setter
    def plan(self, plan: Plan | None) -> None:
        self._plan = plan
        self._changed.set()
        self._changed = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a client's connection; it is served by a task of its own, until either side or a fault ends it."""
        task = asyncio.create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while head := await _head(reader):
                if there is None:
                    there = await asyncio.open_connection("127.0.0.1", self._target_port, limit=_LIMIT_BYTES)
                if not await self._serve(head, reader, writer, *there):
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for end in (writer, there[1] if there is not None else writer):
                end.transport.abort()

    async def close(self) -> None:
        """Cut every connection, and wait until nothing of it is left."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self,
        head: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        there_reader: asyncio.StreamReader,
        there_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; False when the connection has to end."""
        # A client that waits for leave to send its body would wait for ever: the answer comes only after the body.
        if _field(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(head, reader)
        request = _request(head, body)
        self.seen[request.kind, request.method] += 1
        fault = self._plan(request) if self._plan is not None else None
        if fault is not None:
            self.met[fault] += 1
            self.met_kinds[fault, request.kind] += 1
        if fault is Fault.DELAY:
            await asyncio.sleep(DELAY_S)
        while fault is Fault.HOLD:
            await self._changed.wait()
            fault = self._plan(request) if self._plan is not None else None
        if fault is Fault.DROP_REQUEST:
            return False
        if fault is Fault.CUT_REQUEST:
            there_writer.write(head + body[: len(body) // 2])
            await there_writer.drain()
            return False
        if fault in _ANSWERS and fault is not Fault.ERROR_500_AFTER:
            return await _answer(writer, _error(fault, request.method))
        if fault is Fault.HTML:
            return await _answer(writer, _HTML)
        if fault is Fault.GARBAGE:
            await _answer(writer, b"\x16\x03\x01 this is no HTTP at all\r\n\r\n")
            return False
        there_writer.write(_without_expect(head) + body)
        await there_writer.drain()
        answer_head = await _head(there_reader)
        if not answer_head:
            return False
        answer_body = await _answer_body(answer_head, request.method, there_reader)
        if fault is Fault.LOSE_ANSWER:
            return False
        goes_on = _field(answer_head, b"connection").lower() != b"close" and not answer_head.startswith(b"HTTP/1.0")
        if fault is Fault.ERROR_500_AFTER:
            return await _answer(writer, _error(fault, request.method)) and goes_on
        if fault is Fault.CUT_ANSWER:
            whole = answer_head + answer_body
            # Half of the body; where there is none, half of the head.
            cut_at = len(answer_head) + len(answer_body) // 2 if answer_body else len(answer_head) // 2
            await _answer(writer, whole[:cut_at])
            return False
        await _answer(writer, answer_head + answer_body)
        return goes_on


@contextlib.asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A proxy on a free port of the loopback interface."""
    proxy = FaultProxy(target_port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0, limit=_LIMIT_BYTES)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


_PAGE = b"<!DOCTYPE html><html><body><h1>It works!</h1></body></html>"
_HTML = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(_PAGE), _PAGE)


def _error(fault: Fault, method: str) -> bytes:
    status, reason, code = _ANSWERS[fault]
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{fault}</Message></Error>'.encode()
    )
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else text)


async def _answer(writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(data)
    await writer.drain()
    return True


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Up to the empty line; nothing when the connection ended before it began."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return b""


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """As it was sent, chunk by chunk if it came so."""
    if _field(head, b"transfer-encoding").lower() != b"chunked":
        return await reader.readexactly(int(_field(head, b"content-length") or b"0"))
    pieces: list[bytes] = []
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        pieces += [line, await reader.readexactly(size + 2)]
    return b"".join(pieces)


async def _answer_body(head: bytes, method: str, reader: asyncio.StreamReader) -> bytes:
    status = int(head.split(b" ", 2)[1])
    if method == "HEAD" or status in (204, 304):
        return b""
    if _field(head, b"content-length") or _field(head, b"transfer-encoding"):
        return await _body(head, reader)
    return await reader.read()


def _field(head: bytes, name: bytes) -> bytes:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return b""


def _without_expect(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:")]
    return b"\r\n".join(lines)


def _request(head: bytes, body: bytes) -> Request:
    method, target, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    path = target.partition("?")[0]
    parts = path.strip("/").split("/")
    folders = [part for part in parts if part in ("wal", "manifest", "compacted", "compactions", "gc")]
    kind = folders[0] if folders else "anchor" if parts[-1] == "anchor" else "other"
    is_conditional = bool(_field(head, b"if-none-match") or _field(head, b"if-match"))
    return Request(method, path, kind, is_conditional, len(body))
