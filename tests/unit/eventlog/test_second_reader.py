"""A second process reads and proves the ledger while this one writes it: consistent at one commit, without fencing."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger

ROOT = Path(__file__).resolve().parents[3]
ROUNDS = 6
LIMIT_S = 60.0


async def write_without_pause(queue: Queue) -> None:
    """Every kind of transition, until it is cancelled."""
    number = 0
    while True:
        number += 1
        await queue.enqueue_many("q", [b"%d" % number, b"x" * 500, b"y"])
        await queue.enqueue("q", b"later", delay=0.05, unique_key="k")
        claims = await queue.claim("q", limit=3, wait=1.0)
        for claim in claims[:1]:
            await queue.nack(claim, "boom", delay=0.01, dead=number % 5 == 0)
        await queue.ack_many(claims[1:])
        if number % 10 == 0:
            added = await queue.enqueue("q", b"unwanted", delay=100)
            await queue.cancel(added.job_id, actor="operator", reason="a test")


@pytest.mark.proof
async def test_a_second_process_proves_the_ledger_while_the_first_one_writes(tmp_path: Path) -> None:
    url = (tmp_path / "store").as_uri()
    options = QueueOptions(keep_done_s=0.2, keep_cancelled_s=0.2)
    async with Queue.open(url, default=options) as queue:
        await queue.enqueue("q", b"first")
        writing = asyncio.create_task(write_without_pause(queue))
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, str(ROOT / "tests/process/read_child.py"), url, str(ROUNDS)),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                answer, trouble = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
        assert child.returncode == 0, trouble.decode()
        offsets = [int(line) for line in answer.split()]
        assert len(offsets) == ROUNDS
        assert offsets == sorted(offsets)
        assert len(set(offsets)) > 1, "nothing was written meanwhile"
        assert not writing.done()
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert queue.failure is None
        await queue.enqueue("q", b"last")
        assert queue.log.epoch == 1
    reader = await open_reader(url, pinned=True)
    await check_ledger(reader)
    await reader.close()
