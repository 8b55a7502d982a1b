"""The end of a process that has a synchronous queue open: it is closed, and a forked child leaves it alone."""

import asyncio
import concurrent.futures.thread
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledgerq.eventlog.events import WriterClosed
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.worker.queue import Queue

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60


@pytest.mark.parametrize("ways", [(), ("fork",)])
def test_a_queue_that_is_left_open_is_closed_when_its_process_ends(ways: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        # From Python 3.12 on a fork of a process with threads is warned of.
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "tests/process/sync_child.py",
            str(tmp_path / "jobs"),
            *ways,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    async def look() -> None:
        async with Queue.open(tmp_path / "jobs") as queue:
            records = [record async for record in queue.log.read()]
            assert isinstance(records[-2].event, WriterClosed)
            assert (await queue.stats("q")).pending == 1 + len(ways)

    asyncio.run(look())


async def test_what_closes_a_queue_needs_no_new_thread_at_the_end_of_the_interpreter() -> None:
    objects = Objects(parse_location("s3://bucket/prefix"), limit_s=1.0)
    threads = DaemonThreads("t")

    def refuse(self: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(concurrent.futures.thread, "_shutdown", True)
        patch.setattr("threading.Thread.start", refuse)
        assert await objects.run(int, "7") == 7
        assert threads.submit(int, "7").result(0) == 7
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 // 0).result(0)
