"""Bulk calls and many calls at once leave the event loop to others: so much in one turn, and no more.

What a turn does is counted, not timed, so a busy machine fails none of these. What is staged while a large commit is
being written is no part of it, which the audit at the end of each rig would show.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ledgerq.eventlog import commit, flights
from ledgerq.eventlog.codec import encode_batch, encode_batch_pieces
from ledgerq.eventlog.errors import LogPoisoned, QueueClosed
from ledgerq.eventlog.events import Acked, Enqueued, WriterClosed
from ledgerq.eventlog.memory import MemoryBatch
from ledgerq.worker.engine import admission, commit_rows, new_job, refill
from ledgerq.worker.options import NewJob
from tests.simulation.command import run_seeds
from tests.support.loops import settle
from tests.support.operators import Who
from tests.support.rig import Rig, claim_all
from tests.tiers import sampled

MANY = 3000
WHO: Who = {"actor": "ada", "reason": "test"}


class Turns:
    """How much of each kind of work was done in each turn of the loop."""

    def __init__(self) -> None:
        self.now = 0
        self.done: dict[str, Counter[int]] = {
            "prepared": Counter(),
            "staged": Counter(),
            "encoded": Counter(),
            "indexed": Counter(),
            "put": Counter(),
        }

    def add(self, kind: str, number: int) -> None:
        self.done[kind][self.now] += number

    def most(self, kind: str) -> int:
        return max(self.done[kind].values(), default=0)


@asynccontextmanager
async def counted(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Turns]:
    turns = Turns()
    prepare, index_changes, update = new_job.prepare, commit_rows.index_changes, MemoryBatch.update
    stage, encode = admission.Admission.stage, encode_batch_pieces

    def counted_prepare(*given: Any, **more: Any) -> Any:
        turns.add("prepared", 1)
        return prepare(*given, **more)

    def counted_changes(touched: Any) -> Any:
        turns.add("indexed", len(touched))
        return index_changes(touched)

    def counted_update(self: MemoryBatch, changes: Mapping[bytes, bytes | None]) -> None:
        turns.add("put", len(changes))
        update(self, changes)

    def counted_stage(self: Any, prepared: Any) -> Any:
        turns.add("staged", 1)
        return stage(self, prepared)

    def counted_encode(*given: Any) -> Iterator[bytes]:
        for part in encode(*given):
            turns.add("encoded", given[-1])
            yield part

    monkeypatch.setattr(admission.Admission, "stage", counted_stage)
    monkeypatch.setattr(flights, "encode_batch_pieces", counted_encode)
    monkeypatch.setattr(new_job, "prepare", counted_prepare)
    monkeypatch.setattr(commit_rows, "index_changes", counted_changes)
    monkeypatch.setattr(MemoryBatch, "update", counted_update)

    async def turning() -> None:
        while True:
            await asyncio.sleep(0)
            turns.now += 1

    task = asyncio.create_task(turning())
    await asyncio.sleep(0)
    yield turns
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def jobs(number: int, *, later: bool) -> list[bytes | NewJob]:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    return [NewJob(payload=b"x", run_at=at + timedelta(seconds=i)) if later else b"x" for i in range(number)]


@pytest.mark.parametrize("later", [False, True])
async def test_a_bulk_call_does_a_little_in_each_turn_and_is_one_commit(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Rig() as rig:
        async with counted(monkeypatch) as turns:
            results = await rig.queue.enqueue_many("q", jobs(MANY, later=later))
        assert sum(turns.done["prepared"].values()) == sum(turns.done["indexed"].values()) == MANY
        assert sum(turns.done["staged"].values()) == MANY
        assert turns.most("prepared") <= 50
        assert turns.most("staged") <= 50
        assert 0 < turns.most("encoded") <= commit.PIECE_ROWS
        assert turns.most("indexed") <= 250
        assert turns.most("put") <= 2 * commit.PIECE_ROWS + 10
        assert len({result.job_id for result in results}) == MANY
        assert [len(batch.events) for batch in await rig.batches()] == [1, MANY]


async def test_what_is_staged_meanwhile_goes_into_the_next_commit() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"old"] * 400)
        claims = await claim_all(rig.queue)
        bulk = asyncio.create_task(rig.queue.enqueue_many("q", [b"new"] * MANY))
        others: list[asyncio.Task[Any]] = []
        while not bulk.done():
            # Counters, jobs and the ready window all change between two pieces of the large commit.
            if claims:
                others.append(asyncio.create_task(rig.queue.ack(claims.pop())))
            others.append(asyncio.create_task(rig.queue.enqueue("q", b"between")))
            await asyncio.sleep(0)
        await asyncio.gather(*others)
        sizes = [len(batch.events) for batch in await rig.batches()]
        assert max(sizes) >= MANY
        enqueued = sum(isinstance(event, Enqueued) for event in await rig.events())
        assert (await rig.queue.stats("q")).pending == enqueued - 400
        await rig.check()


async def test_a_claim_that_waits_is_served_by_a_bulk_call_whose_caller_was_cancelled() -> None:
    async with Rig() as rig:
        claiming = asyncio.create_task(rig.queue.claim("q", wait=None))
        bulk = asyncio.create_task(rig.queue.enqueue_many("q", [b"x"] * MANY))
        while rig.queue.log.next_offset < 300:
            await asyncio.sleep(0)
        bulk.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bulk
        await settle()
        assert claiming.done()
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)


async def test_a_claim_that_waits_is_in_the_commit_of_the_bulk_call_that_serves_it() -> None:
    async with Rig() as rig:
        claiming = asyncio.create_task(rig.queue.claim("q", limit=10, wait=None))
        await settle()
        await rig.queue.enqueue_many("q", [b"x"] * MANY)
        assert len(await claiming) == 10
        assert [len(batch.events) for batch in await rig.batches()] == [1, MANY + 10]


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_bulk_call_that_is_cancelled_while_it_is_staged_is_one_commit_all_the_same(keyed: bool) -> None:
    async with Rig() as rig:
        made = [NewJob(payload=b"x", unique_key=f"{i}") if keyed else b"x" for i in range(MANY)]
        bulk = asyncio.create_task(rig.queue.enqueue_many("q", made))
        while rig.queue.log.next_offset < 300:
            await asyncio.sleep(0)
        assert rig.queue.log.next_offset < MANY
        bulk.cancel()
        others = [asyncio.create_task(rig.queue.enqueue("q", b"between")) for _ in range(3)]
        with pytest.raises(asyncio.CancelledError):
            await bulk
        await asyncio.gather(*others)
        assert [len(batch.events) for batch in await rig.batches()] == [1, MANY + 3]
        await rig.check()


async def test_a_bulk_call_that_waits_for_its_turn_can_be_cancelled_at_once() -> None:
    async with Rig() as rig:
        first = asyncio.create_task(rig.queue.enqueue_many("q", [b"x"] * MANY))
        while rig.queue.log.next_offset < 300:
            await asyncio.sleep(0)
        second = asyncio.create_task(rig.queue.enqueue_many("q", [b"y"] * 100))
        for _ in range(10):
            await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        assert len(await first) == MANY
        assert [len(batch.events) for batch in await rig.batches()] == [1, MANY]
        await rig.check()


async def test_a_queue_that_closes_while_a_bulk_call_is_staged_takes_all_of_it() -> None:
    rig = Rig()
    queue = await rig.open()
    bulk = asyncio.create_task(queue.enqueue_many("q", [b"x"] * MANY))
    while queue.log.next_offset < 300:
        await asyncio.sleep(0)
    await queue.close()
    assert len(await bulk) == MANY
    assert isinstance((await rig.events())[-1], WriterClosed), "nothing comes behind the event that closes the log"
    await rig.reopen()
    assert (await rig.queue.stats("q")).pending == MANY
    await rig.queue.close()


async def test_a_bulk_call_that_is_staged_within_the_pause_between_two_commits_does_not_end_the_log() -> None:
    async with Rig(commit_interval_ms=50.0) as rig:
        await rig.queue.enqueue("q", b"x")
        # Begun and ended before the next commit is due, which is then long past.
        await rig.queue.enqueue_many("q", [b"x"] * 60)
        await asyncio.sleep(0.2)
        assert rig.queue.log._task is not None
        assert not rig.queue.log._task.done()
        async with asyncio.timeout(60):
            await rig.queue.enqueue("q", b"x")


@pytest.mark.proof
async def test_bulk_calls_at_once_are_commits_of_their_own() -> None:
    async with Rig() as rig:
        await asyncio.gather(*(rig.queue.enqueue_many("q", [b"x"] * 9_999) for _ in range(4)))
        sizes = [len(batch.events) for batch in await rig.batches()]
        assert sum(sizes) == 1 + 4 * 9_999
        assert max(sizes) <= 2 * 9_999, "a commit that is full takes no more"
        await rig.check()


async def test_a_bulk_call_whose_log_fails_while_it_is_staged_leaves_nothing() -> None:
    rig = Rig()
    queue = await rig.open()
    bulk = asyncio.create_task(queue.enqueue_many("q", [b"x"] * MANY))
    while queue.log.next_offset < 300:
        await asyncio.sleep(0)
    queue.log._fail(LogPoisoned("so to speak"))
    with pytest.raises(LogPoisoned):
        await bulk
    with contextlib.suppress(LogPoisoned):
        await queue.close()
    await rig.reopen()
    assert (await rig.queue.stats("q")).pending == 0
    await rig.queue.close()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 31, 250, 65_536])
def test_a_record_batch_in_pieces_has_the_same_bytes(count: int) -> None:
    events = [Acked(bytes([i % 256]) * 16, i) for i in range(count)]
    fields = 7, bytes(32), 1_700_000_000_000, bytes([3] * count), events, [*range(count)]
    for piece in (1, 15, 16, 100, 70_000) if count < 1000 else (500, 70_000):
        assert b"".join(encode_batch_pieces(*fields, piece)) == encode_batch(*fields)


async def test_the_callers_of_a_large_commit_are_woken_a_few_at_a_time_and_in_order() -> None:
    async with Rig() as rig:
        turn = 0
        woken: list[tuple[int, int]] = []

        async def call(number: int) -> None:
            await rig.queue.enqueue("q", b"x")
            woken.append((turn, number))

        calls = [asyncio.create_task(call(number)) for number in range(MANY)]
        while len(woken) < MANY:
            turn += 1
            await asyncio.sleep(0)
        assert [number for _, number in woken] == [*range(MANY)]
        assert max(Counter(turn for turn, _ in woken).values()) <= 100
        await asyncio.gather(*calls)


async def test_a_close_waits_until_all_callers_are_woken() -> None:
    rig = Rig()
    queue = await rig.open()
    calls = [asyncio.create_task(queue.enqueue("q", b"x")) for _ in range(MANY)]
    await asyncio.sleep(0)
    await queue.close()
    await asyncio.sleep(0)
    assert all(call.done() for call in calls)


async def test_a_key_that_goes_from_one_job_to_another_in_one_large_commit_stays_with_the_second() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"first", unique_key="k")
        (claim,) = await rig.queue.claim("q")
        rig.faults.hold("commit")
        # All of this is one commit: the key leaves one job in its first piece, and others come to it in its last.
        calls: list[asyncio.Task[Any]] = [asyncio.create_task(rig.queue.enqueue("q", b"held"))]
        await settle()
        calls.append(asyncio.create_task(rig.queue.enqueue_many("q", [b"x"] * 600)))
        await settle()
        calls.append(asyncio.create_task(rig.queue.ack(claim)))
        await settle()
        calls.append(asyncio.create_task(rig.queue.enqueue("q", b"second", unique_key="k")))
        await settle()
        rig.faults.let_go("commit")
        *_, second = await asyncio.gather(*calls)
        assert second.created
        assert second.job_id != first.job_id
        again = await rig.queue.enqueue("q", b"third", unique_key="k")
        assert (again.created, again.job_id) == (False, second.job_id)
        await rig.check()


async def test_a_queue_that_closes_while_a_bulk_call_is_prepared_takes_nothing_of_it() -> None:
    rig = Rig()
    queue = await rig.open()
    bulk = asyncio.create_task(queue.enqueue_many("q", [b"x"] * MANY))
    await asyncio.sleep(0)
    await queue.close()
    with pytest.raises(QueueClosed):
        await bulk
    await rig.reopen()
    assert (await rig.queue.stats("q")).pending == 0
    await rig.queue.close()


@pytest.mark.parametrize("call", sampled(["cancel", "requeue"]))
async def test_thousands_of_operators_calls_at_once_read_a_few_at_a_time(
    call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = most = 0

    async with Rig() as rig:
        added = await rig.queue.enqueue_many("q", [b"x"] * MANY)
        if call == "requeue":
            for claim in await claim_all(rig.queue):
                await rig.queue.nack(claim, "boom", dead=True)
        real = rig.queue.log.store.get_many

        async def slow(keys: Any) -> Any:
            nonlocal reading, most
            reading += 1
            most = max(most, reading)
            await asyncio.sleep(0)
            reading -= 1
            return await real(keys)

        monkeypatch.setattr(rig.queue.log.store, "get_many", slow)
        done = await asyncio.gather(*(getattr(rig.queue, call)(job.job_id, **WHO) for job in added))
        assert {job.state for job in done} == {"pending" if call == "requeue" else "cancelled"}
        assert 1 < most <= 64


@pytest.mark.proof
def test_simulated_worlds_keep_their_promises_when_every_commit_is_written_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(new_job, "_AT_ONCE", 2)
    monkeypatch.setattr(commit_rows, "PIECE_JOBS", 2)
    monkeypatch.setattr(admission, "_PIECE_JOBS", 2)
    monkeypatch.setattr(refill, "_TURN_ROWS", 2)
    for module in (flights, commit):
        monkeypatch.setattr(module, "PIECE_ROWS", 3)
    results = run_seeds(0, 15)
    assert {result.seed: result.broken for result in results if result.broken is not None} == {}
    assert sum(result.commits for result in results) > 300
