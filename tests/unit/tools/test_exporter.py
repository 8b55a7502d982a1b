"""`ledgerq exporter` beside a writer in another process: the same numbers, from a store that it never writes."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.s3.servers import bucket, s3_server
from tests.support.cli_rig import Cli, change_rows
from tests.support.programs import LIMIT_S, ROOT, Program, program
from tests.support.web import Answer, samples, series

__all__ = ["bucket", "s3_server"]

OFTEN = ("--port", "0", "--interval", "0.1")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file with its size and the time of its last change."""
    found = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so."""
    async with asyncio.timeout(LIMIT_S):
        while not await what():
            await asyncio.sleep(0.02)


async def readiness(exporter: Program, status: int) -> Answer:
    """The answer of /readyz once it has this status."""
    answer = await exporter.ask("/readyz")

    async def asked() -> bool:
        nonlocal answer
        answer = await exporter.ask("/readyz")
        return answer.status == status

    await until(asked)
    return answer


async def converged(exporter: Program, queue: Queue, *names: str) -> dict[str, float]:
    """The page once it is of the writer's newest commit: then all its numbers are the writer's."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            head = await queue.log.head()
            found = samples(await exporter.ask())
            stats = [await queue.stats(name) for name in names]
            # A retry may become due meanwhile, and then there is a newer commit.
            if found.get("ledgerq_log_events_total") == head.next_offset and await queue.log.head() == head:
                break
            await asyncio.sleep(0.02)
    for name, one in zip(names, stats, strict=True):
        for state in ("scheduled", "pending", "claimed", "done", "dead", "cancelled"):
            assert found[series("ledgerq_jobs", queue=name, state=state)] == getattr(one, state)
        for kind, count in one.totals.items():
            assert found[series("ledgerq_transitions_total", queue=name, kind=kind)] == count
        assert found[series("ledgerq_queue_paused", queue=name)] == one.paused
        assert found[series("ledgerq_job_waiting_seconds_count", queue=name)] == one.totals["claimed"]
        assert found[series("ledgerq_job_attempts_count", queue=name)] == one.totals["acked"]
    assert found["ledgerq_log_epoch"] == queue.log.epoch
    assert found["ledgerq_log_last_commit_timestamp_seconds"] == pytest.approx(head.time_ms / 1000)
    return found


async def work(queue: Queue, rounds: int) -> None:
    """Some of everything."""
    for number in range(rounds):
        await queue.enqueue_many("mail", [b"a", b"b", b"c"])
        await queue.enqueue("later", b"d", delay=3600)
        claims = await queue.claim("mail", limit=2)
        await queue.ack_many(claims[:1])
        for claim in claims[1:]:
            await queue.nack(claim, "boom", dead=number % 2 == 0)


async def test_its_numbers_are_the_writers(tmp_path: Path, url: str) -> None:
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        # There is no store yet: it waits for one.
        answer = await readiness(exporter, 503)
        assert "there is no store" in answer.json["reasons"][0] or "not read yet" in answer.json["reasons"][0]
        assert samples(await exporter.ask()) == {}
        assert (await exporter.ask("/healthz")).status == 200
        for _ in range(2):  # a writer that restarts changes nothing
            async with Queue.open(url) as queue:
                for _ in range(2):
                    await work(queue, 4)
                    await converged(exporter, queue, "mail", "later")
                await queue.pause("mail", actor="ada", reason="a test")
                await converged(exporter, queue, "mail")
                await queue.resume("mail", actor="ada", reason="a test")
                assert (await readiness(exporter, 200)).json == {"ready": True, "reasons": []}
                # It fenced no writer.
                assert queue.failure is None
        code, said = await exporter.end(signal.SIGINT)
        assert code == 0
        assert said.splitlines()[-1] == "ledgerq: the store is read again"
        assert "Traceback" not in said


@pytest.mark.proof
async def test_what_it_shows_is_of_one_commit_however_busy_the_writer_is(tmp_path: Path, url: str) -> None:
    async with Queue.open(url) as queue:
        await queue.enqueue("mail", b"a")
        working = asyncio.create_task(work(queue, 1_000_000))
        async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
            await readiness(exporter, 200)
            seen: set[float] = set()

            async def looked() -> bool:
                found = samples(await exporter.ask())
                kinds = ("enqueued", "claimed", "acked", "nacked", "promoted", "lease_expired")
                totals = [
                    value
                    for name, value in found.items()
                    if name.startswith("ledgerq_transitions_total") and any(f'kind="{kind}"' in name for kind in kinds)
                ]
                # Every event of this load is one of these, but that the writer opened.
                assert sum(totals) + 1 == found["ledgerq_log_events_total"]
                seen.add(found["ledgerq_log_events_total"])
                return len(seen) >= 10

            await until(looked)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@pytest.mark.proof
async def test_it_writes_nothing(tmp_path: Path, url: str) -> None:
    async with Queue.open(url) as queue:
        await work(queue, 5)
    before = listing(tmp_path / "store")
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        await readiness(exporter, 200)
        reads: set[float] = set()

        async def read() -> bool:
            reads.add(samples(await exporter.ask())["ledgerq_read_timestamp_seconds"])
            return len(reads) >= 8

        await until(read)
        assert (await exporter.end())[0] == 0
    assert listing(tmp_path / "store") == before
    async with Queue.open(url) as queue:
        assert queue.log.epoch == 2


def durable(found: dict[str, float]) -> dict[str, float]:
    """What doesn't change by time alone."""
    return {name: value for name, value in found.items() if name.startswith(("ledgerq_jobs", "ledgerq_transitions"))}


@pytest.mark.proof
async def test_it_keeps_serving_while_the_store_is_away(tmp_path: Path, url: str) -> None:
    store, away = tmp_path / "store", tmp_path / "away"
    async with Queue.open(url) as queue:
        await work(queue, 5)
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        await readiness(exporter, 200)
        before = samples(await exporter.ask())
        store.rename(away)
        (reason,) = (await readiness(exporter, 503)).json["reasons"]
        assert "are gone" in reason or "no store" in reason
        during = samples(await exporter.ask())
        assert during.keys() == before.keys()
        assert durable(during) == durable(before)
        away.rename(store)
        await readiness(exporter, 200)
        read = "ledgerq_read_timestamp_seconds"
        assert samples(await exporter.ask())[read] > during[read]
        async with Queue.open(url) as queue:
            await work(queue, 5)
            await converged(exporter, queue, "mail", "later")
        assert (await exporter.end())[0] == 0


@pytest.mark.proof
async def test_another_store_in_its_place_is_followed(tmp_path: Path, url: str) -> None:
    store, copy = tmp_path / "store", tmp_path / "copy"
    async with Queue.open(url) as queue:
        await work(queue, 3)
    shutil.copytree(store, copy)
    async with Queue.open(url) as queue:
        await work(queue, 20)
        await queue.enqueue("gone", b"later")
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        await readiness(exporter, 200)
        assert series("ledgerq_jobs", queue="gone", state="pending") in samples(await exporter.ask())
        shutil.rmtree(store)
        await readiness(exporter, 503)
        copy.rename(store)
        await readiness(exporter, 200)
        async with Queue.open(url) as queue:
            found = await converged(exporter, queue, "mail", "later")
            assert series("ledgerq_jobs", queue="gone", state="pending") not in found


@pytest.mark.proof
async def test_files_that_the_writer_removes_are_no_trouble(tmp_path: Path, url: str) -> None:
    options = StoreOptions(
        fsync=False, gc_interval_s=0.1, gc_age_s=0.1, l0_sst_bytes=1024 * 1024, max_wal_flushes_before_l0_flush=5
    )
    async with Queue.open(url, store_options=options, default=QueueOptions(keep_done_s=0.1)) as queue:
        await work(queue, 3)
        async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
            await readiness(exporter, 200)
            first = {path.name for path in (tmp_path / "store" / "wal").iterdir()}

            async def removed() -> bool:
                await work(queue, 5)
                # The first one, with which the writer fenced those before it, stays.
                return len(first & {path.name for path in (tmp_path / "store" / "wal").iterdir()}) <= 1

            await until(removed)
            await converged(exporter, queue, "mail", "later")
            assert (await exporter.ask("/readyz")).status == 200


def run_command(*argv: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ledgerq.tools.cli", *argv]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)


@pytest.mark.proof
async def test_a_damaged_row_and_a_rebuild_are_waited_out(tmp_path: Path, url: str) -> None:
    async with Queue.open(url) as queue:
        await work(queue, 2)
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        await readiness(exporter, 200)
        before = samples(await exporter.ask())
        await change_rows(url, {b"i/stats/mail": b"nonsense"})
        (reason,) = (await readiness(exporter, 503)).json["reasons"]
        assert "run rebuild-projections" in reason
        assert samples(await exporter.ask()).keys() == before.keys()
        await change_rows(url, {b"m/rebuild": b"\x91\xc0"})

        async def told() -> bool:
            return "is under way or was interrupted" in str((await exporter.ask("/readyz")).json)

        await until(told)
        rebuilding = await asyncio.to_thread(run_command, "rebuild-projections", url)
        assert rebuilding.returncode == 0, rebuilding.stderr
        await readiness(exporter, 200)


@pytest.mark.proof
async def test_a_bucket(tmp_path: Path, bucket: str) -> None:
    url = f"s3://{bucket}/store"
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        for _ in range(2):
            async with Queue.open(url, commit_interval_ms=1) as queue:
                await work(queue, 3)
                await converged(exporter, queue, "mail", "later")
        assert (await exporter.end())[0] == 0


# The command line


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def test_wrong_usage_is_one_line(cli: Cli, url: str) -> None:
    assert "ends with its process" in cli.fails(2, "exporter", "memory:///")
    assert "unknown scheme" in cli.fails(2, "exporter", "ftp://x/y")
    assert "interval is a number of seconds from 0.1 on" in cli.fails(2, "exporter", url, "--interval", "0")
    assert "interval is a number of seconds from 0.1 on" in cli.fails(2, "exporter", url, "--interval", "nan")
    assert "port is a whole number" in cli.fails(2, "exporter", url, "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}: Address already in use" in cli.fails(2, "exporter", url, "--port", port)


@pytest.mark.proof
async def test_what_waiting_can_not_mend_ends_it_at_once(tmp_path: Path, url: str) -> None:
    async with Queue.open(url) as queue:
        await queue.enqueue("mail", b"a")
    await change_rows(url, {b"m/format": b"99"})
    async with program("exporter", url, *OFTEN, folder=tmp_path) as exporter:
        code, said = await exporter.ended()
    assert code == 3
    assert said.count("\n") == 1
    assert "upgrade ledgerq" in said
