"""The metrics of a worker: handlers that run, their durations and outcomes, leases and lost claims."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ledgerq import Claim, ClaimLost, Dead, QueueOptions, Worker
from ledgerq.worker.execution import JobContext
from tests.support.loops import settle, until
from tests.support.rig import Rig
from tests.support.scrapes import numbers
from tests.support.workers import fetching_ahead

SECONDS = "ledgerq_worker_handler_seconds"


def outcomes(found: dict[str, float]) -> dict[str, float]:
    """How many tries ended in which way."""
    prefix = f"{SECONDS}_count"
    return {name.split('outcome="')[1].split('"')[0]: n for name, n in found.items() if name.startswith(prefix)}


async def test_each_try_is_measured_by_what_came_of_it() -> None:
    async with Rig(default=QueueOptions(max_attempts=2, backoff_base_s=0.0)) as rig:
        worker = Worker(rig.queue, concurrency=3)

        @worker.handler("mail")
        async def send(job: JobContext) -> None:
            if job.payload == b"never":
                raise Dead("no such address")
            if job.payload == b"twice":
                raise RuntimeError("boom")

        await rig.queue.enqueue_many("mail", [b"fine", b"fine", b"never", b"twice"])
        await worker.run(until_empty=True, signals=False)
        found = numbers(worker.collector())
        assert outcomes(found) == {"done": 2, "dead": 2, "retry": 1}
        assert found["ledgerq_worker_handlers_limit"] == 3
        assert found['ledgerq_worker_handlers_running{queue="mail"}'] == found["ledgerq_worker_claims_held"] == 0
        assert 0 < found[f'{SECONDS}_sum{{outcome="done",queue="mail"}}'] < 5
        assert found["ledgerq_worker_claims_lost_total"] == 0


async def test_running_handlers_and_claims_held_are_told_while_they_are() -> None:
    async with Rig() as rig:
        worker, go_on = fetching_ahead(Worker(rig.queue, concurrency=2), 1), asyncio.Event()

        @worker.handler("mail")
        async def send(job: JobContext) -> None:
            await go_on.wait()

        @worker.handler("idle")
        async def never(job: JobContext) -> None: ...

        await rig.queue.enqueue_many("mail", [b"x"] * 5)
        task = asyncio.create_task(worker.run(until_empty=True, signals=False))
        collector = worker.collector()
        await until(lambda: numbers(collector)['ledgerq_worker_handlers_running{queue="mail"}'] == 2)
        await settle()
        found = numbers(collector)
        assert found["ledgerq_worker_claims_held"] == 3
        assert found['ledgerq_worker_handlers_running{queue="idle"}'] == 0
        rig.clock.advance(seconds=10)
        await until(lambda: numbers(collector)["ledgerq_worker_lease_renewals_total"] == 3)
        go_on.set()
        await task
        assert outcomes(numbers(collector)) == {"done": 5}


async def test_a_timeout_and_a_lost_claim_are_outcomes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig() as rig:
        worker = Worker(rig.queue, concurrency=5)

        @worker.handler("slow", timeout=5)
        async def slow(job: JobContext) -> None:
            await asyncio.Event().wait()

        @worker.handler("mail")
        async def send(job: JobContext) -> None:
            await asyncio.Event().wait()

        await rig.queue.enqueue("slow", b"x", max_attempts=1)
        await rig.queue.enqueue("mail", b"x")
        task = asyncio.create_task(worker.run(signals=False))
        collector = worker.collector()
        await until(lambda: numbers(collector)['ledgerq_worker_handlers_running{queue="mail"}'] == 1)
        await rig.advance(5)
        assert outcomes(numbers(collector)) == {"timeout": 1}

        async def lost(claim: Claim, lease: float) -> Claim:
            raise ClaimLost("taken")

        monkeypatch.setattr(rig.queue, "extend", lost)
        await rig.advance(5)
        found = numbers(collector)
        assert outcomes(found) == {"timeout": 1, "lost": 1}
        assert (found["ledgerq_worker_claims_lost_total"], found["ledgerq_worker_lease_renewals_total"]) == (1, 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_queue_and_worker_go_into_one_registry() -> None:
    registry = CollectorRegistry(auto_describe=True)
    async with Rig() as rig:
        registry.register(rig.queue.collector())
        registry.register(Worker(rig.queue).collector())
        assert b"ledgerq_worker_handlers_limit 50.0" in generate_latest(registry)
