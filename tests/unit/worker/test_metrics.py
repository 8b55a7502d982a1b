"""Metrics are the durable counters of the log: nothing that isn't committed shows, and a restart changes nothing."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ledgerq import InvalidArgument, ManualClock, MemoryDisk, MemoryStore, Queue
from ledgerq.projections.metrics.catalogue import CATALOGUE
from ledgerq.projections.replay import fold_to
from tests.support.loops import settle
from tests.support.rig import Rig, claim_all
from tests.support.scrapes import exemplars, numbers, openmetrics

FROM_LOG = tuple(
    spec.name for spec in CATALOGUE.values() if spec.origin == "log" and spec.group != "Log and projections"
)


def from_log(found: dict[str, float]) -> dict[str, float]:
    """What a restart must not change."""
    return {name: value for name, value in found.items() if name.startswith(FROM_LOG)}


async def test_metrics_are_the_counters_of_the_log_and_survive_a_restart() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("mail", [b"a", b"b", b"c"])
        rig.clock.advance(seconds=0.04)
        first, second = await rig.queue.claim("mail", limit=2)
        rig.clock.advance(seconds=3)
        await rig.queue.ack(first)
        await rig.queue.nack(second, "boom", delay=5)
        await rig.queue.pause("mail", actor="ada", reason="test")
        before, head = numbers(rig.queue.collector()), await rig.queue.log.head()
        assert before['ledgerq_jobs{queue="mail",state="pending"}'] == 1
        assert before['ledgerq_jobs{queue="mail",state="done"}'] == 1
        assert before['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 3
        assert before['ledgerq_attempts_total{outcome="acked",queue="mail"}'] == 1
        assert before['ledgerq_attempts_total{outcome="nacked",queue="mail"}'] == 1
        assert before['ledgerq_queue_paused{queue="mail"}'] == 1
        assert before["ledgerq_log_events_total"] == head.next_offset
        assert before["ledgerq_log_last_commit_timestamp_seconds"] == head.time_ms / 1000
        assert before['ledgerq_job_waiting_seconds_bucket{le="0.025",queue="mail"}'] == 0
        assert before['ledgerq_job_waiting_seconds_bucket{le="0.05",queue="mail"}'] == 2
        assert before['ledgerq_job_waiting_seconds_sum{queue="mail"}'] == 0.08
        assert before['ledgerq_job_running_seconds_sum{queue="mail"}'] == 6
        assert before['ledgerq_job_life_seconds_sum{queue="mail"}'] == 3.04
        assert before['ledgerq_job_attempts_bucket{le="1.0",queue="mail"}'] == 1
        for restart in (rig.reopen, rig.crash):
            await restart()
            after = numbers(rig.queue.collector())
            assert from_log(after) == from_log(before)
            assert after["ledgerq_log_epoch"] == before["ledgerq_log_epoch"] + 1
            before = after


async def test_a_restart_loses_nothing_and_every_number_is_in_the_log() -> None:
    async with Rig() as rig:
        for round_number in range(4):
            await rig.queue.enqueue_many("mail", [b"%d" % number for number in range(20)])
            claims = await claim_all(rig.queue, "mail")
            rig.clock.advance(seconds=round_number * 0.7)
            await rig.queue.ack_many(claims[::2])
            await rig.queue.release(claims[1])
            await rig.crash()  # the other claims are interrupted
        found, fold = numbers(rig.queue.collector()), await fold_to(rig.queue.log)
        view = fold.counters["mail"].view("mail")
        for kind, count in view.totals.items():
            assert found[f'ledgerq_transitions_total{{kind="{kind}",queue="mail"}}'] == count
        for name, measure in fold.counters["mail"].measures().items():
            unit = 1 if name == "attempts" else 1000
            shown = "ledgerq_job_attempts" if name == "attempts" else f"ledgerq_job_{name}_seconds"
            assert found[f'{shown}_count{{queue="mail"}}'] == measure.count
            assert found[f'{shown}_sum{{queue="mail"}}'] == measure.sum / unit
            assert found[f'{shown}_bucket{{le="+Inf",queue="mail"}}'] == measure.count
        assert view.totals["released"] == 4
        attempts = {name: n for name, n in found.items() if name.startswith("ledgerq_attempts_total")}
        assert sum(attempts.values()) == view.totals["claimed"] - view.totals["released"] - view.claimed


async def test_what_is_not_durable_is_not_counted() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        rig.faults.hold("sync:before")
        task = asyncio.create_task(rig.queue.enqueue("mail", b"b"))
        claiming = asyncio.create_task(rig.queue.claim("mail"))
        await settle()
        found = numbers(rig.queue.collector())
        assert found['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 1
        assert found['ledgerq_job_waiting_seconds_count{queue="mail"}'] == 0
        assert not exemplars(rig.queue.collector(), "ledgerq_job_waiting_seconds")
        rig.faults.let_go("sync:before")
        await asyncio.gather(task, claiming)
        found = numbers(rig.queue.collector())
        assert found['ledgerq_transitions_total{kind="enqueued",queue="mail"}'] == 2
        assert found['ledgerq_job_waiting_seconds_count{queue="mail"}'] == 1


async def test_openmetrics_gets_the_job_of_each_bucket_as_exemplar() -> None:
    async with Rig() as rig:
        collector = rig.queue.collector()
        job = await rig.queue.enqueue("mail", b"a")
        rig.clock.advance(seconds=0.07)
        (claim,) = await rig.queue.claim("mail")
        assert set(exemplars(collector, "ledgerq_job_waiting_seconds")) == {("mail", "0.1")}
        rig.clock.advance(seconds=2)
        await rig.queue.ack(claim)
        (found,) = exemplars(collector, "ledgerq_job_life_seconds").values()
        assert (found.labels, found.value) == ({"job_id": job.job_id}, 2.07)
        assert float(found.timestamp) == rig.clock.now_ms() / 1000
        again = await rig.queue.enqueue("mail", b"b")
        rig.clock.advance(seconds=0.08)
        await rig.queue.claim("mail")
        (found,) = exemplars(collector, "ledgerq_job_waiting_seconds").values()
        assert found.labels == {"job_id": again.job_id}
        # After a restart the jobs of the exemplars are not known; the counts stay.
        await rig.reopen()
        assert not exemplars(rig.queue.collector(), "ledgerq_job_life_seconds")


async def test_each_sample_has_the_labels_of_the_catalogue(tmp_path: Path) -> None:
    async with Queue.open(str(tmp_path)) as queue:
        await queue.enqueue_many("mail", [b"a", b"b"])
        (claim,) = await queue.claim("mail")
        await queue.ack(claim)
        collector = queue.collector()
        await collector.refresh()
        families = {family.name: family for family in openmetrics(collector)}
        for spec in CATALOGUE.values():
            if spec.origin != "worker":
                family = families[spec.family]
                assert (family.type, family.unit) == (spec.type, spec.unit)
                for sample in family.samples:
                    assert set(sample.labels) - {"le"} == set(spec.labels), sample


async def test_two_queues_are_two_registries_or_told_apart_by_whoever_serves_them() -> None:
    registry = CollectorRegistry(auto_describe=True)
    async with Queue.open(store=MemoryStore()) as one, Queue.open(store=MemoryStore()) as other:
        registry.register(one.collector())
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(other.collector())


@pytest.mark.parametrize("limit", [0, -1, True, "5"])
async def test_a_limit_that_can_not_be_is_refused(limit: int) -> None:
    async with Queue.open(store=MemoryStore()) as queue:
        with pytest.raises(InvalidArgument, match="limit"):
            queue.collector(limit=limit)


async def test_a_bridge_to_a_registry_of_the_users_own_needs_nothing_else() -> None:
    registry = CollectorRegistry()
    async with Queue.open(store=MemoryStore(MemoryDisk()), clock=ManualClock()) as queue:
        registry.register(queue.collector())
        await queue.enqueue("mail", b"a")
        assert b'ledgerq_jobs{queue="mail",state="pending"} 1.0' in generate_latest(registry)
