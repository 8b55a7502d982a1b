"""The read-only queue: what a writer has made durable, beside it, at one commit, and as of the past."""

import asyncio
from pathlib import Path

import pytest

from ledgerq import InvalidArgument, JobNotFound, Queue, StoreNotFound
from ledgerq.events import Acked, Enqueued

LIMIT_S = 60.0


async def test_it_reads_beside_the_writer_and_follows_it(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with pytest.raises(StoreNotFound):
        await Queue.view(url)
    async with asyncio.timeout(LIMIT_S), Queue.open(url) as queue:
        job = await queue.enqueue("mail", b"hello", headers={"a": "b"})
        async with Queue.view(url) as view, Queue.view(url, pinned=True) as pinned:
            following = view.follow()
            coming = asyncio.ensure_future(anext(following))
            assert await view.queues() == ["mail"]
            assert await view.get(job.job_id) == await queue.get(job.job_id)
            assert (await view.payload(job.job_id)).headers == {"a": "b"}
            assert [one.job_id for one in (await view.jobs("mail", "pending")).jobs] == [job.job_id]
            (claim,) = await queue.claim("mail")
            await queue.ack(claim, b"done")
            offset = (await coming).offset
            assert offset == claim.offset
            while (await view.get(job.job_id)).state != "done":
                await asyncio.sleep(0.01)
            assert await view.result(job.job_id) == b"done"
            assert await view.history(job.job_id) == await queue.history(job.job_id)
            assert [type(record.event) for record in await view.records(1, 1)] == [Enqueued]
            assert isinstance((await anext(following)).event, Acked)
            await following.aclose()
            assert (await pinned.get(job.job_id)).state == "pending"
            assert (await view.stats("mail")).done == 1
            assert await view.schedules() == []
            assert (await view.kv.keys()).keys == []

            then = await view.as_of(offset=offset)
            assert (then.offset, then.queues(), then.stats("mail").pending) == (offset, ["mail"], 1)
            assert [one.state for one in await then.jobs("mail")] == ["pending"]
            assert await then.jobs("mail", "done") == []
            assert (await then.get(job.job_id)).state == "pending"
            before = await view.as_of(time_ms=then.time_ms - 1)
            assert (before.stats("mail").pending, before.queues()) == (0, [])
            with pytest.raises(JobNotFound):
                await before.get(job.job_id)
            with pytest.raises(InvalidArgument):
                await view.as_of(offset=10**6)


async def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        Queue.view("jobs", pinned=1)  # type: ignore[arg-type]
    with pytest.raises(StoreNotFound, match="memory"):
        await Queue.view("memory:///")
