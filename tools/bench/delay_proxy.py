"""A proxy before a server on this machine that makes it answer late, as one far away does, and counts its requests.

    python -m ledgerq.tools.bench.delay_proxy PORT DELAY_MS

All that the server sends arrives DELAY_MS later, on each of any number of connections. It writes the port at which it
listens to stdout, as one line of JSON, and for each line on stdin the number of requests so far by method and kind,
which is the folder within the store ("PUT wal"); it ends when stdin ends. It is a process of its own, so that it takes
no turn of the event loop that is measured.
"""

import asyncio
import json
import sys
from collections import Counter, deque
from typing import Final, cast

__all__ = ["DelayProxy", "RequestCounter"]

_FOLDERS: Final = ("wal", "manifest", "compacted", "compactions", "gc")
_HEAD_END: Final = b"\r\n\r\n"


class RequestCounter:
    """A reader of one connection's requests; it only looks at them. Bodies have a length, as those of S3 clients do."""

    def __init__(self, counts: "Counter[str]") -> None:
        self._counts = counts
        self._head = b""
        self._body_left = 0

    def read(self, data: bytes) -> None:
        """Count the requests that begin in the next piece of the connection."""
        while data:
            skipped = min(self._body_left, len(data))
            self._body_left -= skipped
            self._head += data[skipped:]
            if _HEAD_END not in self._head:
                return
            head, _, data = self._head.partition(_HEAD_END)
            self._head = b""
            self._begin(head)

    def _begin(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" in fields.get("transfer-encoding", ""):
            raise ValueError(f"{first}: a request in chunks, which are not counted here")
        self._body_left = int(fields.get("content-length", "0"))
        method, target, _ = first.split(" ", 2)
        parts = target.partition("?")[0].strip("/").split("/")
        kind = next((part for part in parts if part in _FOLDERS), "anchor" if parts[-1] == "anchor" else "other")
        self._counts[f"{method} {kind}"] += 1


class DelayProxy:
    """The connections of one proxy; `counts` is what `RequestCounter` counted on them."""

    def __init__(self, port: int, delay_s: float) -> None:
        self.counts: Counter[str] = Counter()
        self._port = port
        self._delay_s = delay_s

    async def serve(self) -> asyncio.Server:
        """Begin to listen, on a free port."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: _Client(self._port, self._delay_s, self.counts), "127.0.0.1", 0)


class _Client(asyncio.Protocol):
    """The client's side: it hands on at once, over a connection to the server that is its own."""

    def __init__(self, port: int, delay_s: float, counts: "Counter[str]") -> None:
        self._port = port
        self._counter = RequestCounter(counts)
        self._server = _Server(delay_s)
        self._early: list[bytes] = []
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server.client = cast(asyncio.Transport, transport)
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._server, "127.0.0.1", self._port)
        except OSError:
            self._server.client.abort()
            return
        for data in self._early:
            self._server.transport.write(data)
        self._connecting = None

    def data_received(self, data: bytes) -> None:
        self._counter.read(data)
        if self._connecting is not None:
            self._early.append(data)
        else:
            self._server.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        else:
            self._server.transport.abort()


class _Server(asyncio.Protocol):
    """The server's side: what it sends waits for its time, in order."""

    client: asyncio.Transport
    transport: asyncio.Transport

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._late: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._late.append(data)
        asyncio.get_running_loop().call_later(self._delay_s, self._hand_on)

    def _hand_on(self) -> None:
        data = self._late.popleft()
        if not self.client.is_closing():
            self.client.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        asyncio.get_running_loop().call_later(self._delay_s, self.client.close)


async def _main(port: str, delay_ms: str) -> None:
    proxy = DelayProxy(int(port), float(delay_ms) / 1000)
    server = await proxy.serve()
    print(json.dumps(server.sockets[0].getsockname()[1]), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(proxy.counts), flush=True)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
