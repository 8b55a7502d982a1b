"""The pages that monitoring reads: what is on them, in which format, and how they behave inside other applications."""

import asyncio
import threading
from collections import Counter as Counting
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.projections.metrics.counters import CountersSource
from ledgerq.worker.metrics import asgi
from ledgerq.worker.metrics.asgi import MetricsApp, gzip_wanted, render
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.support.rig import Rig
from tests.support.web import OPENMETRICS, ask_app, samples, series


async def never_ready() -> list[str]:
    return ["it is not"]


class Sampled(Collector):
    """As many samples as wanted, of every type."""

    def __init__(self, queues: int) -> None:
        self.queues = queues

    def collect(self) -> Iterator[Metric]:
        transitions = CounterMetricFamily("x_transitions", "Lines\nand \\ signs.", labels=["queue", "kind"])
        waiting = HistogramMetricFamily("x_waiting_seconds", "Waiting.", labels=["queue"], unit="seconds")
        created = CounterMetricFamily("x_created", "With times.", labels=["queue"])
        for number in range(self.queues):
            name, last = f'queue "{number}"', Exemplar({"job_id": str(number)}, 0.05, 1.5)
            for kind in ("enqueued", "acked"):
                transitions.add_metric([name, kind], number)
            waiting.add_metric([name], [("0.1", number, last), ("+Inf", number + 1)], sum_value=number / 3)
            created.add_metric([name], number, created=1.5)
        yield from (transitions, waiting, created, GaugeMetricFamily("x_none", "None at all.", labels=["queue"]))


async def test_metrics_in_both_formats_are_the_counters_of_the_log() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("mail", [b"a", b"b"])
        await rig.queue.ack((await rig.queue.claim("mail"))[0])
        metrics = Metrics(rig.queue)
        text = await ask_app(metrics.asgi)
        openmetrics = await ask_app(metrics.asgi, accept=OPENMETRICS)
        metrics.close()
        head = await rig.queue.log.head()
    assert (text.status, openmetrics.status) == (200, 200)
    assert text.fields["content-type"].startswith("text/plain; version=0.0.4")
    assert openmetrics.fields["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics.text.endswith("# EOF\n")
    found = samples(text)
    assert found['ledgerq_jobs{queue="mail",state="done"}'] == 1
    assert found['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 2
    assert found["ledgerq_log_events_total"] == head.next_offset
    assert samples(openmetrics) == found


@pytest.mark.parametrize("encode", [generate_latest, generate_openmetrics])
async def test_slices_make_the_same_page(encode: asgi.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "_SLICE_S", 0.0)
    registry = CollectorRegistry()
    registry.register(Sampled(131))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    task = asyncio.create_task(others())
    page = await render(registry, encode)
    task.cancel()
    assert page == encode(registry)
    assert (b" # {" in page) == (encode is generate_openmetrics)
    # 2 x 131 transitions, 4 x 131 of the histogram: 6 and 11 slices of 50, and two families in one piece.
    assert turns >= 16


async def test_no_turn_of_the_loop_takes_in_many_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    turn, updates = 0, Counting[int]()
    update = CountersSource._update

    def counted(self: CountersSource, queue: str, row: bytes) -> None:
        updates[turn] += 1
        update(self, queue, row)

    async def others() -> None:
        nonlocal turn
        while True:
            await asyncio.sleep(0)
            turn += 1

    monkeypatch.setattr(CountersSource, "_update", counted)
    async with Rig() as rig:
        metrics = Metrics(rig.queue, limit=20)
        task = asyncio.create_task(others())
        for rounds in (1, 2):
            for number in range(30):
                await rig.queue.enqueue(f"queue {number}", b"a")
            found = samples(await ask_app(metrics.asgi))
            assert found[series("ledgerq_transitions_total", kind="enqueued", queue="queue 19")] == rounds
            assert found[series("ledgerq_transitions_total", kind="enqueued", queue="other")] == 10 * rounds
            assert updates.total() == 30 * rounds
        assert max(updates.values()) <= 4
        task.cancel()
        metrics.close()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_empty_page_is_one_too() -> None:
    registry = CollectorRegistry()
    assert await render(registry, generate_latest) == b""
    assert await render(registry, generate_openmetrics) == b"# EOF\n"


@pytest.mark.parametrize("queues", [1, 2000])
async def test_gzip(queues: int) -> None:
    registry = CollectorRegistry()
    registry.register(Sampled(queues))
    app = MetricsApp(registry, never_ready)
    plain, packed = await ask_app(app), await ask_app(app, accept_encoding="br, gzip;q=0.5")
    assert packed.fields["content-encoding"] == "gzip"
    assert (packed.text, int(packed.fields["content-length"])) == (plain.text, len(packed.body))
    assert "content-encoding" not in plain.fields
    assert "accept-encoding" in packed.fields["vary"]


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP ; q=1.0", True),
        ("deflate, gzip;q=0.001", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, br", False),
        ("*", False),
        ("gzipped", False),
    ],
)
def test_who_wants_gzip(accepted: str, wanted: bool) -> None:
    assert gzip_wanted(accepted) is wanted


@pytest.mark.parametrize("accept", ["", "text/html", "application/openmetrics-text;version=0.0.0", ",;,", "\x00"])
async def test_whoever_asks_for_nothing_sensible_gets_text(accept: str) -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    assert (await ask_app(app, accept=accept)).fields["content-type"].startswith("text/plain; version=0.0.4")


async def test_a_version_that_is_no_number_is_no_error() -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    assert (await ask_app(app, accept="application/openmetrics-text;version=abc")).status == 200


async def test_only_the_metrics_that_are_named() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        metrics = Metrics(rig.queue)
        found = samples(await ask_app(metrics.asgi, query="name[]=ledgerq_jobs&name%5B%5D=ledgerq_log_epoch"))
        assert {name.partition("{")[0] for name in found} == {"ledgerq_jobs", "ledgerq_log_epoch"}
        assert samples(await ask_app(metrics.asgi, query="name[]=nothing")) == {}
        assert (await ask_app(metrics.asgi, query="name[]=" + "x" * 9000)).status == 414
        metrics.close()


# Routes


@pytest.mark.parametrize(
    ("root_path", "path", "status"),
    [
        ("", "/metrics", 200),
        ("", "/metrics/", 200),
        ("", "/healthz", 200),
        ("", "/readyz", 503),
        ("", "/", 404),
        ("", "", 404),
        ("", "/metricsx", 404),
        ("", "/x/metrics", 404),
        ("/ops", "/ops/metrics", 200),  # as the standard has it
        ("/ops", "/metrics", 200),  # as some frameworks have it
        ("/ops/", "/ops/readyz", 503),
        ("/ops", "/opsmetrics", 404),
        ("/metrics", "/metrics", 200),
        ("/metrics", "/metrics/", 200),
        ("/metrics", "/metrics/healthz", 200),
        ("/a/metrics", "/", 200),
    ],
)
async def test_routes_below_any_mount(root_path: str, path: str, status: int) -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    assert (await ask_app(app, path, root_path=root_path)).status == status


async def test_head_is_get_without_the_body() -> None:
    registry = CollectorRegistry()
    registry.register(Sampled(1))
    app = MetricsApp(registry, never_ready)
    for path in ("/metrics", "/healthz", "/readyz", "/nowhere"):
        got, head = await ask_app(app, path), await ask_app(app, path, method="HEAD")
        assert (head.status, head.fields, head.body) == (got.status, got.fields, b"")
        assert int(got.fields["content-length"]) == len(got.body) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "NONSENSE"])
async def test_nothing_can_be_done_to_the_pages(method: str) -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    answer = await ask_app(app, "/metrics", method=method)
    assert (answer.status, answer.fields["allow"]) == (405, "GET, HEAD")


async def test_readiness_is_json_with_a_reason_each() -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    answer = await ask_app(app, "/readyz")
    assert answer.fields["content-type"] == "application/json"
    assert (answer.status, answer.json) == (503, {"ready": False, "reasons": ["it is not"]})


async def test_a_collector_that_raises_is_one_line_and_no_end() -> None:
    class Broken(Collector):
        def collect(self) -> Iterator[Metric]:
            raise RuntimeError("no\nluck")

    async def broken() -> list[str]:
        raise RuntimeError("no luck")

    registry = CollectorRegistry()
    registry.register(Broken())
    app = MetricsApp(registry, broken)
    answer = await ask_app(app)
    assert (answer.status, answer.text) == (500, "/metrics can't be answered: RuntimeError: no luck\n")
    assert (await ask_app(app, "/readyz")).status == 500
    assert (await ask_app(app, "/healthz")).status == 200
    registry.unregister(next(iter(registry._collector_to_names)))
    assert (await ask_app(app)).status == 200


# Other scopes, other loops


async def converse(app: MetricsApp, kind: str, *messages: str) -> list[str]:
    coming, sent = list(messages), []

    async def receive() -> Any:
        return {"type": coming.pop(0)}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": kind}, receive, send)
    assert not coming
    return sent


async def test_the_lifespan_of_a_server_is_none_of_its_business() -> None:
    app = MetricsApp(CollectorRegistry(), never_ready)
    said = await converse(app, "lifespan", "lifespan.startup", "lifespan.shutdown")
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert await converse(app, "websocket") == ["websocket.close"]
    with pytest.raises(ValueError, match="none that is served"):
        await converse(app, "smoke-signals")


async def test_it_answers_on_the_loop_of_its_queue_wherever_it_is_mounted() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        metrics = Metrics(rig.queue)

        def elsewhere() -> tuple[int, float, Any]:
            async def work() -> tuple[int, float, Any]:
                page = samples(await ask_app(metrics.asgi))
                ready = await ask_app(metrics.asgi, "/readyz")
                return threading.get_ident(), page['ledgerq_jobs{queue="mail",state="pending"}'], ready.json

            return asyncio.run(work())

        thread, pending, ready = await asyncio.to_thread(elsewhere)
        assert thread != threading.get_ident()
        assert (pending, ready) == (1, {"ready": True, "reasons": []})
        metrics.close()


def test_a_loop_that_ended_or_hangs_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def make() -> MetricsApp:
        return MetricsApp(CollectorRegistry(), never_ready)

    loop = asyncio.new_event_loop()
    app = loop.run_until_complete(make())
    monkeypatch.setattr(asgi, "_OTHER_LOOP_LIMIT_S", 0.01)
    answer = asyncio.run(ask_app(app, "/healthz"))
    assert (answer.status, "does not answer" in answer.text) == (503, True)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    answer = asyncio.run(ask_app(app, "/healthz"))
    assert (answer.status, "has ended" in answer.text) == (503, True)


# Registries, several queues


async def test_a_registry_of_the_users_is_served_as_a_whole() -> None:
    registry = CollectorRegistry(auto_describe=True)
    Counter("mine", "Mine.", registry=registry).inc(3)
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        metrics = Metrics(rig.queue, registry=registry)
        found = samples(await ask_app(metrics.asgi))
        assert found["mine_total"] == 3
        assert found['ledgerq_jobs{queue="mail",state="pending"}'] == 1
        with pytest.raises(ValueError, match="Duplicated"):
            Metrics(rig.queue, registry=registry)
        metrics.close()
        metrics.close()
        assert "ledgerq_jobs" not in (await ask_app(metrics.asgi)).text
        Metrics(rig.queue, registry=registry).close()


async def test_several_queues_are_told_apart_by_their_store() -> None:
    async with Rig() as rig, Queue.open() as other:
        await rig.queue.enqueue("mail", b"a")
        await other.enqueue_many("mail", [b"b", b"c"])
        for openmetrics in ("", OPENMETRICS):
            metrics = Metrics(rig.queue, other, names=["eu", "us"])
            page = await ask_app(metrics.asgi, accept=openmetrics)
            metrics.close()
            found = samples(page)
            assert found['ledgerq_jobs{queue="mail",state="pending",store="eu"}'] == 1
            assert found['ledgerq_jobs{queue="mail",state="pending",store="us"}'] == 2
            assert found['ledgerq_log_epoch{store="us"}'] == 1
            assert page.text.count("# TYPE ledgerq_jobs ") == 1
            assert all("store=" in name for name in found)


async def test_queues_that_can_not_be_told_apart_are_refused() -> None:
    async with Rig() as rig, Queue.open() as other:
        with pytest.raises(InvalidArgument, match="2 queues need as many different names"):
            Metrics(rig.queue, other)
        with pytest.raises(InvalidArgument, match="2 queues need as many different names"):
            Metrics(rig.queue, other, names=["a"])
        with pytest.raises(InvalidArgument, match="at least one"):
            Metrics()
        with pytest.raises(InvalidArgument, match="at least one"):
            Metrics("jobs")  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="worker is a Worker"):
            Metrics(rig.queue, worker=["mail"])  # type: ignore[list-item]
        with pytest.raises(InvalidArgument, match="limit"):
            Metrics(rig.queue, limit=0)
        with pytest.raises(InvalidArgument, match="another queue object"):
            Metrics(rig.queue, worker=Worker(other))
