"""One run of the scripted load under the eyes of a real Prometheus, for the tests and for the picture.

Three processes are watched, with the configuration and rules that `ledgerq monitoring export` writes: a worker, which
is killed and started again, an exporter beside it, and a writer that was fenced. A minute of the rules is a second
here, so that alerts that want to wait fire within the run. They go to an Alertmanager, where there is one.
"""

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ledgerq.tools.bench.seaweed import free_ports
from ledgerq.tools.monitoring import generate
from ledgerq.tools.monitoring.dashboard import filled_in
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.queue import Queue
from tests.monitoring.prometheus import ALERTMANAGER, LIMIT_S, Prometheus, running_alertmanager, running_prometheus
from tests.monitoring.scripted_load import URL_VARIABLE
from tests.support.programs import ROOT, program

__all__ = ["WORKER", "Run", "as_grafana", "observed"]

WORKER = "ledgerq"
SCRAPE_INTERVAL = "1s"
# What Grafana would make of a scrape interval of 2.5 s: four of them. A shorter one would have holes on a busy machine.
RATE_INTERVAL = "10s"
BEFORE_KILL_S = 15.0
AFTER_RESTART_S = 6.0
KINDS = (
    *("enqueued", "promoted", "claimed", "acked", "nacked", "lease_expired", "cancel_requested", "cancelled"),
    *("requeued", "swept", "dead", "released"),
)

# What the load makes fire, and for what.
FIRING = {
    "LedgerqDeadLetters": 'queue="invoices"',
    "LedgerqLeasesExpiring": 'queue="orders"',
    "LedgerqHandlersFailing": 'queue="invoices"',
    "LedgerqClaimsLost": f'job="{WORKER}"',
    "LedgerqWriterFenced": 'job="fenced"',
}


class Run(NamedTuple):
    """What was run. Times are those of scrapes of the worker, in seconds since 1970: the first, the last before it was
    killed, the first and the last of the one after it. `pages` are the texts that the processes served.
    """

    prometheus: Prometheus
    url: str
    began: float
    killed: float
    restarted: float
    ended: float
    pages: dict[str, str]


def as_grafana(expr: str, queue: str = ".*", rate_interval: str = RATE_INTERVAL) -> str:
    """An expression with the dashboard's variables filled in as Grafana does it.

    `$job` is one value, and `All` of the others is their allValue; several chosen ones would be `(mail|images)`.
    """
    values = {"job": WORKER, "instance": ".*", "queue": queue, "__rate_interval": rate_interval}
    return filled_in(expr, values)


def hurried(rules: str) -> str:
    """Rules in which an hour is a minute, and a minute a second."""
    faster = re.sub(r"\b(\d+)m\b", r"\1s", rules)
    return re.sub(r"\b(\d+)h\b", r"\1m", faster)


def configure(folder: Path, ports: dict[str, int]) -> Path:
    """The exported files, made to look at these ports, often."""
    for name, text in generate.contents().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(hurried(text) if name.startswith("rules/") else text)
    config = folder / "prometheus.yml"
    text = config.read_text().replace("15s", SCRAPE_INTERVAL)
    places = {"localhost:9464": WORKER, "localhost:9465": "ledgerq-exporter", "localhost:9093": "alertmanager"}
    for example, job in places.items():
        assert example in text
        text = text.replace(example, f"127.0.0.1:{ports[job]}")
    text += f'  - job_name: fenced\n    static_configs: [{{targets: ["127.0.0.1:{ports["fenced"]}"]}}]\n'
    config.write_text(text)
    return config


@contextlib.asynccontextmanager
async def fenced_writer(folder: Path, port: int) -> AsyncIterator[None]:
    """A process (this one) that serves its metrics, and whose store another one has opened since."""
    url = str(folder / "fenced")
    async with Queue.open(url) as queue:
        metrics = Metrics(queue)
        async with metrics.serve(port=port), Queue.open(url, take_over=True):
            yield
        metrics.close()


async def prepare(url: str) -> None:
    """A store whose audit was recorded."""
    async with Queue.open(url) as queue:
        await queue.enqueue("mail", b"first")
    command = [sys.executable, "-m", "ledgerq.tools.cli", "audit", url, "--record"]
    await asyncio.to_thread(subprocess.run, command, cwd=ROOT, check=True, capture_output=True)


_SCRAPED = f'timestamp(ledgerq_log_events_total{{job="{WORKER}"}})'


class Watch:
    """What the run waits for, asked of Prometheus in a thread, while the loop serves the fenced writer's metrics."""

    def __init__(self, prometheus: Prometheus) -> None:
        self._prometheus = prometheus

    async def until(self, expr: str, what: str, limit_s: float = LIMIT_S) -> None:
        """Until the expression has a value that is not 0."""
        holds = lambda: any(series.value for series in self._prometheus.query(expr))  # noqa: E731
        await asyncio.to_thread(self._prometheus.until, holds, what, limit_s)

    async def scraped_for(self, seconds: float, since: float) -> None:
        """Until the worker was scraped that long after."""
        scraped = f'timestamp(up{{job="{WORKER}"}}) > {since + seconds}'
        await self.until(scraped, f"scrapes for {seconds:g} s", LIMIT_S + seconds)

    async def last_scrape(self) -> float:
        """When the worker was scraped last; waits until it was."""
        expr = f"max_over_time({_SCRAPED}[5m:100ms])"
        # The subquery's steps are at multiples of 100 ms: just after a scrape the last one is before it.
        await self.until(expr, "the worker is scraped")
        return await asyncio.to_thread(self._prometheus.value, expr, time.time() + 0.2)

    async def last_scrape_before_down(self) -> float:
        """The same, once it is known that it is down."""
        await self.until(f'up{{job="{WORKER}"}} == bool 0', "the worker is seen to be down")
        return await self.last_scrape()


async def drive(
    prometheus: Prometheus, folder: Path, ports: dict[str, int], before_kill_s: float, after_restart_s: float
) -> Run:
    """The whole run."""
    url, watch, pages = str(folder / "store"), Watch(prometheus), {}
    acked = f'sum(ledgerq_transitions_total{{job="{WORKER}",kind="acked"}})'
    serve = ("worker", "tests.monitoring.scripted_load:make", "--metrics-port", str(ports[WORKER]))
    export = ("exporter", url, "--interval", "0.5", "--port", str(ports["ledgerq-exporter"]))
    await prepare(url)
    for name in ("worker", "exporter"):
        (folder / name).mkdir()
    async with fenced_writer(folder, ports["fenced"]), program(*export, folder=folder / "exporter") as exporter:
        async with program(*serve, folder=folder / "worker") as worker:
            await watch.until(f"{acked} > 20", "jobs are acked")
            began = await watch.last_scrape()
            seen = " and ".join(f'sum(ledgerq_transitions_total{{job="{WORKER}",kind="{kind}"}}) > 0' for kind in KINDS)
            await watch.until(f"{seen} and sum(ledgerq_worker_claims_lost_total) > 1", "everything happens")
            for alert, matcher in FIRING.items():
                firing = f'ALERTS{{alertname="{alert}",alertstate="firing",{matcher}}}'
                await watch.until(firing, f"{alert} fires")
            await watch.scraped_for(before_kill_s, began)
            pages = {"worker": (await worker.ask()).text, "exporter": (await exporter.ask()).text}
            await worker.end(signal.SIGKILL)
            killed = await watch.last_scrape_before_down()
        async with program(*serve, folder=folder / "worker") as worker:
            await watch.until(f'up{{job="{WORKER}"}} == 1', "the worker is back")
            restarted = await watch.last_scrape()
            await watch.scraped_for(after_restart_s, restarted)
            await worker.end()
            ended = await watch.last_scrape_before_down()
        await watch.until('ALERTS{alertname="LedgerqWriterGone",alertstate="firing"}', "the writer is missed")
    return Run(prometheus, url, began, killed, restarted, ended, pages)


@contextlib.contextmanager
def observed(
    folder: Path, before_kill_s: float = BEFORE_KILL_S, after_restart_s: float = AFTER_RESTART_S
) -> Iterator[Run]:
    """The run, done; Prometheus goes on so that it can be asked about it."""
    jobs = (WORKER, "ledgerq-exporter", "fenced", "alertmanager")
    ports = dict(zip(jobs, free_ports(len(jobs)), strict=True))
    with contextlib.ExitStack() as running:
        if ALERTMANAGER is not None:
            ports["alertmanager"] = running.enter_context(running_alertmanager(folder))
        config = configure(folder / "monitoring", ports)
        prometheus = running.enter_context(running_prometheus(config, folder))
        patch = running.enter_context(pytest.MonkeyPatch.context())
        patch.setenv(URL_VARIABLE, str(folder / "store"))
        yield asyncio.run(drive(prometheus, folder, ports, before_kill_s, after_restart_s))
