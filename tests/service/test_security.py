"""Attacks on the service: without a token or beyond its scopes, too much, too slowly, and on what errors show."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ledgerq import Filter, InvalidArgument, NotAllowed, PayloadTooLarge, Queue, ScheduleNotFound, Tasks
from ledgerq.tools.cli.app import run
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.service.http_server import Guarded, Server, check_address, parse_address
from ledgerq.worker.service.openapi import openapi
from ledgerq.worker.service.routes import ROUTES, find
from ledgerq.worker.service.service_app import Limits, ServiceApp
from ledgerq.worker.service.tokens import SCOPES, Caller, load_tokens
from tests.support.operators import WHO
from tests.support.rig import Rig

LIMIT_S = 60.0
app = Tasks("shop")


@app.task(queue="reports")
def nightly() -> None: ...


NO_JOB = "01HF7YAT00YFTE1PF6DV4XP7QS"
TOKEN = "s3cr3t-of-the-mailer"
ALL = Caller("ops", frozenset(SCOPES))


def callers(**tokens: Caller) -> dict[bytes, Caller]:
    """Callers by the digests of their tokens."""
    return {hashlib.sha256(token.encode()).digest(): caller for token, caller in tokens.items()}


@asynccontextmanager
async def serving(
    rig: Rig, tokens: dict[bytes, Caller] | None = None, *, limits: Limits | None = None, **guard: Any
) -> AsyncIterator[Server]:
    """The rig's queue, served."""
    app = ServiceApp(rig.queue, tokens, default=QueueOptions(), limits=limits)
    server = await Server.start(app, protocol=type("Strict", (Guarded,), guard))
    try:
        yield server
    finally:
        await server.close()


async def send(server: Server, *parts: bytes) -> bytes:
    """What the service answers to these bytes, until it closes the connection."""
    async with asyncio.timeout(LIMIT_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for part in parts:
                writer.write(part)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()


async def ask(
    server: Server, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
) -> tuple[int, Any]:
    """The status and the JSON that a request is answered with."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"content-length": str(len(content)), "connection": "close"}
    if token is not None:
        fields["authorization"] = f"Bearer {token}"
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    answer = await send(server, f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
    assert answer, (method, path, str(body)[:50])
    head_bytes, _, value = answer.partition(b"\r\n\r\n")
    assert b"\x1b" not in answer
    assert b"s3cr3t" not in answer
    return int(head_bytes.split()[1]), json.loads(value) if value.startswith(b"{") else value


# ---------------------------------------------------------------------- tokens


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_an_address_that_others_reach_needs_tokens(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidArgument, match="without tokens anyone there may do everything"):
        check_address(host, has_tokens=False)
    check_address(host, has_tokens=True)
    check_address("127.0.0.1", has_tokens=False)
    check_address("::1", has_tokens=False)
    place = f"[{host}]:0" if ":" in host else f"{host}:0"
    assert parse_address(place) == (host, 0)
    assert run(["serve", "/nowhere/at/all", "--listen", place]) == 2
    assert "give --tokens FILE" in capsys.readouterr().err


async def test_each_route_needs_a_token_and_its_scope() -> None:
    async with Rig() as rig:
        tokens = {f"no-{scope}": Caller(scope, frozenset(SCOPES) - {scope}) for scope in SCOPES}
        async with serving(rig, callers(**tokens)) as server:
            for route in ROUTES:
                path = route.path.format(id=NO_JOB, queue="q", name="s")
                body: Any = {} if route.body is not None else None
                for token in (None, "wrong", "", "no-such-token"):
                    status, error = await ask(server, route.method, path, body, token)
                    assert (status, error["error"]) == (401, "NotAllowed"), route
                if route.scope:
                    status, error = await ask(server, route.method, path, body, f"no-{route.scope}")
                    assert (status, error["error"], error["permanent"]) == (403, "NotAllowed", True), route
            assert (await ask(server, "GET", "/metrics"))[0] == 401
            assert (await ask(server, "GET", "/v1/openapi.json"))[0] == 401
            assert (await ask(server, "GET", "/metrics", token="no-read"))[0] == 403
            assert (await ask(server, "GET", "/healthz"))[0] == 200
            assert await ask(server, "GET", "/readyz") == (200, {"ready": True})
            ops = [
                {"op": "enqueue", "queue": "q", "payload": ""},
                {"op": "ack", "claim": ["01HF7YAT00YFTE1PF6DV4XP7QS", 1]},
            ]
            for scope, failed in (("enqueue", [0, 1]), ("work", [1])):
                _, answer = await ask(server, "POST", "/v1/ops", {"ops": ops}, f"no-{scope}")
                errors = [result.get("error", {}).get("error") for result in answer["results"]]
                assert errors == (["NotAllowed", "ClaimLost"] if failed == [0, 1] else [None, "NotAllowed"])


async def test_a_token_for_some_queues_reaches_no_other() -> None:
    async with Rig() as rig:
        mine = Caller("mailer", frozenset(SCOPES), ("mail",))
        async with serving(rig, callers(token=mine)) as server, Queue.connect(server.url, token="token") as queue:
            theirs = await rig.queue.enqueue("bank", b"gold")
            await rig.queue.enqueue_many("bank", [b"2"])
            (claim,) = await rig.queue.claim("bank", kept=True)
            await queue.enqueue("mail.eu", b"x")
            assert await queue.queues() == ["mail.eu"]
            for call in (
                queue.enqueue("bank", b"x"),
                queue.enqueue_many("bank", [b"x"]),
                queue.claim("bank"),
                queue.claim(["mail.eu", "bank"]),
                queue.ack(claim),
                queue.nack(claim, "e"),
                queue.extend(claim, 5),
                queue.stats("bank"),
                queue.jobs("bank"),
                queue.pause("bank", **WHO),
                queue.records(),
                queue.drained("bank"),
                queue.bulk.cancel(Filter(queue="bank"), **WHO),
                queue.bulk.move(Filter(queue="mail.eu", state="pending"), "bank", **WHO),
                queue.bulk.resume(),
            ):
                with pytest.raises(NotAllowed):
                    await call
            await rig.queue.schedules.set("s", timedelta(hours=1), nightly, **WHO)
            assert await queue.schedules.list() == []
            for what in (queue.schedules.run_now, queue.schedules.remove):
                with pytest.raises(ScheduleNotFound):
                    await what("s", **WHO)
            for path in ("", "/history", "/payload", "/result"):
                assert (await ask(server, "GET", f"/v1/jobs/{theirs.job_id}{path}", token="token"))[0] == 404
            assert (await ask(server, "POST", f"/v1/jobs/{theirs.job_id}/cancel", {"reason": "x"}, "token"))[0] == 404
            names = [[claim.job_id, claim.offset]]
            assert (await ask(server, "POST", "/v1/heartbeat", {"claims": names}, "token"))[0] == 403
            assert (await ask(server, "GET", "/metrics", token="token"))[0] == 403
            assert (await rig.queue.stats("bank")).claimed == 1


async def test_the_actor_is_the_name_of_the_token_whatever_the_body_has() -> None:
    async with Rig() as rig:
        async with serving(rig, callers(token=ALL)) as server:
            _, added = await ask(server, "POST", "/v1/queues/q/jobs", {"jobs": [{"payload": ""}]}, "token")
            job_id = added["jobs"][0]["id"]
            body = {"reason": "because", "actor": "the boss"}
            assert (await ask(server, "POST", f"/v1/jobs/{job_id}/cancel", body, "token"))[0] == 200
            assert (await ask(server, "POST", "/v1/queues/q/pause", body, "token"))[0] == 200
        assert [event.actor for event in await rig.events() if hasattr(event, "actor")] == ["ops", "ops"]


async def test_without_tokens_no_web_page_reaches_the_service() -> None:
    """A browser on this machine sends what any page tells it to, and no token tells them apart."""
    body = {"jobs": [{"payload": ""}]}
    async with Rig() as rig:
        async with serving(rig) as server:
            for headers in ({"origin": "https://a.example"}, {"origin": "null"}, {"host": "a.example:80"}):
                for method, path in (("POST", "/v1/queues/q/jobs"), ("GET", "/v1/log"), ("GET", "/metrics")):
                    status, error = await ask(server, method, path, body if method == "POST" else None, **headers)
                    assert (status, error["error"]) == (403, "NotAllowed"), (headers, path)
            for host in ("localhost", "127.0.0.1:8420", "[::1]:8420"):
                assert (await ask(server, "POST", "/v1/queues/mine/jobs", body, host=host))[0] == 200
        async with serving(rig, callers(token=ALL)) as server:
            assert (await ask(server, "POST", "/v1/queues/mine/jobs", body, "token", host="a.example"))[0] == 200
        assert await rig.queue.queues() == ["mine"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "it is no TOML"),
        ("", r"has \[\[token\]\] tables"),
        ('[[token]]\nname = "a"\nsha256 = "00"\nscopes = ["read"]', "64 hexadecimal digits"),
        (f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["all"]', "scopes are a list of enqueue"),
        (f'[[token]]\nname = "a"\ntoken = "{TOKEN}"\nscopes = ["read"]', "it has name, sha256 and scopes"),
        (f'[[token]]\nname = ""\nsha256 = "{"0" * 64}"\nscopes = ["read"]', "name is text"),
        (f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["read"]\n' * 2, "the same name"),
        (f'[[token]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["read"]\nqueues = [""]', "beginnings of names"),
    ],
)
def test_a_file_of_tokens_that_is_wrong_is_refused_without_a_word_of_it(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=words) as caught:
        load_tokens(path)
    assert TOKEN not in str(caught.value)


def test_a_file_of_tokens_is_read(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    path.write_text(f'[[token]]\nname = "a"\nsha256 = "{digest}"\nscopes = ["read", "work"]\nqueues = ["mail"]\n')
    assert load_tokens(path) == callers(**{TOKEN: Caller("a", frozenset({"read", "work"}), ("mail",))})
    with pytest.raises(InvalidArgument, match="can't be read: No such file"):
        load_tokens(tmp_path / "other")


# ---------------------------------------------------------------------- too much


async def test_what_is_too_much_or_malformed_is_refused_as_a_whole() -> None:
    async with Rig() as rig, serving(rig, limits=Limits(body_bytes=200_000)) as server:
        enqueue = {"op": "enqueue", "queue": "q", "payload": ""}
        for path, body, status in (
            ("/v1/ops", {"ops": [enqueue] * 1001}, 400),
            ("/v1/ops", {"ops": [enqueue, {"op": "drop"}]}, 400),
            ("/v1/ops", {"ops": [enqueue | {"priority": "low"}]}, 400),
            ("/v1/ops", {"ops": [enqueue | {"unknown": 1}]}, 400),
            ("/v1/ops", b"{", 400),
            ("/v1/ops", b"[" * 100_000, 400),
            ("/v1/ops", b"", 400),
            ("/v1/claim", {"queues": ["q"], "limit": 1001}, 400),
            ("/v1/claim", {"queues": ["q"], "wait": 31}, 400),
            ("/v1/claim", {"queues": ["q"] * 101}, 400),
            ("/v1/claim", {"queues": [""]}, 400),
            ("/v1/claim", {"queues": ["q"], "lease": -1}, 400),
            ("/v1/heartbeat", {"claims": [["x" * 26, 1]]}, 400),
            ("/v1/heartbeat", {"claims": [[NO_JOB, 2**63]]}, 400),
            ("/v1/queues//jobs", {"jobs": [{"payload": ""}]}, 400),
            ("/v1/queues/q/jobs", {"jobs": [{"payload": "", "unique_key": "", "unique_key_bytes": ""}]}, 400),
        ):
            found, error = await ask(server, "POST", path, body)
            assert (found, error["permanent"]) == (status, True), (path, error)
        for path, status in (
            ("/v1/queues/q/jobs?limit=x", 400),
            ("/v1/queues/q/jobs?state=all", 400),
            ("/v1/log?from=-1", 400),
            ("/v1/jobs/8ZZZZZZZZZZZZZZZZZZZZZZZZZ", 400),
            ("/v1/jobs/x%2F..%2Fy", 400),
            ("/v1/queues/" + "q" * 2000 + "/stats", 404),
            ("/v1/queues/q%00/stats", 400),
            ("/v1/log?" + "x" * 5000, 414),
            ("/v1/log?" + "x=1&" * 300, 400),
            ("/v1/nothing", 404),
            ("/v1/ops", 405),
        ):
            assert (await ask(server, "GET", path))[0] == status, path
        assert (await ask(server, "POST", "/v1/ops", {"ops": []}, content_type="text/plain"))[0] == 415
        assert (await ask(server, "POST", "/v1/ops", {"ops": []}, ledgerq_epoch="x"))[0] == 400
        status, error = await ask(server, "POST", "/v1/ops", {"ops": [enqueue]}, ledgerq_epoch="99")
        assert (status, error["error"], error["permanent"]) == (421, "Fenced", False)
        async with Queue.connect(server.url) as queue:
            for call in (queue.enqueue("q", bytes(300_000)), queue.enqueue_many("q", [bytes(100_000)] * 3)):
                with pytest.raises(PayloadTooLarge, match="a request has at most 200000 bytes: split it"):
                    await call
        chunk = b"fffff\r\n" + b" " * 0xFFFFF + b"\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/ops HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunk)
        assert (await reader.readline()).split()[1] == b"413"
        writer.transport.abort()
        assert await rig.queue.queues() == []


async def test_queue_names_and_errors_show_no_escapes_of_a_terminal() -> None:
    async with Rig() as rig, serving(rig) as server:
        name = "\x1b[31mred"
        op = {"op": "enqueue", "queue": name, "payload": "", "priority": -1}
        status, answer = await ask(server, "POST", "/v1/ops", {"ops": [op, op | {"priority": 1}]})
        assert (status, answer["results"][0]["error"]["error"]) == (200, "InvalidArgument")
        assert (await ask(server, "GET", "/v1/queues"))[1]["queues"] == [name]
        assert (await ask(server, "GET", "/v1/queues/%1b[31mred/jobs?state=%1b"))[0] == 400


async def test_calls_that_wait_are_bounded() -> None:
    async with Rig() as rig, serving(rig, limits=Limits(polls_of_token=1)) as server:
        waiting = asyncio.create_task(ask(server, "POST", "/v1/claim", {"queues": ["q"], "wait": 20}))
        while not server.app._polls:
            await asyncio.sleep(0.001)
        status, error = await ask(server, "POST", "/v1/claim", {"queues": ["q"], "wait": 1})
        assert (status, error["permanent"]) == (429, False)
        await rig.queue.enqueue("q", b"x")
        status, answer = await waiting
        assert (status, len(answer["claims"])) == (200, 1)


# ---------------------------------------------------------------------- too slow


async def test_slow_clients_are_cut() -> None:
    async with Rig() as rig:
        async with serving(rig, head_limit_s=0.02, max_head_bytes=2000) as server:
            assert await send(server) == b""
            assert await send(server, b"GET / HTTP/1.1\r\n") == b""
            assert await send(server, b"GET /healthz HTTP/1.1\r\n\r\nGET") != b""
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"200"
            writer.write(b"\r\n")  # no request, and the server waits for none without an end
            async with asyncio.timeout(LIMIT_S):
                await reader.read()
        async with serving(rig, max_head_bytes=2000) as server:
            assert await send(server, b"GET / HTTP/1.1\r\nx: ", b"y" * 5000) == b""
        async with serving(rig, limits=Limits(body_s=0.02)) as server:
            answer = await send(server, b"POST /v1/ops HTTP/1.1\r\ncontent-length: 10\r\n\r\n{")
            assert answer.split()[1] == b"408"


async def test_a_client_that_does_not_take_its_answer_is_cut() -> None:
    async with Rig() as rig, serving(rig, take_limit_s=0.02) as server:
        await rig.queue.enqueue_many("q", [b"x" * 1_000_000] * 20)
        body = b'{"queues": ["q"], "limit": 20}'
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(b"POST /v1/claim HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        async with asyncio.timeout(LIMIT_S):
            while not server._server.server_state.connections:
                await asyncio.sleep(0.001)
            while server._server.server_state.connections:
                await asyncio.sleep(0.001)
        writer.transport.abort()
        assert reader


async def test_above_the_limit_of_connections_a_new_one_is_cut() -> None:
    async with Rig() as rig, serving(rig, max_connections=1) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.readline()).split()[1] == b"200"
        assert await send(server, b"GET /healthz HTTP/1.1\r\n\r\n") == b""
        writer.transport.abort()


# ---------------------------------------------------------------------- what is shown


async def test_no_secret_is_in_logs_errors_or_metrics(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Rig() as rig, serving(rig, callers(**{TOKEN: ALL})) as server:

        async def broken(*args: object) -> None:
            raise RuntimeError("s3cr3t of the store")

        with monkeypatch.context() as patch:
            patch.setattr(server.app._api.ops_of, "run", broken)
            status, error = await ask(server, "POST", "/v1/ops", {"ops": []}, TOKEN)
        assert (status, error["error"], error["message"]) == (500, "InternalError", "the service failed: see its log")
        job = {"payload": "czNjcjN0", "headers": {"h": "s3cr3t-header"}, "unique_key": "s3cr3t-key"}
        assert (await ask(server, "POST", "/v1/queues/q/jobs", {"jobs": [job]}, TOKEN))[0] == 200
        for path in ("/metrics", "/v1/queues/q/jobs", "/v1/log", "/v1/options", "/readyz", "/v1/openapi.json"):
            await ask(server, "GET", path, token=TOKEN)
        await ask(server, "GET", "/v1/nothing", token=TOKEN + "-wrong")
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert "a request failed" in shown
    assert TOKEN not in caplog.text


# ---------------------------------------------------------------------- the description


async def test_openapi_describes_each_route_and_each_answer() -> None:
    async with Rig() as rig, serving(rig) as server:
        _, shown = await ask(server, "GET", "/v1/openapi.json")
        assert shown == json.loads(json.dumps(openapi(shown["info"]["version"])))
        described = {(method.upper(), path) for path, methods in shown["paths"].items() for method in methods}
        assert described == {(route.method, route.path) for route in ROUTES}
        assert len({operation["operationId"] for one in shown["paths"].values() for operation in one.values()}) == len(
            ROUTES
        )
        await rig.queue.schedules.set("s", timedelta(hours=1), nightly, **WHO)
        _, added = await ask(server, "POST", "/v1/queues/q/jobs", {"jobs": [{"payload": ""}, {"payload": ""}]})
        job_id = added["jobs"][0]["id"]
        await rig.queue.nack((await rig.queue.claim("q"))[0], "e", dead=True)
        bodies: dict[str, Any] = {
            "ops": {"ops": [{"op": "enqueue", "queue": "q", "payload": "", "delay": 9}]},
            "enqueue": {"jobs": [{"payload": ""}]},
            "claim": {"queues": ["q"]},
            "heartbeat": {"claims": []},
            "hold": {"seconds": 5, "reason": "x"},
            "bulk": {"what": "cancel", "filter": {"state": "scheduled"}, "reason": "x"},
        }
        for route in sorted(ROUTES, key=lambda route: "cancel" in route.path or "remove" in route.path):
            name = getattr(route.act, "__name__", "")
            assert find(route.path) is not None
            path = route.path.format(id=job_id, queue="q", name="s") + ("?queue=q" if "queue" in route.query else "")
            status, answer = await ask(
                server, route.method, path, bodies.get(name, {"reason": "x"}) if route.body else None
            )
            assert status == 200, (route, answer)
            schema = shown["components"]["schemas"][route.answer.__name__]
            assert set(schema.get("required", [])) <= answer.keys() <= schema["properties"].keys(), route
