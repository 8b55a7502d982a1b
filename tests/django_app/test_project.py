"""The project of examples/django_project under gunicorn, with a worker, while one of its processes is killed."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from ledgerq.eventlog.events import Acked, Enqueued, WriterOpened
from ledgerq.eventlog.single_writer.holder import HOLDER_NAME
from ledgerq.worker.queue import Queue

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "examples" / "django_project"
LIMIT_S = 120
POLL_S = 0.1
THREADS = 4
ORDERS = 45


class Program:
    """A program that runs beside the test, and its output, read as far as it was asked for."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{PROJECT}"} | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.said: list[str] = []

    def until(self, pattern: str, times: int = 1) -> list[str]:
        """What the lines that match the pattern have in its group, once there were so many."""
        assert self.process.stdout is not None
        found: list[str] = []
        while len(found) < times:
            line = self.process.stdout.readline()
            assert line, "".join(self.said)
            self.said.append(line)
            found += re.findall(pattern, line)
        return found

    def end(self) -> int:
        """Its exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=LIMIT_S)
        self.said.append(rest)
        return self.process.returncode


@contextmanager
def program(*command: str, **env: str) -> Iterator[Program]:
    """Run a program while the block runs."""
    running = Program(list(command), env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate(timeout=LIMIT_S)


def fetch(url: str) -> dict[str, str] | None:
    """The answer of a page; None when its process was killed before it gave one."""
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
            found: dict[str, str] = json.load(answer)
            return found
    except urllib.error.HTTPError:
        raise
    except OSError:
        return None


def order_all(site: str, kill: Callable[[], None]) -> list[str]:
    """Make all orders, four at a time; after a third of them `kill` is called. The ids that were answered."""
    with ThreadPoolExecutor(THREADS) as threads:
        first = list(threads.map(lambda number: fetch(f"{site}/orders/{number}"), range(ORDERS // 3)))
        rest = [threads.submit(fetch, f"{site}/orders/{number}") for number in range(ORDERS // 3, ORDERS)]
        kill()
        answers = [*first, *(one.result(LIMIT_S) for one in rest)]
    return [answer["id"] for answer in answers if answer is not None]


async def check_jobs(store: Path, answered: list[str]) -> int:
    """Each answered order is there once, and was done once; no more are there than were made. How many have written."""
    async with Queue.open(store) as queue:
        records = [record async for record in queue.log.read()]
        enqueued = [record.event.id for record in records if isinstance(record.event, Enqueued)]
        done = [record.event.id for record in records if isinstance(record.event, Acked)]
        stats = await queue.stats("mail")
        assert len(enqueued) == len(set(enqueued)) <= ORDERS + 1  # one before all others
        assert sorted(done) == sorted(enqueued)
        assert (stats.done, stats.pending, stats.claimed) == (len(enqueued), 0, 0)
        assert {(await queue.get(job_id)).state for job_id in answered} == {"done"}
        return sum(isinstance(record.event, WriterOpened) for record in records) - 1


@pytest.mark.proof
@pytest.mark.parametrize("way", ["shared", "served"])
def test_the_processes_of_gunicorn_enqueue_and_one_is_killed(way: str, tmp_path: Path) -> None:
    store = tmp_path / "jobs"
    if way == "shared":
        answered = run_site(tmp_path, str(store), 4)
    else:
        serve = ("-m", "ledgerq.tools.cli", "serve", str(store), "--listen", "127.0.0.1:0", "--json")
        with program(*serve) as service:
            (url,) = service.until(r'"service_url": ?"([^"]+)"')
            answered = run_site(tmp_path, url, 2)
            assert service.end() == 0
    assert asyncio.run(check_jobs(store, answered)) >= (2 if way == "shared" else 1)


def run_site(folder: Path, url: str, processes: int) -> list[str]:
    """Serve the project with gunicorn, run its worker, order, kill one process; returns the ids that were answered."""
    env = {"SHOP_DIR": str(folder), "LEDGERQ_URL": url}
    gunicorn = ("-m", "gunicorn", "shop.wsgi", "--workers", str(processes), "--bind", "127.0.0.1:0", "--preload")
    worker = ("manage.py", "ledgerq_worker", "--name", "w1")
    with program(*gunicorn, **env) as site:
        (address,) = site.until(r"Listening at: (http\S+)")
        pids = site.until(r"Booting worker with pid: (\d+)", processes)
        assert fetch(f"{address}/orders/0") is not None
        with program(*worker, **env) as work:
            work.until(r"w1 works on default, mail of (\S+)")
            answered = order_all(address, lambda: os.kill(writer_of(folder, pids), signal.SIGKILL))
            assert len(answered) >= ORDERS - 2 * THREADS
            texts = [until_confirmed(address, job_id, work) for job_id in answered]
            assert all("confirmed at try" in text for text in texts)
            assert (work.end(), site.end()) == (0, 0), "".join((*work.said, *site.said))
    return answered


def writer_of(folder: Path, pids: list[str]) -> int:
    """The process of the site that writes the shared store, by the lock that it holds; without one, the first."""
    lock = str(folder / "jobs" / HOLDER_NAME)
    for pid in pids:
        if lock in [os.path.realpath(link) for link in Path(f"/proc/{pid}/fd").iterdir()]:
            return int(pid)
    return int(pids[0])


def until_confirmed(address: str, job_id: str, work: Program) -> str:
    """The text of an order's confirmation, once it is there."""
    while True:
        found = fetch(f"{address}/confirmations/{job_id}")
        if found is not None and found["status"] == "SUCCESSFUL":
            return found["text"]
        assert work.process.poll() is None, "".join(work.said)
        time.sleep(POLL_S)
