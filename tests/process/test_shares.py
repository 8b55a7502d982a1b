"""An audit or a rebuild by several processes: the same result as by one, and none outlives it, however it ends."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.codec import EMPTY_HEAD, pack
from ledgerq.eventlog.errors import ShareFailed
from ledgerq.eventlog.runtime.process import child_environment
from ledgerq.eventlog.slate.row_sums import can_sum
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections import audit as audit_module
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.index_keys import job_key, stats_key
from ledgerq.projections.shares.share import ShareTask
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, change_rows, make_ledger

LIMIT_S = 60
needs_sums = pytest.mark.skipif(not can_sum(), reason="sums are not compiled")


@pytest.fixture
async def url(tmp_path: Path) -> str:
    return (await make_ledger(tmp_path / "store")).url


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


async def audited(url: str, jobs: int) -> AuditReport:
    store = await open_reader(url, pinned=True)
    try:
        return await audit(store, clock=SystemClock(), jobs=jobs)
    finally:
        await store.close()


@needs_sums
async def test_several_processes_prove_what_one_finds_clean(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = await audited(url, 1)
    monkeypatch.setattr(audit_module, "compare_jobs", None)
    assert await audited(url, 3) == alone
    assert alone.clean


@needs_sums
async def test_what_a_writer_adds_meanwhile_is_not_mixed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "compare_jobs", None)
    async with Queue.open(str(tmp_path / "store")) as queue:
        await queue.enqueue("mail", b"before")
        store = await open_reader(str(tmp_path / "store"), pinned=True)
        try:
            await queue.enqueue_many("mail", [b"after"] * 100)
            # The other process sees a later view, and proves the log of this one.
            report = await audit(store, clock=SystemClock(), jobs=2)
        finally:
            await store.close()
        assert report.clean
        assert report.jobs == 1


@pytest.mark.proof
def test_the_commands_print_the_same_of_a_damaged_store(cli: Cli, tmp_path: Path) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    assert cli.ok("audit", ledger.url, "--jobs", 2) == cli.ok("audit", ledger.url, "--jobs", 1)
    asyncio.run(change_rows(ledger.url, {job_key(bytes(16)): b"?", stats_key("mail"): b"?", b"i/x": b""}))
    for words in (("--json",), ()):
        alone, together = (cli("audit", ledger.url, "--jobs", jobs, *words) for jobs in (1, 3))
        assert together == alone
        assert alone.code == 1
    mended = cli.ok("rebuild-projections", ledger.url, "--actor", "test", "--jobs", 2, "--json").json
    assert (mended["rows_put"], mended["rows_deleted"]) == (1, 2)
    assert cli.ok("audit", ledger.url, "--jobs", 2, "--json").json["clean"]


def test_a_number_of_processes_below_one_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli.fails(2, "audit", tmp_path, "--jobs", 0)


# ---------------------------------------------------------------------- how they end


@pytest.fixture
def instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have this shell script run instead of Python."""

    def run(script: str) -> None:
        path = tmp_path / "instead"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o700)
        monkeypatch.setattr(sys, "executable", str(path))

    return run


@needs_sums
@pytest.mark.parametrize(
    ("script", "how"), [("kill -9 $$", "was killed by signal 9"), ("exit 7", "ended with exit code 7")]
)
@pytest.mark.parametrize("command", [("audit",), ("rebuild-projections", "--actor", "test")], ids=lambda one: one[0])
def test_a_process_that_ends_early_ends_the_command(
    cli: Cli, tmp_path: Path, instead: Callable[[str], None], command: tuple[str, ...], script: str, how: str
) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    instead(script)
    line = cli.fails(3, command[0], ledger.url, *command[1:], "--jobs", 2)
    assert how in line
    assert "--jobs 1" in line


@needs_sums
@pytest.mark.parametrize("ended_by", ["cancelled", "another process ended early"])
async def test_no_process_is_left_behind(
    url: str, tmp_path: Path, instead: Callable[[str], None], ended_by: str
) -> None:
    first = tmp_path / "first"
    # The first one never answers; the second, if it is to end, waits until that one is there.
    instead(f"""mkdir {first} 2>/dev/null && {{ echo $$ > {first}/pid; exec sleep 1000; }}
until [ -s {first}/pid ]; do sleep 0.01; done
exit 7""")
    work = asyncio.create_task(audited(url, 2 if ended_by == "cancelled" else 3))
    async with asyncio.timeout(LIMIT_S):
        while not (first / "pid").exists() or not (first / "pid").read_text():
            await asyncio.sleep(0.01)
    if ended_by == "cancelled":
        work.cancel()
    with pytest.raises(asyncio.CancelledError if ended_by == "cancelled" else ShareFailed):
        await work
    with pytest.raises(ProcessLookupError):
        os.kill(int((first / "pid").read_text()), 0)


def test_a_process_ends_with_the_one_that_started_it() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(LIMIT_S)
        # A bucket that takes connections and never answers.
        environment = child_environment() | {
            "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x",
            "AWS_REGION": "x",
            "AWS_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}",
            "AWS_ALLOW_HTTP": "true",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "ledgerq.projections.shares.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        try:
            assert process.stdin is not None
            task = pack(ShareTask("s3://bucket/store", 0, 1, EMPTY_HEAD, keys.FORMAT_VERSION))
            process.stdin.write(len(task).to_bytes(4) + task)
            process.stdin.flush()
            silent.accept()
            assert process.poll() is None, "it is at work"
            process.stdin.close()
            assert process.wait(LIMIT_S) == 1
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
