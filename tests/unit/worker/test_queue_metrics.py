"""The gauges of the process with an open queue: store inspections, windows, waiters, commits, failures."""

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from ledgerq import Fenced, MemoryStore, Queue
from ledgerq.eventlog.clock import ManualClock, stopwatch_s
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.recorded_audit import RecordedAudit, write_recorded_audit
from ledgerq.projections.fold import Transition
from ledgerq.projections.metrics.store_inspection import Inspector
from ledgerq.projections.runner import Rows
from tests.support.damaged_rows import Kinds
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.scrapes import numbers

AGE = 'ledgerq_oldest_pending_age_seconds{queue="mail"}'


async def refreshed(queue: Queue, limit: int = 100) -> dict[str, float]:
    """The numbers right after an inspection."""
    collector = queue.collector(limit)
    await collector.refresh()
    return numbers(collector)


async def test_ages_are_as_of_the_scrape() -> None:
    async with Rig() as rig:
        assert AGE not in await refreshed(rig.queue)
        await rig.queue.enqueue("mail", b"a")
        await refreshed(rig.queue)
        rig.clock.advance(seconds=90.5)
        found = numbers(rig.queue.collector())
        assert found[AGE] == 90.5
        assert found["ledgerq_read_timestamp_seconds"] == rig.clock.now_ms() / 1000 - 90.5
        (claim,) = await rig.queue.claim("mail")
        assert (await refreshed(rig.queue))[AGE] == 0
        await rig.queue.ack(claim)
        await rig.queue.enqueue("mail", b"b", delay=30)
        assert (await refreshed(rig.queue))[AGE] == 0


async def test_of_queues_that_are_summed_the_oldest_job_counts() -> None:
    async with Rig() as rig:
        for name in ("first", "second", "third"):
            await rig.queue.enqueue(name, b"x")
            rig.clock.advance(seconds=10)
        found = await refreshed(rig.queue, limit=1)
        ages = {name: value for name, value in found.items() if name.startswith(AGE.split("{")[0])}
        assert list(ages.values()) == [30, 20]


async def test_the_next_due_job_is_what_maintenance_waits_for() -> None:
    async with Rig() as rig:
        assert "ledgerq_next_due_seconds" not in await refreshed(rig.queue)
        await rig.queue.enqueue("mail", b"a", delay=60)
        await rig.queue.enqueue("mail", b"b", delay=20)
        await settle()
        assert (await refreshed(rig.queue))["ledgerq_next_due_seconds"] == 20
        await rig.advance(21)
        assert (await refreshed(rig.queue))["ledgerq_next_due_seconds"] == 39
        await rig.advance(40)
        assert "ledgerq_next_due_seconds" not in await refreshed(rig.queue)


async def test_windows_waiters_claims_and_pauses() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("mail", [b"a", b"b", b"c"])
        await rig.queue.claim("mail")
        waiting = [asyncio.create_task(rig.queue.claim(["idle", "other"], wait=None)) for _ in range(2)]
        await settle()
        found = await refreshed(rig.queue)
        assert found['ledgerq_ready_window_jobs{queue="mail"}'] == 2
        assert found["ledgerq_claims_held"] == 1
        # No event was ever of these two queues, so they have no name of their own here.
        assert found['ledgerq_claim_waiters{queue="other"}'] == 4
        assert found["ledgerq_writer_up"] == 1
        assert not [name for name in found if name.startswith("ledgerq_writer_failed")]
        assert any(name.startswith("ledgerq_build_info{") for name in found)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert 'ledgerq_claim_waiters{queue="other"}' not in await refreshed(rig.queue)


async def test_a_fenced_writer_says_so() -> None:
    async with Rig() as rig:
        collector = rig.queue.collector()
        fenced, old = rig.queue, numbers(collector)
        await rig.open()
        with pytest.raises(Fenced):
            await fenced.enqueue("mail", b"x")
        await collector.refresh()
        found = numbers(collector)
        assert (found["ledgerq_writer_up"], found['ledgerq_writer_failed{error="Fenced"}']) == (0, 1)
        assert found["ledgerq_log_events_total"] == old["ledgerq_log_events_total"]
        await fenced.close()
        assert numbers(collector)["ledgerq_writer_up"] == 0


class Failing(Kinds):
    """A projection that raises."""

    name = "failing"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Nothing."""

    def apply(self, transition: Transition) -> Rows:
        """Raise at the third event."""
        if transition.offset == 2:
            raise RuntimeError("boom")
        return {}


async def test_a_projection_that_raised_falls_behind() -> None:
    async with Rig(projections=[Kinds(), Failing()]) as rig:
        for _ in range(4):
            await rig.queue.enqueue("mail", b"x")
        found = await refreshed(rig.queue)
        lags = {name.split('"')[1]: v for name, v in found.items() if name.startswith("ledgerq_projection_lag_events")}
        assert lags == {"jobs": 0, "stats": 0, "kinds": 0, "failing": 3}


async def test_commits_are_measured_by_phase() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("mail", [b"x" * 1000] * 50)
        found = numbers(rig.queue.collector())
        assert found["ledgerq_commit_events_sum"] == found["ledgerq_log_events_total"] == 51
        assert found["ledgerq_commit_events_count"] == found['ledgerq_commit_seconds_count{phase="fill"}'] == 2
        assert found["ledgerq_commit_bytes_sum"] > found["ledgerq_log_written_bytes_total"] + 50_000


# Looks


async def test_a_scrape_on_the_loop_shows_the_look_before_and_one_in_a_thread_its_own() -> None:
    async with Rig() as rig:
        collector = rig.queue.collector()
        await rig.queue.enqueue("mail", b"a")
        rig.clock.advance(seconds=5)
        assert AGE not in numbers(collector)
        await settle()
        assert numbers(collector)[AGE] == 5
        await settle()
        (claim,) = await rig.queue.claim("mail")
        await rig.queue.nack(claim, "boom", delay=0)
        rig.clock.advance(seconds=3)
        assert (await asyncio.to_thread(numbers, collector))[AGE] == 3


async def test_many_scrapes_at_once_are_one_look() -> None:
    looks = 0
    go_on = asyncio.Event()

    async def look() -> None:
        nonlocal looks
        looks += 1
        await go_on.wait()

    inspector = Inspector(look)
    tasks = [asyncio.create_task(inspector.refresh()) for _ in range(10)]
    inspector.before_scrape()
    await settle()
    go_on.set()
    await asyncio.gather(*tasks)
    assert looks == 1
    await inspector.refresh()
    assert looks == 2
    await inspector.close()
    inspector.before_scrape()
    await inspector.refresh()
    assert looks == 2


async def test_a_scrape_after_a_refresh_looks_no_second_time_and_the_next_one_does() -> None:
    looks = 0

    async def look() -> None:
        nonlocal looks
        looks += 1

    inspector = Inspector(look)
    await inspector.refresh()
    inspector.before_scrape()
    await settle()
    assert looks == 1
    inspector.before_scrape()
    await settle()
    assert looks == 2
    await inspector.close()


async def test_a_look_that_hangs_keeps_no_scrape_and_ends_with_the_queue() -> None:
    async with Rig() as rig:
        collector = rig.queue.collector()
        await rig.queue.enqueue("mail", b"a")
        rig.faults.hold("scan")
        began_s = stopwatch_s()
        assert (await asyncio.to_thread(numbers, collector))["ledgerq_log_events_total"] == 2
        assert stopwatch_s() - began_s < 5
        rig.faults.let_go("scan")


async def test_a_store_that_does_not_answer_leaves_the_last_answer() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("mail", b"a")
        before = await refreshed(rig.queue)
        rig.clock.advance(seconds=60)
        rig.faults.spoil("scan", StoreUnavailable("away"))
        found = await refreshed(rig.queue)
        assert found[AGE] == 60
        assert found["ledgerq_read_timestamp_seconds"] == before["ledgerq_read_timestamp_seconds"]


async def test_a_note_of_the_audit_that_can_not_be_read_hides_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "audit").mkdir(parents=True)
    async with Queue.open(str(tmp_path / "jobs")) as queue:
        await queue.enqueue("mail", b"a")
        found = await refreshed(queue)
        assert AGE in found
        assert found["ledgerq_read_timestamp_seconds"] > 0
        assert "ledgerq_audit_timestamp_seconds" not in found


async def test_a_look_that_fails_in_an_unforeseen_way_is_logged_and_harms_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def look() -> None:
        raise RuntimeError("boom")

    inspector = Inspector(look)
    for _ in range(20):
        await inspector.refresh()
    await inspector.close()
    assert 1 <= caplog.text.count("inspecting the store for metrics failed") <= 6
    assert "RuntimeError: boom" in caplog.text


async def test_a_scrape_after_the_end_shows_what_was() -> None:
    queue = await Queue.open(store=MemoryStore(), clock=ManualClock())
    await queue.enqueue("mail", b"a")
    collector = queue.collector()
    await queue.close()
    assert numbers(collector)['ledgerq_jobs{queue="mail",state="pending"}'] == 1
    assert (await asyncio.to_thread(numbers, collector))["ledgerq_log_events_total"] == 3


def test_a_scrape_when_the_loop_is_gone_shows_what_was() -> None:
    async def opened() -> Queue:
        queue = await Queue.open(store=MemoryStore(), clock=ManualClock())
        await queue.enqueue("mail", b"a")
        return queue

    with asyncio.Runner() as runner:
        collector = runner.run(opened()).collector()
        # The loop stands still: there would be no answer.
        assert numbers(collector)["ledgerq_log_events_total"] == 2
    assert numbers(collector)["ledgerq_log_events_total"] == 2


# The store's own numbers, and the last audit


async def test_slatedbs_own_numbers_are_bridged(tmp_path: Path) -> None:
    async with Queue.open(str(tmp_path)) as queue:
        before = await refreshed(queue)
        await queue.enqueue_many("mail", [b"x" * 1000] * 100)
        await queue.enqueue("mail", b"x")  # what is in memory is counted when the next one is written
        after = await refreshed(queue)
        assert after["ledgerq_slatedb_write_ops_total"] - before["ledgerq_slatedb_write_ops_total"] >= 300
        flushed = "ledgerq_slatedb_wal_flushed_bytes_total"
        assert after[flushed] - before[flushed] > 1e5
        assert (
            after['ledgerq_slatedb_requests_total{op="flush"}'] > before['ledgerq_slatedb_requests_total{op="flush"}']
        )
        puts = 'ledgerq_slatedb_object_store_requests_total{component="db",op="put"}'
        assert after[puts] > before[puts]
        timed = 'ledgerq_slatedb_object_store_request_seconds_count{op="put"}'
        assert after[timed] > before[timed] > 0
        assert after["ledgerq_slatedb_memory_bytes"] > 1e5
        assert 0 < after['ledgerq_slatedb_object_store_request_seconds_sum{op="put"}'] < 60


async def test_the_last_audit_is_told_and_that_there_was_none(tmp_path: Path) -> None:
    url, clock = str(tmp_path), ManualClock()
    async with Queue.open(url, clock=clock) as queue:
        found = await refreshed(queue)
        assert found["ledgerq_audit_timestamp_seconds"] == 0
        assert "ledgerq_audit_differences" not in found
        await write_recorded_audit(url, RecordedAudit(clock.now_ms() - 5000, 17, 3, True, False))
        assert (await refreshed(queue))["ledgerq_audit_timestamp_seconds"] == 0  # looked at a moment ago
        clock.advance(seconds=30)
        found = await refreshed(queue)
        assert found["ledgerq_audit_timestamp_seconds"] == clock.now_ms() / 1000 - 35
        assert (found["ledgerq_audit_offset"], found["ledgerq_audit_differences"]) == (17, 3)
        assert found["ledgerq_audit_log_intact"] == 1
    async with Queue.open(store=MemoryStore()) as queue:  # where there is no place for a note, none is missed
        assert "ledgerq_audit_timestamp_seconds" not in await refreshed(queue)


def test_a_scrape_whose_look_is_cut_off_by_the_end_of_the_loop_shows_the_look_before() -> None:
    looking, scraped = threading.Event(), list[str]()

    async def look() -> None:
        looking.set()
        await asyncio.Event().wait()

    async def live() -> threading.Thread:
        inspector = Inspector(look)

        def scrape() -> None:
            inspector.before_scrape()
            scraped.append("done")

        scraper = threading.Thread(target=scrape)
        scraper.start()
        while not looking.is_set():
            await asyncio.sleep(0)
        return scraper

    asyncio.run(live()).join(20)
    assert scraped == ["done"]
