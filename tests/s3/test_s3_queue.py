"""The queue in a bucket: taken over, rolled back; the errors of its calls and of the command line."""

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import Fenced, LogRolledBack, OutcomeUnknown, StoreUnavailable
from ledgerq.projections.index_keys import stats_key
from ledgerq.worker.queue import Queue
from tests.process.kills import POLL_S, ROOT, START_LIMIT_S, Facts, open_and_check
from tests.s3.bucket_ledgers import Copy, audit_deeply
from tests.s3.servers import both_servers, bucket, s3_server
from tests.support.cli_rig import Cli, change_rows

__all__ = ["bucket", "s3_server"]

TAKEOVERS = 3
TAKEOVER_REPORT_BYTES = 3_000
# An idle writer checks each second whether it is the writer still; a busy machine needs more.
FENCED_LIMIT_S = 90.0
RACES = 3
RACERS = 3
AUDITS = 3
UNREACHABLE_LIMIT_S = 90.0


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port of this machine that stays without a listener."""
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        yield unheard.getsockname()[1]


# Whole life


@pytest.mark.proof
@both_servers
def test_from_the_doctor_to_a_rebuilt_copy(bucket: str, cli: Cli) -> None:
    url, copy = f"s3://{bucket}/jobs", f"s3://{bucket}/copy"
    answer = cli.ok("doctor", url, "--json").json
    found = {check["name"]: check["status"] for check in answer["checks"]}
    rules = ("conditional create", "conditional update", "metadata", "read and list after write")
    assert {name: found[name] for name in rules} == dict.fromkeys(rules, "ok")

    async def work() -> str:
        async with Queue.open(url) as queue:
            job = await queue.enqueue("q", b"payload", headers={"to": "ada"})
            await queue.enqueue("q", b"kept")
            (claim,) = await queue.claim("q")
            assert (claim.job_id, claim.payload, claim.headers) == (job.job_id, b"payload", {"to": "ada"})
            await queue.nack(claim, "boom", dead=True)
            return job.job_id

    job_id = asyncio.run(work())
    assert cli.ok("audit", url, "--deep", "--json").json["differences"] == []
    asyncio.run(change_rows(url, {stats_key("q"): b"damaged"}))
    damaged = cli("audit", url, "--json")
    assert (damaged.code, len(damaged.json["differences"])) == (1, 1)
    cli.ok("rebuild-projections", url, "--into", copy, "--json")
    cli.ok("rebuild-projections", url, "--reason", "a test")
    for place in (url, copy):
        assert cli.ok("audit", place, "--deep", "--json").json["differences"] == []
        assert cli.ok("show", place, job_id, "--json").json["state"] == "dead"


# Takeovers


@pytest.mark.proof
async def test_each_process_takes_the_store_over_from_the_one_before(bucket: str, tmp_path: Path) -> None:
    facts = Facts(tmp_path)
    url = f"s3://{bucket}/jobs"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests/s3/fence_child.py")
    children: list[asyncio.subprocess.Process] = []

    async def check_that_it_was_fenced(child: asyncio.subprocess.Process) -> None:
        """It ends by itself, and each of its tasks ended because of the fence: the claim that waited, too."""
        async with asyncio.timeout(FENCED_LIMIT_S):
            out, err = await child.communicate()
        *ends, closed = out.decode().splitlines()
        assert closed == "closed", err.decode()
        assert {line.partition(" ")[0] for line in ends} > {"producer-0", "worker-0", "operator", "waiting", "later"}
        assert {line.partition(" ")[2] for line in ends} == {"Fenced"}, ends
        assert child.returncode == 0
        assert b"Traceback" not in err

    try:
        for seed in range(TAKEOVERS):
            reported_bytes = facts.size_bytes
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, script, str(tmp_path), str(seed), url),
                env=environment,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            children.append(child)
            if seed:
                # It is at work until the new one is there; only then its last facts are in the file.
                async with asyncio.timeout(START_LIMIT_S):
                    await children[-2].wait()
                await check_that_it_was_fenced(children[-2])
                reported_bytes = facts.size_bytes
            async with asyncio.timeout(START_LIMIT_S):
                while facts.size_bytes < reported_bytes + TAKEOVER_REPORT_BYTES and child.returncode is None:
                    await asyncio.sleep(POLL_S)
        async with Queue.open(url, take_over=True) as queue:
            assert queue.log.epoch == TAKEOVERS + 1
            await check_that_it_was_fenced(children[-1])
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
                await child.wait()
    facts.read()
    fold = await open_and_check(url, facts)
    assert len(facts.enqueued) > TAKEOVERS * 10
    assert (await audit_deeply(url)).jobs == len(fold.jobs)


@pytest.mark.proof
@both_servers
async def test_an_idle_writer_with_a_waiting_claim_learns_that_it_was_fenced(bucket: str) -> None:
    url = f"s3://{bucket}/jobs"
    first = await Queue.open(url)
    told: list[str] = []
    first.on_failure.append(lambda error: told.append(type(error).__name__))
    job = await first.enqueue("q", b"kept", delay=3600)
    waiting = asyncio.create_task(first.claim("q", wait=None))
    async with Queue.open(url, take_over=True) as second:
        async with asyncio.timeout(FENCED_LIMIT_S):
            with pytest.raises(Fenced, match="another process opened"):
                await waiting
        calls = (first.enqueue("q", b"x"), first.claim("q"), first.stats("q"), first.history(job.job_id))
        for call in calls:
            with pytest.raises(Fenced):
                await call
        assert isinstance(first.failure, Fenced)
        assert told == ["Fenced"]
        await first.close()
        assert (await second.get(job.job_id)).state == "scheduled"
        assert (await second.payload(job.job_id)).payload == b"kept"
    assert (await audit_deeply(url)).jobs == 1


@pytest.mark.proof
async def test_of_several_that_open_at_once_one_remains(bucket: str) -> None:
    url = f"s3://{bucket}/jobs"
    rng = random.Random(5)
    reported: set[str] = set()
    last_epoch = 0

    async def race(number: int) -> Queue | None:
        """Open, and work until fenced; the queue when that did not happen."""
        try:
            queue = await Queue.open(url, take_over=True)
        except Fenced:
            return None
        try:
            for _ in range(rng.randrange(1, 4)):
                reported.add((await queue.enqueue("q", b"%d" % number)).job_id)
            while not raced.is_set():
                reported.add((await queue.enqueue("q", b"%d" % number)).job_id)
        except (Fenced, OutcomeUnknown):  # what it met may be another one's fence, before that is known to be one
            await queue.close()
            return None
        return queue

    for _ in range(RACES):
        raced = asyncio.Event()
        async with asyncio.timeout(4 * FENCED_LIMIT_S):
            racers = [asyncio.create_task(race(number)) for number in range(RACERS)]
            while sum(not racer.done() for racer in racers) > 1:
                await asyncio.wait(racers, return_when=asyncio.FIRST_COMPLETED, timeout=0.05)
            raced.set()
            winners = [queue for queue in await asyncio.gather(*racers) if queue is not None]
        (winner,) = winners
        assert winner.log.epoch > last_epoch
        last_epoch = winner.log.epoch
        for job_id in reported:
            assert (await winner.get(job_id)).state == "pending"
        await winner.close()
    await audit_deeply(url)


# The anchor


async def grown_twice(bucket: str, prefix: str) -> tuple[str, Copy, int, int]:
    """A closed queue, a copy of it from an earlier close, and where the log ended then and at last."""
    url = f"s3://{bucket}/{prefix}"
    async with Queue.open(url) as queue:
        for i in range(3):
            await queue.enqueue("q", b"%d" % i)
    copy = Copy(bucket, prefix)
    then = (await audit_deeply(url)).verified.head.next_offset
    async with Queue.open(url) as queue:
        claim = (await queue.claim("q"))[0]
        await queue.ack(claim)
        await queue.enqueue("q", b"newest")
    return url, copy, then, (await audit_deeply(url)).verified.head.next_offset


@pytest.mark.proof
@both_servers
async def test_an_older_copy_under_a_newer_anchor_is_refused(bucket: str) -> None:
    url, copy, then, last = await grown_twice(bucket, "jobs")
    copy.put_back(but=("anchor",))
    for _ in range(2):
        told = rf"offset {last - 1} was durable.*its last offset is {then - 1}\b"
        with pytest.raises(LogRolledBack, match=told) as caught:
            await Queue.open(url)
        assert (caught.value.anchored_offset, caught.value.head_offset) == (last - 1, then)
    with pytest.raises(LogRolledBack):
        await audit_deeply(url)
    async with Queue.open(url, accept_rollback=True) as queue:
        opened = (await anext(queue.log.read(then))).event
        assert getattr(opened, "rolled_back_from", None) == last - 1
        assert (await queue.stats("q")).pending == 3
        await queue.enqueue("q", b"after")
    async with Queue.open(url) as queue:
        assert (await queue.stats("q")).pending == 4
    assert (await audit_deeply(url)).jobs == 4


@pytest.mark.proof
@both_servers
async def test_an_older_copy_with_its_own_anchor_is_found_by_an_anchor_kept_elsewhere(
    bucket: str, tmp_path: Path, cli: Cli
) -> None:
    url, copy, then, last = await grown_twice(bucket, "jobs")
    kept = tmp_path / "anchor"
    kept.write_bytes(copy.read("anchor"))
    copy.put_back()
    assert (await audit_deeply(url)).verified.head.next_offset == then
    ran = await asyncio.to_thread(cli, "audit", url, "--anchor", kept)
    assert ran.code == 1
    assert f"offset {last - 1} was durable" in ran.message


# The command line, and places that aren't there


@both_servers
def test_a_missing_bucket_is_said_in_one_line(bucket: str, cli: Cli) -> None:
    began_s = time.monotonic()
    message = cli.fails(3, "stats", f"s3://{bucket}-not/jobs")
    assert f"no bucket '{bucket}-not'" in message
    assert time.monotonic() - began_s < UNREACHABLE_LIMIT_S


@pytest.mark.proof
def test_a_dead_endpoint_is_said_in_one_line(
    bucket: str, cli: Cli, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    began_s = time.monotonic()
    message = cli.fails(3, "stats", f"s3://{bucket}/jobs")
    assert f"s3://{bucket}/jobs: the object store can't be reached" in message
    assert time.monotonic() - began_s < UNREACHABLE_LIMIT_S


async def test_a_queue_does_not_open_where_no_store_can_be(
    bucket: str, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(UNREACHABLE_LIMIT_S):
        with pytest.raises(StoreUnavailable, match=f"no bucket '{bucket}-not'"):
            await Queue.open(f"s3://{bucket}-not/jobs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port}")
    async with asyncio.timeout(UNREACHABLE_LIMIT_S):
        with pytest.raises(StoreUnavailable, match="can't be reached"):
            await Queue.open(f"s3://{bucket}/jobs")


@pytest.mark.proof
def test_audits_from_the_command_line_while_another_process_writes(bucket: str, tmp_path: Path, cli: Cli) -> None:
    facts = Facts(tmp_path)
    url = f"s3://{bucket}/jobs"
    script = str(ROOT / "tests/process/kill_child.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, script, str(tmp_path), "1", url], env=environment)
    ends: list[int] = []
    try:
        for _ in range(AUDITS):
            wanted_bytes, give_up_s = facts.size_bytes + 1_000, time.monotonic() + START_LIMIT_S
            while facts.size_bytes < wanted_bytes:
                assert child.poll() is None
                assert time.monotonic() < give_up_s
                time.sleep(POLL_S)
            answer = cli.ok("audit", url, "--deep", "--json").json
            assert answer["differences"] == []
            assert answer["payloads"] > 0
            ends.append(answer["head"]["offset"])
        assert ends == sorted(set(ends)), "nothing was written in between"
        assert child.poll() is None, "the audit stopped the writer"
    finally:
        child.kill()
        child.wait()
