"""The commands that change a queue: enqueue, requeue, cancel, pause, resume, worker; none fences unasked."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import Fenced
from ledgerq.tools.cli.worker import worker as worker_command
from ledgerq.tools.console import arguments
from ledgerq.tools.console.opening import LastWriter, last_writer, reading
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, change_rows, live_queue


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


def state(cli: Cli, url: str, job_id: str) -> str:
    return str(cli.ok("show", url, job_id, "--json").json["state"])


async def make_dead(url: str) -> str:
    async with Queue.open(url) as queue:
        job = await queue.enqueue("mail", b"x")
        (claim,) = await queue.claim("mail")
        await queue.nack(claim, "boom", dead=True)
        return job.job_id


def test_enqueue_makes_the_store_and_says_the_id(cli: Cli, url: str) -> None:
    job_id = cli.ok("enqueue", url, "mail", "text").out.strip()
    shown = cli.ok("show", url, job_id, "--json").json
    assert (shown["state"], shown["payload"], shown["headers"], shown["priority"]) == ("pending", "text", {}, 1000)
    assert cli.ok("audit", url, "--deep", "--json").json["clean"] is True


def test_enqueue_with_everything(cli: Cli, url: str) -> None:
    options = ["--priority", 5, "--run-at", "2100-01-01T00:00:00Z", "--max-attempts", 9, "--unique-key", "k"]
    options += ["--unique-until", "claimed", "--header", "a=b=c", "--header", "d=", "--json"]
    job_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    made = cli.ok("enqueue", url, "mail", "-", *options, "--job-id", job_id, stdin=b"\xff\x00")
    assert made.json == {"job_id": job_id, "queue": "mail", "created": True, "replaced": False}
    shown = cli.ok("show", url, job_id, "--json").json
    assert (shown["state"], shown["due"], shown["payload"]) == (
        "scheduled",
        "2100-01-01T00:00:00.000Z",
        {"base64": "/wA="},
    )
    assert (shown["priority"], shown["max_attempts"], shown["headers"]) == (5, 9, {"a": "b=c", "d": ""})
    assert (shown["unique_key"], shown["unique_until"]) == ("k", "claimed")
    again = cli.ok("enqueue", url, "mail", "y", "--unique-key", "k", "--json")
    assert again.json == {"job_id": job_id, "queue": "mail", "created": False, "replaced": False}
    assert "nothing was added" in again.message
    assert job_id in cli.fails(1, "enqueue", url, "mail", "y", "--job-id", job_id)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["mail", "x", "--delay", "-1"], "delay"),
        (["mail", "x", "--delay", "nan"], "delay"),
        (["mail", "x", "--run-at", "soon"], "is not a time"),
        (["mail", "x", "--header", "novalue"], "NAME=VALUE"),
        (["mail", "x", "--max-attempts", "0"], "max_attempts"),
        (["mail", "x", "--unique-key", "k", "--unique-until", "never"], "never"),
        (["mail", "x", "--job-id", "nonsense"], "nonsense"),
        (["", "x"], "queue name"),
    ],
)
def test_enqueue_refuses_before_it_writes(cli: Cli, url: str, argv: list[str], says: str) -> None:
    assert says in cli.fails(2, "enqueue", url, *argv)
    ran = cli("stats", url, "--json")
    assert ran.code == 3 or ran.json["queues"] == []


def test_a_terminal_is_no_payload(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("ledgerq.tools.console.payloads.sys.stdin", Terminal())
    from ledgerq.eventlog.errors import InvalidArgument
    from ledgerq.tools.console.payloads import given_payload

    with pytest.raises(InvalidArgument, match="pipe it"):
        given_payload("-")


def test_requeue(cli: Cli, url: str) -> None:
    job_id = asyncio.run(make_dead(url))
    ran = cli.ok("requeue", url, job_id, "--reason", "fixed", "--actor", "ann")
    assert ran.out == f"job {job_id} of queue mail is pending\n"
    last = cli.ok("history", url, job_id, "--json").lines[-1]
    assert (last["event"], last["actor"], last["reason"]) == ("requeued", "ann", "fixed")
    assert "only a dead job can be" in cli.fails(1, "requeue", url, job_id, "--reason", "again")


def test_cancel(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "bob")
    job_id = cli.ok("enqueue", url, "mail", "x").out.strip()
    assert cli.ok("cancel", url, job_id, "--reason", "why", "--json").json["state"] == "cancelled"
    assert cli.ok("history", url, job_id, "--json").lines[-1]["actor"] == "bob"
    assert cli.fails(1, "cancel", url, job_id, "--reason", "why").startswith(f"ledgerq: job {job_id} is cancelled")
    assert "no job" in cli.fails(1, "cancel", url, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "--reason", "why")


def test_pause_and_resume(cli: Cli, url: str) -> None:
    cli.ok("enqueue", url, "mail", "x")
    assert cli.ok("pause", url, "mail", "--reason", "why").out == "queue mail is paused\n"
    assert cli.ok("stats", url, "--json").json["queues"][0]["paused"] is True
    assert cli.ok("resume", url, "mail", "--reason", "why", "--json").json == {"queue": "mail", "paused": False}
    assert cli.ok("stats", url, "--json").json["queues"][0]["paused"] is False


@pytest.mark.parametrize("command", ["requeue", "cancel", "pause", "resume"])
def test_operators_give_their_reason_and_make_no_store(cli: Cli, tmp_path: Path, command: str) -> None:
    url, target = str(tmp_path / "none"), "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    assert "--reason" in cli.fails(2, command, url, target)
    assert "reason must be text" in cli.fails(2, command, url, target, "--reason", " ")
    assert "there is no store" in cli.fails(3, command, url, target, "--reason", "why")
    assert "there is no store" in cli.fails(3, command, url, target, "--reason", "why", "--take-over")
    assert "ends with its process" in cli.fails(2, command, "memory:///", target, "--reason", "why")
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert arguments.system_user() == f"uid {os.getuid()}"


# Who owns the store


def test_a_live_writer_is_not_fenced_unasked(cli: Cli, url: str) -> None:
    with live_queue(url) as (runner, queue):
        job = runner.run(queue.enqueue("mail", b"x"))
        for argv in (
            ["enqueue", url, "mail", "y"],
            ["cancel", url, job.job_id, "--reason", "why"],
            ["requeue", url, job.job_id, "--reason", "why"],
            ["pause", url, "mail", "--reason", "why"],
            ["resume", url, "mail", "--reason", "why"],
            ["rebuild-projections", url],
        ):
            line = cli.fails(5, *argv)
            assert "is in use by this very process" in line
            assert "--take-over" in line
            assert "--wait" in line
            error = json.loads(cli.fails(5, *argv, "--json"))
            assert (error["error"], error["permanent"], error["pid"]) == ("StoreInUse", False, os.getpid())
            assert error["host"] == socket.gethostname()
        assert runner.run(queue.enqueue("mail", b"z")).created
        cli.ok("pause", url, "mail", "--reason", "why", "--take-over")
        with pytest.raises(Fenced):
            runner.run(queue.enqueue("mail", b"z"))
    cli.ok("resume", url, "mail", "--reason", "the writer that took over has closed")


def test_the_writer_before_is_found_in_a_long_log(url: str) -> None:
    async def look() -> tuple[LastWriter | None, int]:
        for writer in range(3):
            async with Queue.open(url) as queue:
                for _ in range(5 * writer):
                    await queue.enqueue("mail", b"x")
        async with reading(url) as log:
            opened = [record.time_ms async for record in log.read() if type(record.event).__name__ == "WriterOpened"]
            return await last_writer(log), opened[-1]

    found, opened_ms = asyncio.run(look())
    assert found == LastWriter(f"{socket.gethostname()}:{os.getpid()}", opened_ms, True)


@pytest.mark.proof
def test_an_interrupted_rebuild_is_left_to_the_rebuild(cli: Cli, url: str) -> None:
    cli.ok("enqueue", url, "mail", "x")
    asyncio.run(change_rows(url, {keys.REBUILD_KEY: b"\x91\xc0"}))
    assert "rebuild" in cli.fails(3, "pause", url, "mail", "--reason", "why")
    cli.ok("rebuild-projections", url)
    cli.ok("pause", url, "mail", "--reason", "why")


# The worker

JOBS = """
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker

URL = {url!r}

async def make():
    queue = await Queue.open(URL)
    worker = Worker(queue, concurrency=2)

    @worker.handler("mail")
    async def send(job):
        print("sent", job.payload.decode(), flush=True)

    return worker

async def broken():
    raise RuntimeError("no luck")

async def nothing():
    return 7

text = "text"
"""


def run_worker(folder: Path, *argv: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "ledgerq.tools.cli", "worker", *argv]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_worker(cli: Cli, url: str, tmp_path: Path) -> None:
    (tmp_path / "cli_jobs_ok.py").write_text(JOBS.format(url=url))
    cli.ok("enqueue", url, "mail", "one")
    with run_worker(tmp_path, "cli_jobs_ok:make") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "sent one\n"
        program.send_signal(signal.SIGTERM)
        assert (program.wait(60), program.stderr.read()) == (0, "")
    assert cli.ok("stats", url, "--json").json["queues"][0]["now"]["done"] == 1
    assert cli.ok("log", url, "--json").lines[-1]["event"] == "writer-closed"


def test_worker_until_empty(cli: Cli, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cli_jobs_batch.py").write_text(JOBS.format(url=url))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    cli.ok("enqueue", url, "mail", "one")
    assert cli.ok("worker", "cli_jobs_batch:make", "--until-empty").out == "sent one\n"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("cli_jobs_bad", "write MODULE:NAME"),
        (":make", "write MODULE:NAME"),
        ("cli_no_such_module:make", "ModuleNotFoundError"),
        ("cli_jobs_bad:other", "has no 'other'"),
        ("cli_jobs_bad:text", "is no Worker and returns none, but str"),
        ("cli_jobs_bad:nothing", "is no Worker and returns none, but int"),
        ("cli_jobs_bad:broken", "RuntimeError: no luck"),
        ("cli_jobs_syntax:make", "SyntaxError"),
    ],
)
def test_worker_errors(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, says: str) -> None:
    (tmp_path / "cli_jobs_bad.py").write_text(JOBS.format(url="memory:///"))
    (tmp_path / "cli_jobs_syntax.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_jobs_bad", raising=False)
    assert says in cli.fails(2, "worker", target)


def test_commands_say_that_they_take_the_store_over(cli: Cli) -> None:
    for command in ("enqueue", "requeue", "cancel", "pause", "resume", "rebuild-projections"):
        text = " ".join(cli.ok(command, "--help").out.split())
        assert "refused without --take-over" in text
    assert worker_command.__doc__


async def make_dead_ones(url: str, count: int) -> list[str]:
    async with Queue.open(url) as queue:
        jobs = [(await queue.enqueue("mail", b"x")).job_id for _ in range(count)]
        for claim in await queue.claim("mail", count):
            await queue.nack(claim, "boom", dead=True)
        return jobs


def test_many_jobs_are_changed_in_one_opening(cli: Cli, url: str) -> None:
    jobs = asyncio.run(make_dead_ones(url, 10))
    said = cli.ok("requeue", url, *jobs, "--reason", "mended", "--json")
    assert [(job["job_id"], job["state"]) for job in said.lines] == [(job_id, "pending") for job_id in jobs]
    names = [record["event"] for record in cli.ok("log", url, "--json").lines][-12:]
    assert names == ["writer-opened", *["requeued"] * 10, "writer-closed"]


def test_a_job_that_is_refused_keeps_no_other_from_its_change(cli: Cli, url: str) -> None:
    unknown = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    first, second = asyncio.run(make_dead_ones(url, 2))
    ran = cli("requeue", url, first, unknown, second, "--reason", "mended")
    assert (ran.code, ran.out.count(" is pending")) == (1, 2)
    assert unknown in ran.message
    both = cli("cancel", url, unknown, first[:-1] + "!", "--reason", "r")
    assert both.code == 2, "what is no id is refused before the store is opened"


def test_a_mistyped_queue_is_refused_and_not_made(cli: Cli, url: str) -> None:
    cli.ok("enqueue", url, "mail", "x")
    before = cli.ok("log", url, "--json").out
    for argv in (
        ["pause", url, "mial", "--reason", "r"],
        ["resume", url, "mial", "--reason", "r"],
        ["jobs", url, "mial"],
    ):
        assert f"there is no queue 'mial' in {url}; its queues: mail" in cli.fails(2, *argv)
    assert cli.ok("log", url, "--json").out == before, "nothing was opened for writing"
    cli.ok("pause", url, "later", "--new", "--reason", "nothing may run yet")
    assert cli.ok("jobs", url, "later").out == "0 jobs\n"
