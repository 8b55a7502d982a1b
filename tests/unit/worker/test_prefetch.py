"""How many claims are fetched ahead: the estimate, a worker on a slow store, and several workers of one queue."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog.clock import sleep_until
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.prefetch import Prefetch
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import Stage, fetching_ahead, state_of, working

# ---------------------------------------------------------------------- the estimate


def measured(
    *,
    each_ms: int,
    took_ms: int = 0,
    commit_ms: int = 60,
    payload_bytes: int = 64,
    lease_ms: int = 30_000,
    concurrency: int = 100,
    limit: int | None = None,
    seconds: int = 5,
) -> tuple[Prefetch, int]:
    """An estimate after some seconds in which every `each_ms` 100 handlers ended; and the time then."""
    prefetch = Prefetch(concurrency=concurrency, limit=limit)
    prefetch.begin(1000, lease_ms)
    now_ms = 1000
    for now_ms in range(1000, 1000 + seconds * 1000 + 1, each_ms):
        prefetch.claims(now_ms)
        for _ in range(100):
            prefetch.ended(took_ms, payload_bytes)
        prefetch.committed(commit_ms)
    return prefetch, now_ms


def test_nothing_is_fetched_ahead_before_anything_is_measured() -> None:
    prefetch = Prefetch(concurrency=100, limit=None)
    prefetch.begin(0, 30_000)
    assert [prefetch.claims(now_ms) for now_ms in (0, 50, 1000, 10_000)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("each_ms", "commit_ms"), [(10, 60), (10, 2), (100, 60), (20, 20)])
def test_what_three_commits_will_ask_for_is_fetched_ahead(each_ms: int, commit_ms: int) -> None:
    prefetch, now_ms = measured(each_ms=each_ms, commit_ms=commit_ms)
    rate = 100 / each_ms
    assert prefetch.claims(now_ms) == pytest.approx(min(5000, rate * 3 * commit_ms), rel=0.05)


def test_no_more_than_the_limit_and_nothing_with_none() -> None:
    for limit in (0, 1, 17):
        prefetch, now_ms = measured(each_ms=10, limit=limit)
        assert prefetch.claims(now_ms) == limit


def test_no_more_than_handlers_end_within_a_quarter_of_the_lease() -> None:
    prefetch, now_ms = measured(each_ms=10, commit_ms=60, lease_ms=400)
    assert prefetch.claims(now_ms) == pytest.approx(10 * 100, rel=0.05)
    assert prefetch.patience_ms == 100
    prefetch, now_ms = measured(each_ms=100, commit_ms=100_000, lease_ms=1000)
    assert prefetch.claims(now_ms) == pytest.approx(250, rel=0.05)


def test_no_more_than_so_many_bytes() -> None:
    prefetch, now_ms = measured(each_ms=10, payload_bytes=1024 * 1024)
    assert prefetch.claims(now_ms) == 32


@pytest.mark.parametrize("took_ms", [1000, 5000, 60_000])
def test_for_handlers_that_take_long_nearly_nothing_is_fetched_though_they_end_together(took_ms: int) -> None:
    prefetch, now_ms = measured(each_ms=took_ms, took_ms=took_ms, seconds=180)
    # So much of the handlers' time would be lost to waiting for a claim.
    assert prefetch.claims(now_ms) <= 100 * 3 * 60 / took_ms
    assert prefetch.claims(now_ms + 99) <= 100 * 3 * 60 / took_ms


def test_the_rate_falls_when_nothing_ends_and_is_forgotten_when_it_was_wrong() -> None:
    prefetch, now_ms = measured(each_ms=10)
    before = prefetch.claims(now_ms)
    assert prefetch.claims(now_ms + 1000) < before / 4
    prefetch, now_ms = measured(each_ms=10)
    prefetch.was_wrong(now_ms)
    assert prefetch.claims(now_ms) == 0


def test_a_clock_that_is_set_back_makes_no_rate() -> None:
    prefetch, now_ms = measured(each_ms=10)
    before = prefetch.claims(now_ms)
    prefetch.ended(-5000, 64)
    prefetch.committed(-5000)
    assert 0 <= prefetch.claims(now_ms - 5000) <= before
    assert 0 <= prefetch.claims(now_ms - 4800) <= before


# ---------------------------------------------------------------------- a worker on a slow store

_COMMIT_MS = 60
_STEP_S = 0.02


class SlowRig(Rig):
    """A queue whose commits take 60 ms of the clock of the test."""

    async def open(self, **options: Any) -> Any:
        """Open it; from then on its store is slow."""
        queue = await super().open(**options)

        async def fault(call: str) -> None:
            if call == "sync:before" and self.is_slow:
                await sleep_until(self.clock, self.clock.now_ms() + _COMMIT_MS)

        self.is_slow = False
        self.store._fault = fault
        return queue

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, step by step."""
        for _ in range(round(seconds / _STEP_S)):
            self.clock.advance(seconds=_STEP_S)
            await settle(20)


@pytest.mark.proof
async def test_handlers_that_end_at_once_do_not_wait_for_a_slow_store() -> None:
    done = 0
    async with SlowRig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 4000)
        worker = Worker(rig.queue, concurrency=10)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            nonlocal done
            done += 1

        async with working(worker):
            rig.is_slow = True
            await rig.pass_time(1.0)
            early = done
            await rig.pass_time(1.5)
            late = done
            rig.is_slow = False
            await rig.advance(1)
            await settle(500)
        # Ten a round, each of a claim and an ack, would be some 200 in 2.5 seconds.
        assert late - early > 1500
        assert (await rig.queue.stats("q")).totals["released"] == 0


@pytest.mark.parametrize("prefetch", [0, 3])
async def test_prefetch_is_the_most_that_is_fetched_ahead(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SlowRig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 1000)
        worker = Worker(rig.queue, concurrency=10, prefetch=prefetch)
        waiting: list[int] = []

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            waiting.append(len(worker._slots._waiting) + worker._slots._busy)

        async with working(worker):
            rig.is_slow = True
            await rig.pass_time(2.0)
            rig.is_slow = False
            await rig.advance(1)
            worker.stop()
        assert 10 <= max(waiting) <= 10 + prefetch


async def test_handlers_that_take_long_have_nearly_nothing_fetched_for_them() -> None:
    ahead: list[int] = []
    async with SlowRig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 200)
        worker = Worker(rig.queue, concurrency=10, grace=0)

        @worker.handler("q")
        async def handle(job: JobContext) -> None:
            ahead.append(len(worker._slots._waiting))
            await sleep_until(rig.clock, rig.clock.now_ms() + 2000)

        async with working(worker):
            rig.is_slow = True
            await rig.pass_time(10)
            rig.is_slow = False
            worker.stop()
            await rig.advance(1)
        assert 30 <= len(ahead) <= 60
        assert max(ahead) <= 10  # that is what it takes over from one call
        assert sorted(ahead)[len(ahead) * 3 // 4] <= 8
        assert (await rig.queue.stats("q")).totals["released"] <= 10


# ---------------------------------------------------------------------- several workers


def slow_worker(rig: Rig, name: str, started: dict[str, list[int]], *, concurrency: int, seconds: float) -> Worker:
    """A worker whose handlers take so long, and note when they begin."""
    worker = Worker(rig.queue, concurrency=concurrency, name=name, grace=0)
    begun_ms = rig.clock.now_ms()
    times = started.setdefault(name, [])

    @worker.handler("q")
    async def handle(job: JobContext) -> None:
        times.append(rig.clock.now_ms() - begun_ms)
        await sleep_until(rig.clock, rig.clock.now_ms() + round(seconds * 1000))

    return worker


async def test_a_short_backlog_of_slow_jobs_is_shared_and_none_waits_for_a_worker_that_is_busy() -> None:
    started: dict[str, list[int]] = {}
    async with SlowRig() as rig:
        workers = [slow_worker(rig, name, started, concurrency=2, seconds=1) for name in ("a", "b")]
        runs = [asyncio.create_task(worker.run(until_empty=True, signals=False)) for worker in workers]
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(10)])
        rig.is_slow = True
        await rig.pass_time(5)
        assert all(run.done() for run in runs)
        rig.is_slow = False
        # Ten jobs, four at a time: the last two begin in the third round, which commits delay a little.
        assert sum(len(times) for times in started.values()) == 10
        assert min(len(times) for times in started.values()) >= 4
        assert max(max(times) for times in started.values()) <= 2000 + 8 * _COMMIT_MS
        assert (await rig.queue.stats("q")).totals["released"] == 0


async def test_a_busy_worker_takes_no_job_ahead_from_one_that_waits() -> None:
    first, second = Stage(), Stage()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        busy, idle = fetching_ahead(Worker(rig.queue, concurrency=1), 5), Worker(rig.queue, concurrency=3)
        busy.handler("q")(first)
        idle.handler("q")(second)
        async with working(busy), working(idle):
            assert first.started == [b"1"]
            await rig.queue.enqueue_many("q", [b"2", b"3"])
            await settle()
            assert second.started == [b"2", b"3"]
            first.cue.set()
            second.cue.set()
            await settle()


async def test_what_waits_for_too_long_is_given_back_for_others_uncounted(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Stage(), Stage()
    with caplog.at_level("INFO", "ledgerq.worker"):
        async with Rig() as rig:
            added = await rig.queue.enqueue_many("q", [b"1", b"2", b"3", b"4"])
            busy = fetching_ahead(Worker(rig.queue, concurrency=1), 3, patience_s=1)
            busy.handler("q")(first)
            async with working(busy):
                assert (await rig.queue.stats("q")).claimed == 4
                await rig.advance(0.9)
                assert (await rig.queue.stats("q")).claimed == 4
                busy._slots.prefetch = Prefetch(concurrency=1, limit=0)
                busy._slots.prefetch.begin(rig.clock.now_ms(), 400)
                await rig.advance(0.1)
                jobs = [await rig.queue.get(job.job_id) for job in added]
                why = "released: no handler was free for it in time"
                assert [state_of(job) for job in jobs[1:]] == [("pending", 0, why)] * 3
                idle = Worker(rig.queue, concurrency=3)
                idle.handler("q")(second)
                async with working(idle):
                    assert second.started == [b"2", b"3", b"4"]
                    first.cue.set()
                    second.cue.set()
                    await settle()
    assert [record.getMessage() for record in caplog.records if "claims" in record.getMessage()] == [
        "gave back 3 claims, for which no handler was free in time"
    ]


async def test_leases_of_claims_that_wait_are_renewed_and_one_that_is_lost_begins_no_handler() -> None:
    stage = Stage()
    async with Rig(default=QueueOptions(lease_s=30.0)) as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1), 1)
        worker.handler("q")(stage)
        async with working(worker):
            claims: list[Claim] = [*worker._slots.held]
            for _ in range(10):
                await rig.advance(10)
            assert (await rig.queue.stats("q")).claimed == 2
            await rig.queue.nack(claims[1], "by another hand", delay=1000)
            stage.cue.set()
            await settle()
            assert stage.started == [b"1"]
            assert not worker._slots.held
