"""`ledgerq worker --metrics-port`: the numbers of a running worker, and that a kill -9 takes none of them away."""

import asyncio
import socket
from collections import Counter
from pathlib import Path

import pytest

from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli
from tests.support.programs import LIMIT_S, Program, program
from tests.support.web import ask_app, samples

JOBS = """
import asyncio

from ledgerq import Queue, QueueOptions, Worker

URL = {url!r}
tasks = []

async def make():
    queue = await Queue.open(URL, default=QueueOptions(backoff_base_s=0.01))
    worker = Worker(queue, concurrency=4)

    @worker.handler("mail")
    async def send(job):
        if job.payload == b"bad":
            raise ValueError("bad")

    async def produce():
        while True:
            await queue.enqueue_many("mail", [b"good", b"bad", b"good"])
            await asyncio.sleep(0.001)

    if {busy}:
        tasks.append(asyncio.create_task(produce()))
    return worker
"""
COUNTED = {"lease_expired": "LeaseExpired", "nacked": "Nacked"} | {
    name: name.title() for name in ("enqueued", "promoted", "claimed", "acked")
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def transitions(found: dict[str, float]) -> dict[str, float]:
    prefix = "ledgerq_transitions_total"
    return {name: value for name, value in found.items() if name.startswith(prefix)}


async def until_acked(worker: Program, count: int) -> dict[str, float]:
    async with asyncio.timeout(LIMIT_S):
        while True:
            found = samples(await worker.ask())
            if found.get('ledgerq_transitions_total{kind="acked",queue="mail"}', 0) >= count:
                return found
            await asyncio.sleep(0.05)


async def test_a_worker_serves_its_numbers_and_ends_cleanly(tmp_path: Path, url: str) -> None:
    (tmp_path / "metrics_jobs.py").write_text(JOBS.format(url=url, busy=False))
    async with Queue.open(url) as queue:
        await queue.enqueue_many("mail", [b"good", b"good"])
    async with program("worker", "metrics_jobs:make", "--metrics-port", "0", folder=tmp_path) as worker:
        found = await until_acked(worker, 2)
        assert found['ledgerq_jobs{queue="mail",state="done"}'] == 2
        assert (await worker.ask("/readyz")).json == {"ready": True, "reasons": []}
        assert await worker.end() == (0, "")


def test_a_port_in_use_ends_the_worker_before_it_claims(tmp_path: Path, url: str, cli: Cli) -> None:
    (tmp_path / "metrics_taken.py").write_text(JOBS.format(url=url, busy=False))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = cli.fails(2, "worker", "metrics_taken:make", "--metrics-port", port)
    assert line.startswith(f"ledgerq: metrics can't be served at 127.0.0.1 port {port}: Address already in use")
    assert cli.ok("log", url, "--json").lines[-1]["event"] == "writer-closed"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, monkeypatch)


@pytest.mark.proof
async def test_a_kill_takes_no_number_away(tmp_path: Path, url: str) -> None:
    (tmp_path / "metrics_busy.py").write_text(JOBS.format(url=url, busy=True))
    before: dict[str, float] = {}
    for kill in range(1, 4):
        async with program("worker", "metrics_busy:make", "--metrics-port", "0", folder=tmp_path) as worker:
            found = await until_acked(worker, 100 * kill)
            assert all(found[name] >= value for name, value in transitions(before).items())
            assert (await worker.end(9))[0] == -9
        before = found
    async with Queue.open(url) as queue:
        metrics = Metrics(queue)
        after = samples(await ask_app(metrics.asgi))
        metrics.close()
        # Retries become due while this looks on: what counts is the log up to the page's own commit.
        end = int(after["ledgerq_log_events_total"])
        events = Counter([type(record.event).__name__ async for record in queue.log.read(0, end)])
        assert all(after[name] >= value for name, value in transitions(before).items())
        for kind, event in COUNTED.items():
            assert after[f'ledgerq_transitions_total{{kind="{kind}",queue="mail"}}'] == events[event], kind
        assert events["Nacked"] > 0
        assert events.total() == end
