"""However many queues there are, the series are bounded, and no counter ever goes back."""

import random

from ledgerq.projections.rebuild import rebuild
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.scrapes import numbers

ENQUEUED = 'ledgerq_transitions_total{kind="enqueued",queue="'


def enqueued(found: dict[str, float]) -> dict[str, float]:
    """The enqueued total of each queue that is shown."""
    return {name[len(ENQUEUED) : -2]: value for name, value in found.items() if name.startswith(ENQUEUED)}


async def test_the_first_queues_of_the_log_keep_series_of_their_own() -> None:
    async with Rig() as rig:
        for name in ("zebra", "mail", "ant", "bee"):
            await rig.queue.enqueue(name, b"x")
        await rig.queue.enqueue("bee", b"y")
        found = numbers(rig.queue.collector(limit=2))
        assert enqueued(found) == {"zebra": 1, "mail": 1, "other": 3}
        assert found["ledgerq_queues"] == 4
        await rig.reopen()
        assert enqueued(numbers(rig.queue.collector(limit=2))) == {"zebra": 1, "mail": 1, "other": 3}
        await rig.queue.close()
        await rebuild(rig.store.__class__(rig.disk), clock=rig.clock, **WHO)
        await rig.open()
        assert enqueued(numbers(rig.queue.collector(limit=2))) == {"zebra": 1, "mail": 1, "other": 3}


async def test_a_queue_called_other_is_one_of_the_others() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("other", [b"x", b"y"])
        await rig.queue.enqueue("mail", b"x")
        collector = rig.queue.collector(limit=1)
        assert enqueued(numbers(collector)) == {"mail": 1, "other": 2}
        await rig.queue.enqueue("late", b"x")
        assert enqueued(numbers(collector)) == {"mail": 1, "other": 3}


async def test_the_rest_is_the_sum_of_what_is_not_shown_and_never_goes_back() -> None:
    rng = random.Random(7)
    async with Rig() as rig:
        collector, before = rig.queue.collector(limit=3), dict[str, float]()
        for _ in range(60):
            name = f"q{rng.randrange(12)}"
            await rig.queue.enqueue_many(name, [b"x"] * rng.randrange(1, 4))
            rig.clock.advance(seconds=rng.randrange(100) / 1000)
            for claim in await rig.queue.claim(name, limit=2):
                rig.clock.advance(seconds=rng.randrange(2000) / 1000)
                await (rig.queue.ack(claim) if rng.random() < 0.7 else rig.queue.nack(claim, "boom", delay=3600))
            if rng.random() < 0.2:
                await rig.queue.pause(name, actor="ann", reason="x")
            found = numbers(collector)
            rising = {
                n: v for n, v in found.items() if "_total" in n or n.split("{")[0].endswith(("_bucket", "_count"))
            }
            assert all(rising[n] >= v for n, v in before.items() if n in rising), "a counter went back"
            before = rising
        whole, few = numbers(rig.queue.collector(limit=100)), numbers(collector)
        shown = {name for name in enqueued(few) if name != "other"}
        assert len(shown) == 3
        sums: dict[str, float] = {}
        for name, value in whole.items():
            queue = name.partition('queue="')[2].partition('"')[0]
            if queue and name.startswith(
                ("ledgerq_transitions", "ledgerq_jobs", "ledgerq_job_", "ledgerq_queue_paused")
            ):
                key = name if queue in shown else name.replace(f'queue="{queue}"', 'queue="other"')
                sums[key] = round(sums.get(key, 0) + value, 6)
        assert sums == {name: round(few[name], 6) for name in sums}
        assert sums['ledgerq_queue_paused{queue="other"}'] > 1


async def test_a_quiet_queue_costs_a_scrape_nothing_but_its_samples() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"x")
        await rig.queue.enqueue("quiet", b"x")
        collector = rig.queue.collector()
        first = {family.name: family.samples for family in collector.collect()}
        await rig.queue.enqueue("mail", b"x")
        second = {family.name: family.samples for family in collector.collect()}
        pairs = zip(first["ledgerq_jobs"], second["ledgerq_jobs"], strict=True)
        again = {sample.labels["queue"] for sample, same in pairs if sample is same}
        assert again == {"quiet"}
