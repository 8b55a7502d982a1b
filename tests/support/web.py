"""Asking web servers on the loopback interface, byte by byte, and ASGI applications without one."""

import asyncio
import gzip
import json
from typing import Any, NamedTuple

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

__all__ = ["Answer", "ask", "ask_app", "exchange", "samples", "series"]

LIMIT_S = 60.0
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Answer(NamedTuple):
    """What came back; names of fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The one JSON document in the body."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text, decompressed."""
        return (gzip.decompress(self.body) if self.fields.get("content-encoding") == "gzip" else self.body).decode()


def series(name: str, **labels: str) -> str:
    """A sample's name as `samples` has it: `name{label="value",...}`, the labels in order."""
    inner = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inner}}}" if inner else name


def samples(answer: Answer) -> dict[str, float]:
    """The samples of a page of metrics, in either format, by their series."""
    parse = parse_openmetrics if answer.fields["content-type"].startswith("application/openmetrics") else parse_text
    found: dict[str, float] = {}
    for family in parse(answer.text):
        for sample in family.samples:
            key = series(sample.name, **sample.labels)
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


async def ask(
    port: int, path: str = "/metrics", *, host: str = "127.0.0.1", method: str = "GET", **fields: str
) -> Answer:
    """One request; `accept_encoding="gzip"` is a header field."""
    lines = [f"{method} {path} HTTP/1.1", "host: test", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
    return await exchange(port, "\r\n".join([*lines, "", ""]).encode(), host=host)


async def exchange(port: int, request: bytes, *, host: str = "127.0.0.1") -> Answer:
    """Send these bytes and read until the server closes the connection."""
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(request)
            head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Answer(int(first.split(" ")[1]), fields, body)


async def ask_app(
    app: Any, path: str = "/metrics", *, method: str = "GET", root_path: str = "", **fields: str
) -> Answer:
    """One request to an ASGI application; `query` is its query string."""
    query = fields.pop("query", "")
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path, "root_path": root_path}
    scope |= {"query_string": query.encode(), "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the request's body is not read")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, body = sent
    fields = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], fields, body["body"])
