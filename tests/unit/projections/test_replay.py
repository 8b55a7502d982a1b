"""The log folded again: the state at any offset and any time is the one that there was at that moment."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt
from ledgerq.eventlog.events import Claimed
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.job import Job
from ledgerq.projections.replay import fold_to, fold_verified, replay
from ledgerq.projections.stats import QueueStats
from ledgerq.worker.options import QueueOptions
from tests.support.histories import histories, quick
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig
from tests.support.small_logs import Watcher, reader

QUEUES = ("a", "b")


class Moment(NamedTuple):
    """The answers of the live queue, with the log's end and the clock's time then."""

    offset: int
    time_ms: int
    jobs: dict[str, Job]
    stats: list[QueueStats]


async def moment(rig: Rig) -> Moment:
    """The queue's answers now."""
    jobs = [job for name in QUEUES for job in (await rig.queue.jobs(name, limit=1000)).jobs]
    stats = [await rig.queue.stats(name) for name in QUEUES]
    head = rig.queue.log.durable_head
    assert not any("text beside" in job.error for job in jobs)
    return Moment(head.next_offset, rig.clock.now_ms(), {job.job_id: _bare(job) for job in jobs}, stats)


def _bare(job: Job) -> Job:
    """Without the texts that stand beside the log, and in a job of the queue's in place of what names them."""
    return replace(job, last_error=bool(job.last_error) and "an error", cancel_request=None)


async def do_something(rig: Rig, rng: random.Random, held: list[Any]) -> None:
    """One call of the queue, or a moment that passes."""
    queue, name = rig.queue, rng.choice(QUEUES)
    match rng.randrange(9):
        case 0 | 1:
            unique_key = rng.choice((None, None, "k"))
            delay = rng.choice((None, 1.0, 3.0))
            await queue.enqueue(name, rng.randbytes(3), delay=delay, unique_key=unique_key, priority=rng.randrange(3))
        case 2:
            await queue.enqueue_many(name, [b"1", b"2", b"3"])
        case 3:
            held += await queue.claim(name, limit=2)
        case 4 | 5 if held:
            claim = held.pop(rng.randrange(len(held)))
            if queue._core.writer_state.claimed.get(claim.id) is None:
                return
            how = rng.randrange(4)
            if how == 0:
                await queue.nack(claim, "boom", dead=rng.random() < 0.5)
            elif how == 1:
                await queue.release(claim)
            else:
                await queue.ack(claim)
        case 6:
            jobs = (await queue.jobs(name, state=rng.choice(("pending", "scheduled", "claimed", "dead")))).jobs
            if jobs:
                job = rng.choice(jobs)
                if job.state == "dead":
                    await queue.requeue(job.job_id, **WHO) if job.spec.unique_key is None else None
                else:
                    await queue.cancel(job.job_id, **WHO)
        case 7:
            await (queue.pause if rng.random() < 0.5 else queue.resume)(name, **WHO)
        case _:
            await rig.advance(rng.choice((0.001, 0.5, 2.0, 30.0)))


@pytest.mark.parametrize("seed", range(5))
async def test_the_fold_to_an_offset_or_a_time_is_what_the_queue_said_then(seed: int) -> None:
    rng = random.Random(seed)
    options = QueueOptions(keep_done_s=20.0, keep_dead_s=20.0, keep_cancelled_s=20.0, lease_s=10.0)
    moments: list[Moment] = []
    async with Rig(default=options) as rig:
        held: list[Any] = []
        for _ in range(80):
            await do_something(rig, rng, held)
            moments.append(await moment(rig))
            if rng.random() < 0.05:
                await rig.advance(0.001)
                await rig.reopen()
                held = []
        await rig.advance(0.001)
    log = LogReader(MemoryReader(rig.disk), clock=ManualClock())
    for then in moments:
        fold = await fold_to(log, offset=then.offset)
        assert {job.job_id: _bare(job) for job in fold.jobs.values()} == then.jobs
        assert [fold.counters_of(name).view(name) for name in QUEUES] == then.stats
        assert fold.next_offset == then.offset
    last_at = {then.time_ms: then for then in moments}
    assert len(last_at) > 10
    for then in last_at.values():
        fold = await fold_to(log, time_ms=then.time_ms)
        assert {job.job_id: _bare(job) for job in fold.jobs.values()} == then.jobs
        assert [fold.counters_of(name).view(name) for name in QUEUES] == then.stats


# ---------------------------------------------------------------------- made-up histories


def _is_late(transition: Transition, time_ms: int) -> bool:
    """Whether this is a claim that no commit of this time can have."""
    job = transition.after
    return isinstance(transition.event, Claimed) and job is not None and 0 < job.starts_before_ms <= time_ms


async def written(history: Sequence[Transition], sizes: Sequence[int]) -> MemoryDisk:
    """A log that holds these events in commits of at most these sizes (then of 1), each at its last event's time."""
    disk, clock = MemoryDisk(), ManualClock(0)
    log = EventLog(MemoryStore(disk), clock=clock, commit_hook=Watcher())
    await log.start()
    left, pending = list(history), list(sizes)
    while left:
        size = pending.pop(0) if pending else 1
        while any(_is_late(one, left[:size][-1].time_ms) for one in left[:size]):
            size -= 1
        now, left = left[:size], left[size:]
        clock.set(now[-1].time_ms)
        for transition in now:
            before = transition.before
            log.append(transition.event, None if before is None else before.last_offset)
        await log.committed()
    await log.close()
    return disk


def folded(history: Sequence[Transition], times: Sequence[int], stop: int) -> Fold:
    """The first events, each at the time of its commit."""
    fold = Fold()
    for transition in history[:stop]:
        fold.apply(transition.offset, times[transition.offset], transition.event)
    return fold


def same(one: Fold, other: Fold) -> bool:
    """Whether two folds hold the same."""
    all_counters = [{name: counters.encode() for name, counters in fold.counters.items()} for fold in (one, other)]
    return (one.jobs, all_counters[0], one.next_offset) == (other.jobs, all_counters[1], other.next_offset)


@settings(quick, max_examples=40)
@given(histories(40), st.lists(st.integers(1, 6), max_size=12))
def test_the_fold_to_every_offset_and_every_time_is_that_of_the_events_before(
    history: list[Transition], sizes: list[int]
) -> None:
    async def check() -> None:
        disk = await written(history, sizes)
        log = reader(disk)
        batches = [batch async for batch in log.batches()]
        times = [batch.time_ms for batch in batches for _ in batch.events]
        for stop in range(len(history) + 1):
            assert same(await fold_to(log, offset=stop), folded(history, times, stop))
        for time_ms in {t + d for t in times for d in (-1, 0, 1)} | {0, 2**50}:
            stop = sum(t <= time_ms for t in times)
            assert same(await fold_to(log, time_ms=time_ms), folded(history, times, stop))
        everything = await fold_to(log)
        assert same(everything, folded(history, times, len(history)))
        verified, fold = await fold_verified(log)
        assert same(fold, everything)
        assert (verified.events, verified.batches) == (len(history), len(batches))

    asyncio.run(check())


@settings(quick, max_examples=40)
@given(histories(40), st.lists(st.integers(1, 6), max_size=12), st.integers(-2, 45), st.none() | st.integers(-2, 45))
def test_a_replay_of_any_stretch_brings_its_transitions_and_no_others(
    history: list[Transition], sizes: list[int], start: int, stop: int | None
) -> None:
    async def check() -> None:
        log = reader(await written(history, sizes))
        times = [batch.time_ms async for batch in log.batches() for _ in batch.events]
        fold = Fold()
        expected = [fold.apply(t.offset, times[t.offset], t.event) for t in history]
        found = [transition async for transition in replay(log, start, stop)]
        assert found == [t for t in expected if t.offset >= start and (stop is None or t.offset < stop)]

    asyncio.run(check())


# ---------------------------------------------------------------------- errors and limits


async def a_log() -> tuple[Rig, LogReader]:
    """The log of a closed queue with three jobs, in two commits."""
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        await rig.advance(10)
        await rig.queue.enqueue("q", b"3")
    return rig, reader(rig.disk)


async def test_an_offset_and_a_time_are_not_given_together() -> None:
    _, log = await a_log()
    with pytest.raises(InvalidArgument, match="not both"):
        await fold_to(log, offset=1, time_ms=1)


@pytest.mark.parametrize("offset", [-1, 6, 1000])
async def test_an_offset_that_is_not_in_the_log_is_refused_with_those_that_are(offset: int) -> None:
    _, log = await a_log()
    assert (await log.head()).next_offset == 5
    with pytest.raises(InvalidArgument, match=f"offset {offset} is not in the log, which holds 0 to 4"):
        await fold_to(log, offset=offset)


async def test_nothing_was_there_before_the_first_event() -> None:
    rig, log = await a_log()
    assert (await fold_to(log, offset=0)).jobs == {}
    first = await fold_to(log, time_ms=rig.clock.now_ms() - 10_001)
    assert (dict(first.jobs), first.next_offset) == ({}, 0)
    assert len((await fold_to(log, time_ms=rig.clock.now_ms() - 10_000)).jobs) == 2
    assert len((await fold_to(log, time_ms=rig.clock.now_ms() - 1)).jobs) == 2
    assert len((await fold_to(log, time_ms=2**60)).jobs) == 3


async def test_an_empty_log_folds_to_nothing() -> None:
    log = reader(MemoryDisk())
    limits: list[dict[str, Any]] = [{}, {"offset": 0}, {"time_ms": 5}]
    for arguments in limits:
        fold = await fold_to(log, **arguments)
        assert (dict(fold.jobs), fold.next_offset) == ({}, 0)
    assert [transition async for transition in replay(log)] == []


async def test_progress_is_told_up_to_the_end() -> None:
    _, log = await a_log()
    told: list[tuple[int, int]] = []
    await fold_to(log, offset=4, progress=lambda at, end: told.append((at, end)))
    assert told == [(1, 4), (3, 4), (4, 4)]


async def test_a_gap_in_the_log_is_not_passed_over() -> None:
    rig, log = await a_log()
    del rig.disk.rows[keys.log_key(1)]
    with pytest.raises(LogCorrupt):
        await fold_verified(log)
    limits: list[dict[str, Any]] = [{}, {"offset": 4}, {"time_ms": 2**60}]
    for arguments in limits:
        with pytest.raises(LogCorrupt) as caught:
            await fold_to(log, **arguments)
        assert caught.value.offset == 1
    with pytest.raises(LogCorrupt) as caught:
        [transition async for transition in replay(log, 3)]
    assert caught.value.offset == 1
    assert (await fold_to(log, offset=1)).next_offset == 1


async def test_an_end_of_the_log_that_is_missing_is_not_passed_over() -> None:
    rig, log = await a_log()
    del rig.disk.rows[keys.log_key(4)]
    with pytest.raises(LogCorrupt) as caught:
        await fold_to(log)
    assert caught.value.offset == 4


async def test_an_event_that_makes_no_sense_is_named_by_its_offset() -> None:
    rig, log = await a_log()
    rig.disk.rows[keys.log_key(4)] = rig.disk.rows[keys.log_key(3)]
    with pytest.raises(LogCorrupt) as caught:
        [transition async for transition in replay(log)]
    assert caught.value.offset == 4


async def test_the_log_of_a_queue_at_work_folds_to_what_is_durable() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        rig.faults.hold("sync:before")
        adding = asyncio.create_task(rig.queue.enqueue("q", b"2"))
        await settle()
        fold = await fold_to(rig.queue.log)
        assert (len(fold.jobs), fold.next_offset) == (1, 2)
        with pytest.raises(InvalidArgument, match="offset 3 is not in the log"):
            await fold_to(rig.queue.log, offset=3)
        assert (await fold_to(rig.queue.log, time_ms=2**60)).next_offset == 2
        rig.faults.let_go("sync:before")
        await adding
        assert (await fold_to(rig.queue.log)).next_offset == 3
