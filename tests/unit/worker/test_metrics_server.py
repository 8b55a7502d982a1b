"""The server of the pages: where it listens, that it leaves the program alone, and that no client can harm it."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.metrics import connection
from ledgerq.worker.metrics import server as metrics_server
from ledgerq.worker.metrics.asgi import MetricsApp
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.metrics.server import MetricsServer, start_server
from tests.support.loops import settle, until
from tests.support.rig import Rig
from tests.support.web import LIMIT_S, OPENMETRICS, ask, exchange, samples

HEAD = b"GET /healthz HTTP/1.1\r\nhost: test\r\n"


async def ready() -> list[str]:
    return []


@asynccontextmanager
async def served(host: str = "127.0.0.1", registry: CollectorRegistry | None = None) -> AsyncIterator[MetricsServer]:
    server = await start_server(MetricsApp(registry or CollectorRegistry(), ready), host, 0)
    async with server:
        yield server
    await settle()
    assert {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("ledgerq")} == set()


@asynccontextmanager
async def connected(server: MetricsServer) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def closed_by_the_server(reader: asyncio.StreamReader) -> bytes:
    """What came until the connection ended, in whichever way."""
    async with asyncio.timeout(LIMIT_S):
        try:
            return await reader.read(-1)
        except ConnectionError:
            return b""


async def test_a_queues_pages_on_a_port() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        metrics = Metrics(rig.queue)
        async with metrics.serve(port=0) as server:
            assert server.url == f"http://127.0.0.1:{server.port}"
            text = await ask(server.port)
            openmetrics = await ask(server.port, accept=OPENMETRICS, accept_encoding="gzip")
            assert openmetrics.fields["content-encoding"] == "gzip"
            assert samples(text) == samples(openmetrics)
            assert samples(text)['ledgerq_jobs{queue="mail",state="pending"}'] == 1
            assert (await ask(server.port, "/healthz")).text == "ok\n"
            assert (await ask(server.port, "/readyz")).json == {"ready": True, "reasons": []}
            assert (await ask(server.port, "/nowhere")).status == 404
            head = await ask(server.port, method="HEAD")
            assert (head.status, head.body) == (200, b"")
        again = await metrics.serve("127.0.0.1", server.port)  # the port is free again at once
        await again.close()
        await again.close()
        metrics.close()
        with pytest.raises(ConnectionRefusedError):
            await ask(server.port)


async def test_a_port_in_use_is_one_clear_error() -> None:
    async with served() as server:
        with pytest.raises(InvalidArgument) as raised:
            await start_server(MetricsApp(CollectorRegistry(), ready), "127.0.0.1", server.port)
    assert f"127.0.0.1 port {server.port}: Address already in use; choose another" in str(raised.value)


@pytest.mark.parametrize(
    ("host", "port", "says"),
    [
        ("", 0, "host is a name"),
        ("127.0.0.1", -1, "whole number"),
        ("127.0.0.1", 65_536, "whole number"),
        ("127.0.0.1", True, "whole number"),
        ("no.such.host.invalid", 0, "can't be served at no.such.host.invalid"),
        ("x" * 70, 0, "can't be served at x"),
        ("192.0.2.1", 0, "can't be served at 192.0.2.1"),
    ],
)
async def test_places_that_can_not_be_listened_on(host: str, port: int, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        await start_server(MetricsApp(CollectorRegistry(), ready), host, port)


async def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    async with served("::1") as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert (await ask(server.port, "/healthz", host="::1")).status == 200


async def test_a_name_with_several_addresses_is_one_port() -> None:
    found = {info[4][0] for info in socket.getaddrinfo("localhost", 0, type=socket.SOCK_STREAM)}
    async with served("localhost") as server:
        for address in found:
            assert (await ask(server.port, "/healthz", host=str(address))).status == 200


async def test_signals_stay_the_programs() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with served() as server:
        await ask(server.port)
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_one_that_is_cancelled_lets_go_of_its_port() -> None:
    server = await start_server(MetricsApp(CollectorRegistry(), ready), "127.0.0.1", 0)
    async with connected(server) as (reader, _):
        server._task.cancel()
        assert await closed_by_the_server(reader) == b""
    await server.close()
    again = await start_server(MetricsApp(CollectorRegistry(), ready), "127.0.0.1", server.port)
    await again.close()


# Clients


async def test_several_requests_on_one_connection() -> None:
    async with served() as server:
        answer = await exchange(server.port, 2 * (HEAD + b"\r\n") + HEAD + b"connection: close\r\n\r\n")
        assert answer.body.count(b"200 OK") == 2


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        HEAD + b"x: " + b"y" * 100_000,  # and so on
        HEAD + b"x: y\r\n" * 20_000,
        b"GET /" + b"y" * 100_000,
        HEAD + b"content-length: -1\r\n\r\n",
    ],
)
async def test_nonsense_and_endless_heads_are_refused(request_bytes: bytes) -> None:
    async with served() as server:
        async with connected(server) as (reader, writer):
            writer.write(request_bytes)
            answer = await closed_by_the_server(reader)
            assert not answer or answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
        assert (await ask(server.port, "/healthz")).status == 200


async def test_a_body_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_LIMIT_S", 0.3)
    async with served() as server:
        async with connected(server) as (reader, writer):
            writer.write(b"POST /metrics HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000000\r\n\r\n")
            first = await reader.readuntil(b"\r\n")
            assert first == b"HTTP/1.1 405 Method Not Allowed\r\n"
            with pytest.raises(ConnectionError):
                async with asyncio.timeout(LIMIT_S):
                    while True:
                        writer.write(bytes(65_536))
                        await writer.drain()
                        await asyncio.sleep(0)
        assert (await ask(server.port, "/healthz")).status == 200


@pytest.mark.parametrize("sent", [b"", b"GET", HEAD, HEAD + b"content-length: 5\r\n\r\n"])
async def test_clients_that_say_no_more_are_cut_off(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_LIMIT_S", 0.05)
    async with served() as server, connected(server) as (reader, writer):
        writer.write(sent)
        await closed_by_the_server(reader)


def long_page() -> CollectorRegistry:
    """Ten megabytes, which no connection holds in its buffers."""
    registry = CollectorRegistry()
    gauge = Gauge("x", "Many.", ["label"], registry=registry)
    for number in range(20):
        gauge.labels("y" * 500_000 + str(number))
    return registry


@asynccontextmanager
async def unread(server: MetricsServer) -> AsyncIterator[None]:
    """A client that asked for a page and takes no answer, though there is one."""
    connections = server._connections
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((server.host, server.port))
        client.sendall(b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n")
        async with asyncio.timeout(LIMIT_S):
            while not any(one.is_answering and one.waiting_since_s is not None for one in connections):
                await asyncio.sleep(0.001)
        yield


async def test_clients_that_take_no_answers_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_LIMIT_S", 1.0)
    async with served(registry=long_page()) as server, unread(server):
        async with asyncio.timeout(LIMIT_S):
            while server._connections:
                await asyncio.sleep(0.001)


async def test_when_there_are_too_many_the_one_waited_for_for_longest_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_server, "_MAX_CONNECTIONS", 3)
    monkeypatch.setattr(connection, "_EXCHANGE_LIMIT_S", 10 * LIMIT_S)
    monkeypatch.setattr(connection, "_KEEP_ALIVE_S", 10 * LIMIT_S)
    async with served() as server, connected(server) as (first, asking), connected(server) as (second, _):
        # The first one is answered later than the second one came, so it was waited for for less.
        await until(lambda: len(server._connections) == 2)
        asking.write(HEAD + b"\r\n")
        await first.readuntil(b"ok\n")
        async with connected(server), connected(server):
            assert await closed_by_the_server(second) == b""
            assert (await ask(server.port, "/healthz")).status == 200
            assert len(server._connections) <= 3
            assert await closed_by_the_server(first) == b""


@pytest.mark.proof
async def test_a_hundred_slow_clients_keep_no_scrape_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_EXCHANGE_LIMIT_S", 10 * LIMIT_S)
    async with served(registry=long_page()) as server, AsyncExitStack() as clients:
        for number in range(100):
            _, writer = await clients.enter_async_context(connected(server))
            # Some say nothing, some never end their request, some take no answer.
            writer.write((b"", HEAD, b"GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n")[number % 3])
        for _ in range(10):
            assert (await ask(server.port, "/healthz")).status == 200


async def test_an_answer_in_the_making_is_not_dropped_for_a_new_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_server, "_MAX_CONNECTIONS", 2)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> list[str]:
        asked.set()
        await answer.wait()
        return []

    async with await start_server(MetricsApp(CollectorRegistry(), slow), "127.0.0.1", 0) as server:
        asking = asyncio.create_task(ask(server.port, "/readyz"))
        await asked.wait()
        async with connected(server), connected(server), connected(server):
            assert (await ask(server.port, "/healthz")).status == 200
        answer.set()
        assert (await asking).status == 200


@pytest.mark.parametrize(("head_bytes", "status"), [(16 * 1024, 200), (16 * 1024 + 1, 431), (100_000, 431)])
@pytest.mark.parametrize("fields", [1, 90])
async def test_a_head_has_at_most_sixteen_kilobytes_in_all(head_bytes: int, status: int, fields: int) -> None:
    fill = b"".join(b"x-%02d: %s\r\n" % (number, b"y" * 100) for number in range(fields))
    start = HEAD + b"connection: close\r\n" + fill + b"last: "
    request = start + b"z" * (head_bytes - len(start) - 4) + b"\r\n\r\n"
    assert len(request) == head_bytes
    async with served() as server:
        assert (await exchange(server.port, request)).status == status


async def test_closing_waits_a_moment_for_clients_that_hang_and_not_longer(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    async with (
        served(registry=long_page()) as server,
        connected(server) as (silent, _),
        connected(server) as (half, sender),
    ):
        sender.write(HEAD + b"content-length: 5\r\n\r\n1")
        await half.readuntil(b"\r\n")
        async with unread(server):
            began_s = loop.time()
            await server.close()
            assert loop.time() - began_s < LIMIT_S
            await settle()
            assert not server._connections
        assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
        assert await closed_by_the_server(silent) == b""
        await closed_by_the_server(half)


async def test_an_answer_on_its_way_arrives_when_the_server_closes() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> list[str]:
        asked.set()
        await answer.wait()
        return []

    server = await start_server(MetricsApp(CollectorRegistry(), slow), "127.0.0.1", 0)
    asking = asyncio.create_task(ask(server.port, "/readyz"))
    await asked.wait()
    closing = asyncio.create_task(server.close())
    await settle()
    answer.set()
    assert (await asking).status == 200
    await closing
