"""Commands on a store that another process writes, and on one whose writer was killed."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.store.writers import LIMIT_S, ROOT, writer

JOBS = """
from ledgerq import Queue, Worker

async def make():
    queue = await Queue.open({url!r})
    worker = Worker(queue)

    @worker.handler("q")
    async def handle(job):
        print("handled", flush=True)

    return worker
"""

Ended = tuple[int, str, str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The path of a store that is not there yet."""
    return str(tmp_path / "store")


async def ledgerq(*argv: str, folder: Path, while_it_runs: Callable[[], Awaitable[Any]] | None = None) -> Ended:
    """The command line as a program of its own: its exit code, and what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ledgerq.tools.cli", *argv),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        if while_it_runs is not None:
            await while_it_runs()
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.proof
async def test_a_store_in_use_has_an_exit_code_of_its_own(url: str, tmp_path: Path) -> None:
    async with writer(url) as first:
        code, out, err = await ledgerq("enqueue", url, "q", "x", folder=tmp_path)
        assert (code, out) == (5, "")
        assert err.startswith(f"ledgerq: {url} is in use: process {first.pid} on host {os.uname().nodename} writes it")
        assert err.count("\n") == 1
        code, out, err = await ledgerq("enqueue", url, "q", "x", "--json", folder=tmp_path)
        error = json.loads(err)
        assert (code, out, error["error"], error["exit_code"]) == (5, "", "StoreInUse", 5)
        assert (error["permanent"], error["pid"], error["host"]) == (False, first.pid, os.uname().nodename)
        assert len(await first.ask("enqueue")) == 26, "it was not disturbed"


@pytest.mark.proof
async def test_after_a_kill_each_command_works_at_once(url: str, tmp_path: Path) -> None:
    for argv in (["enqueue", url, "q", "x"], ["pause", url, "q", "--reason", "why"], ["rebuild-projections", url]):
        async with writer(url) as first:
            await first.ask("enqueue")
            await first.kill()
        code, _, err = await ledgerq(*argv, folder=tmp_path)
        assert (code, err) == (0, "")


@pytest.mark.proof
async def test_a_command_waits_for_the_writers_end(url: str, tmp_path: Path) -> None:
    async with writer(url) as first:
        await first.ask("enqueue")

        async def end() -> None:
            assert await first.ask("close") == "closed"

        argv = ("pause", url, "q", "--reason", "why", "--wait", "60")
        code, out, err = await ledgerq(*argv, folder=tmp_path, while_it_runs=end)
        assert (code, out, err) == (0, "queue q is paused\n", "")
    async with writer(url):
        code, _, err = await ledgerq("resume", url, "q", "--reason", "why", "--wait", "0.1", folder=tmp_path)
        assert (code, "is in use" in err) == (5, True)
        code, _, err = await ledgerq("resume", url, "q", "--reason", "why", "--wait", "-1", folder=tmp_path)
        assert (code, "--wait" in err) == (2, True)


@pytest.mark.proof
async def test_a_worker_waits_for_the_writers_end(url: str, tmp_path: Path) -> None:
    (tmp_path / "in_use_jobs.py").write_text(JOBS.format(url=url))
    async with writer(url) as first:
        await first.ask("enqueue")

        async def end() -> None:
            assert await first.ask("close") == "closed"

        code, _, err = await ledgerq("worker", "in_use_jobs:make", folder=tmp_path)
        assert (code, f"process {first.pid}" in err) == (5, True)
        argv = ("worker", "in_use_jobs:make", "--until-empty", "--wait", "60")
        code, out, err = await ledgerq(*argv, folder=tmp_path, while_it_runs=end)
        assert (code, out, err) == (0, "handled\n", "")


@pytest.mark.proof
async def test_the_doctor_names_the_writer(url: str, tmp_path: Path) -> None:
    async def look() -> dict[str, str]:
        code, out, _ = await ledgerq("doctor", url, "--json", folder=tmp_path)
        assert code == 0
        found: dict[str, str] = next(check for check in json.loads(out)["checks"] if check["name"] == "last writer")
        return found

    async with writer(url) as first:
        check = await look()
        assert check["status"] == "ok"
        assert check["measured"].startswith(f"process {first.pid} on host {os.uname().nodename} writes it since ")
        await first.kill()
        check = await look()
        assert (check["status"], check["measured"].startswith("none now; ")) == ("warn", True)
        assert check["advice"] is not None
        assert "just start it again" in check["advice"]
    async with writer(url) as second:
        await second.ask("close")
    check = await look()
    assert (check["status"], check["measured"].endswith(", closed")) == ("ok", True)
