"""What claims fetched ahead may cost: bytes of payload, time until they are given back."""

import asyncio

import pytest

from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import fetching_ahead, working

_LARGE_BYTES = 64 * 1024


@pytest.mark.proof
async def test_large_payloads_after_small_ones_are_not_fetched_by_the_count_of_the_small_ones() -> None:
    cue, others = asyncio.Event(), asyncio.Event()
    begun = 0
    async with Rig() as rig:
        for _ in range(30):
            await rig.queue.enqueue_many("q", [b"x" * _LARGE_BYTES] * 50)
        worker = Worker(rig.queue, concurrency=10)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            nonlocal begun
            begun += 1
            await (cue if begun == 1 else others).wait()

        async with working(worker):
            await settle(300)
            prefetch, now_ms = worker._slots.prefetch, rig.clock.now_ms()
            for window in range(50):  # of small jobs, on a slow store
                prefetch.claims(now_ms + 100 * window)
                for _ in range(2000):
                    prefetch.ended(0, 64)
                prefetch.committed(100)
            rig.clock.advance(seconds=5)
            assert prefetch.claims(rig.clock.now_ms()) == 5000
            cue.set()
            await settle(3000)
            held_bytes = sum(len(claim.payload) for claim in worker._slots.held)
            assert 30 * 2**20 < held_bytes < 64 * 2**20, "what four calls bring may come on top"
            others.set()
            worker.stop()
            await settle(300)
        assert worker._slots._waiting_bytes == 0


@pytest.mark.parametrize("set_back_s", [0, 3600])
async def test_a_claim_is_given_back_in_time_though_another_one_waited_before_it(set_back_s: int) -> None:
    cues = {b"%d" % i: asyncio.Event() for i in range(3)}
    started: list[bytes] = []
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", list(cues))
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1, patience_s=7.5)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            started.append(job.payload)
            await cues[job.payload].wait()

        async with working(worker):
            await rig.advance(1)
            cues[b"0"].set()
            await settle()
            assert started == [b"0", b"1"]
            rig.clock.set(rig.clock.now_ms() - set_back_s * 1000)
            await rig.advance(7)
            assert (await rig.queue.stats("q")).totals["released"] == (1 if set_back_s else 0)
            await rig.advance(0.5)
            assert (await rig.queue.stats("q")).totals["released"] == 1
            for cue in cues.values():
                cue.set()
            await settle()
