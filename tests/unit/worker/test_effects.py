"""Effects: what a job or a transaction enqueues and sets is in one commit with its end, or nowhere."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from ledgerq.eventlog.errors import (
    ClaimLost,
    DuplicateJobId,
    EffectConflict,
    EffectsTooLarge,
    InvalidArgument,
    InvalidState,
)
from ledgerq.eventlog.events import Acked, Enqueued, Event, KvDeleted, KvSet, LeaseExpired, Nacked
from ledgerq.eventlog.keys import VALUE_PREFIX
from ledgerq.projections.values import KvKey
from ledgerq.worker.effects import MAX_EFFECTS, Effects
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import Dead, Retry, Snooze
from ledgerq.worker.tasks.memory_queue import memory_queue
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig

ENDS = {"raises": ValueError(), "retry": Retry(9), "snooze": Snooze(9), "dead": Dead("no")}


async def run(
    rig: Rig, function: Callable[[JobContext], Any], *, until: Callable[[], Awaitable[Any]], **options: Any
) -> None:
    """Run a worker for queue `q` until this is over."""
    worker = Worker(rig.queue)
    worker.handler("q", **options)(function)
    running = asyncio.create_task(worker.run(signals=False))
    await until()
    worker.stop()
    await running


async def value_of(rig: Rig, key: str) -> bytes | None:
    found = await rig.queue.kv.get(key)
    return None if found is None else found.value


async def commit_of(rig: Rig, kind: type[Event]) -> list[type[Event]]:
    """The types of the events of the last commit that has one of this type."""
    return next(kinds for batch in reversed(await rig.batches()) if kind in (kinds := [type(e) for e in batch.events]))


async def test_the_effects_of_a_job_are_in_the_commit_of_its_ack() -> None:
    async with Rig() as rig:
        handles: list[Any] = []

        async def handle(job: JobContext) -> None:
            assert await job.kv.get("orders/1") is None
            job.kv.set("orders/1", b"paid", expect=0)
            handles.append(job.enqueue("mail", b"hello", priority=5))
            assert (await rig.queue.stats("mail")).pending == 0
            assert await value_of(rig, "orders/1") is None

        job_id = (await rig.queue.enqueue("q", b"1")).job_id
        await run(rig, handle, until=lambda: rig.queue.drained("q"))
        assert await commit_of(rig, Acked) == [Acked, KvSet, Enqueued]
        (job,) = (await rig.queue.jobs("mail")).jobs
        assert (job.job_id, job.spec.priority) == (handles[0].job_id, 5)
        assert await value_of(rig, "orders/1") == b"paid"
        (event,) = [event for event in await rig.events() if isinstance(event, KvSet)]
        assert event.job == (await rig.queue.get(job_id)).id
        assert b"paid" not in b"".join(row for key, row in rig.disk.rows.items() if key.startswith(b"l/"))


@pytest.mark.parametrize("how", [*ENDS, "timeout", "cancel", "lost"])
async def test_the_effects_of_a_try_that_does_not_end_well_are_dropped(how: str) -> None:
    async with Rig() as rig:
        begun, go, contexts = asyncio.Event(), asyncio.Event(), list[JobContext]()

        async def handle(job: JobContext) -> None:
            job.kv.set("k", b"v")
            job.enqueue("mail", b"never")
            contexts.append(job)
            begun.set()
            if how in ENDS:
                raise ENDS[how]
            await go.wait()

        job_id = (await rig.queue.enqueue("q", b"1")).job_id

        async def until() -> None:
            await begun.wait()
            await rig.queue.pause("q", **WHO)
            if how == "timeout":
                await rig.advance(5)
            elif how == "cancel":
                await rig.queue.cancel(job_id, **WHO)
            elif how == "lost":
                await rig.queue.release(contexts[0].claim)
                go.set()
            await settle()

        await run(rig, handle, until=until, timeout=2 if how == "timeout" else None)
        assert not [event for event in await rig.events() if isinstance(event, KvSet | Acked)]
        assert await value_of(rig, "k") is None
        assert (await rig.queue.stats("mail")).totals["enqueued"] == 0
        with pytest.raises(InvalidState, match="the try is over"):
            contexts[0].kv.set("late", b"")


async def test_a_dead_letter_keeps_its_effects_when_it_is_told_to() -> None:
    async with Rig() as rig:

        async def handle(job: JobContext) -> None:
            job.kv.set("k", b"v")
            raise Dead("no such order", keep=True)

        await rig.queue.enqueue("q", b"1")
        await run(rig, handle, until=lambda: rig.queue.drained("q"))
        assert await commit_of(rig, Nacked) == [Nacked, KvSet]
        (event,) = [event for event in await rig.events() if isinstance(event, Nacked)]
        assert (event.to, event.error, event.error_type) == ("dead", "no such order", "Dead")


async def test_a_key_that_is_not_as_expected_fails_the_try() -> None:
    async with Rig() as rig:
        tries: list[int] = []

        async def handle(job: JobContext) -> None:
            found = await job.kv.get("counter")
            tries.append(0 if found is None else found.version)
            if len(tries) == 1:
                async with rig.queue.transaction() as t:
                    t.kv.set_json("counter", 10, expect=0)
            job.kv.set_json("counter", 1 if found is None else found.json() + 1, expect=tries[-1])
            job.enqueue("mail", b"once")

        async def until() -> None:
            while not (await rig.queue.stats("q")).done:
                await rig.advance(8)

        await rig.queue.enqueue("q", b"1")
        await run(rig, handle, until=until)
        assert len(tries) == 2
        assert tries[0] == 0 < tries[1]
        (nack,) = [event for event in await rig.events() if isinstance(event, Nacked)]
        assert nack.error_type == "EffectConflict"
        assert "'counter' has version" in str(nack.error)
        assert await value_of(rig, "counter") == b"11"
        assert (await rig.queue.stats("mail")).pending == 1


async def test_a_plain_function_has_effects_from_its_thread() -> None:
    async with Rig() as rig:

        def handle(job: JobContext) -> None:
            before = job.kv.get_sync("k")
            assert before is not None
            job.kv.set("k", before.value + b"!", expect=before.version)
            job.kv.delete("old")
            job.enqueue("mail", b"m")

        async with rig.queue.transaction() as t:
            t.kv.set("k", b"v")
            t.kv.set("old", b"o")
        with pytest.raises(InvalidState, match="await"):
            t.kv.get_sync("k")
        await rig.queue.enqueue("q", b"1")
        await run(rig, handle, until=lambda: rig.queue.drained("q"))
        assert await commit_of(rig, Acked) == [Acked, KvSet, KvDeleted, Enqueued]
        assert await value_of(rig, "k") == b"v!"
        assert [key for key in rig.disk.rows if key.startswith(VALUE_PREFIX)] == [b"k/k"]


async def test_a_claim_that_is_lost_takes_its_effects_along() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        (claim,) = await rig.queue.claim("q", lease=5)
        effects = rig.queue.effects()
        effects.kv.set("k", b"v")
        effects.enqueue("mail", b"never")
        await rig.advance(6)
        assert isinstance((await rig.events())[-1], LeaseExpired)
        with pytest.raises(ClaimLost):
            await rig.queue.ack(claim, effects=effects)
        (again,) = await rig.queue.claim("q")
        with pytest.raises(InvalidArgument, match="dead=True"):
            await rig.queue.nack(again, "no", effects=effects)
        await rig.queue.cancel(again.job_id, **WHO)
        await rig.queue.nack(again, "no", dead=True, effects=effects)
        assert (await rig.queue.stats("q")).cancelled == 1
        assert await value_of(rig, "k") is None
        assert not (await rig.queue.stats("mail")).totals["enqueued"]


async def test_a_transaction_is_one_commit_or_nothing() -> None:
    async with Rig() as rig:
        queue = rig.queue
        first = await queue.enqueue("mail", b"first", unique_key="u")
        async with queue.transaction() as t:
            handles = [t.enqueue("bulk", b"%d" % i, delay=60) for i in range(120)]
            twin = t.enqueue("mail", b"second", unique_key="u")
            t.kv.set("a", b"1")
            t.kv.set("b", b"2")
            t.kv.set("b", b"3")
        (batch,) = [batch for batch in await rig.batches() if KvSet in map(type, batch.events)]
        assert [type(event) for event in batch.events] == [KvSet, KvSet, *[Enqueued] * 120]
        assert (twin.job_id, twin.created) == (first.job_id, False)
        assert {one.job_id for one in handles} == {one.job_id for one in (await queue.jobs("bulk", limit=999)).jobs}
        before = len(await rig.events())
        for spoil in (ValueError, EffectConflict, DuplicateJobId):
            with pytest.raises(spoil):
                async with queue.transaction() as t:
                    t.kv.set("a", b"9", expect=1 if spoil is EffectConflict else None)
                    t.enqueue("mail", b"x", job_id=first.job_id if spoil is DuplicateJobId else None)
                    if spoil is ValueError:
                        raise ValueError
        async with queue.transaction() as t:
            t.kv.delete("never there")
        async with queue.transaction():
            pass
        assert len(await rig.events()) == before
        with pytest.raises(InvalidState, match="the transaction is over"):
            t.enqueue("mail", b"late")


async def test_of_transactions_side_by_side_that_expect_one_version_one_succeeds() -> None:
    async with Rig() as rig:
        rig.faults.hold("commit")

        async def add(amount: int) -> bool:
            try:
                async with rig.queue.transaction() as t:
                    t.kv.set_json("sum", amount, expect=0)
            except EffectConflict:
                return False
            return True

        racing = [asyncio.create_task(add(i)) for i in range(5)]
        await settle()
        rig.faults.let_go("commit")
        assert sorted(await asyncio.gather(*racing)) == [False] * 4 + [True]
        rig.faults.hold("commit")

        async def change(value: bytes | None, expect: int | None) -> None:
            async with rig.queue.transaction() as t:
                if value is None:
                    t.kv.delete("sum", expect=expect)
                else:
                    t.kv.set("sum", value, expect=expect)

        # What is not durable yet counts: it is deleted, so that it can be set anew, and deleted again.
        changing = [asyncio.create_task(change(*what)) for what in ((None, None), (b"7", 0), (None, None))]
        await settle()
        rig.faults.let_go("commit")
        await asyncio.gather(*changing)
        assert await value_of(rig, "sum") is None


async def test_what_is_out_of_bounds_is_refused_by_name() -> None:
    async with Rig() as rig:
        t = rig.queue.effects()
        with pytest.raises(EffectsTooLarge, match=r"'k' has 65537 bytes, more than 65536"):
            t.kv.set("k", bytes(65537))
        wrong_keys: list[Any] = ["", "a\0b", "x" * 1025, "\ud800", 7]
        for wrong in wrong_keys:
            with pytest.raises(InvalidArgument, match="key"):
                t.kv.set(wrong, b"")
        untyped: Any = t
        for call in (
            lambda: untyped.kv.set("k", "text"),
            lambda: t.kv.set("k", b"", expect=-1),
            lambda: t.kv.set_json("k", {1, 2}),
            lambda: untyped.enqueue("mail"),
            lambda: t.enqueue("mail", b"x", colour="red"),
            lambda: untyped.enqueue(7, b"x"),
        ):
            with pytest.raises(InvalidArgument):
                call()
        assert not t
        for i in range(MAX_EFFECTS):
            t.kv.set(f"k{i}", b"")
        with pytest.raises(EffectsTooLarge, match="1,000 effects"):
            t.enqueue("mail", b"x")
        large = rig.queue.effects()
        for _ in range(8):
            large.enqueue("mail", bytes(1_000_000))
        with pytest.raises(EffectsTooLarge, match="more than 8388608"):
            large.enqueue("mail", bytes(1_000_000))
        with pytest.raises(InvalidArgument):
            await rig.queue.kv.keys(limit=0)
        with pytest.raises(InvalidArgument):
            await rig.queue.kv.at("k", 10_000)


async def test_keys_are_listed_in_pages_and_read_as_of_an_offset() -> None:
    async with Rig() as rig:
        kv = rig.queue.kv

        async def change(change: Callable[[Effects], None]) -> int:
            async with rig.queue.transaction() as t:
                change(t)
            return rig.queue.log.next_offset

        def five(t: Effects) -> None:
            for i in range(5):
                t.kv.set(f"o/{i}", b"%d" % i)

        first = await change(five)
        second = await change(lambda t: t.kv.set("o/1", b"new"))
        third = await change(lambda t: t.kv.delete("o/2"))
        page = await kv.keys("o/", limit=2)
        assert page.keys == [KvKey("o/0", 1, 1), KvKey("o/1", second - 1, 3)]
        assert page.next == "o/1"
        rest = await kv.keys("o/", limit=2, after=page.next)
        assert ([key.key for key in rest.keys], rest.next) == (["o/3", "o/4"], None)
        assert not (await kv.keys("p")).keys
        assert len((await kv.keys()).keys) == 4
        # The newest value is kept; of one before it the version and the digest.
        now, then, gone = await kv.at("o/1", second), await kv.at("o/1", first), await kv.at("o/2", second)
        assert now is not None
        assert (now.value, now.version) == (b"new", second - 1)
        assert then is not None
        assert (then.value, then.version) == (None, 2)
        assert then.digest != now.digest
        assert gone is not None
        assert gone.value is None
        assert await kv.at("o/2", third) is None
        assert await kv.at("o/1", 1) is None
        still = await kv.at("o/3", first)
        assert still is not None
        assert still.value == b"3"


app = Tasks("effects")


@app.task(queue="orders")
async def order(job: JobContext, number: int) -> str:
    found = await job.kv.get("total")
    before, version = (0, 0) if found is None else (found.json(), found.version)
    job.kv.set_json("total", number + before, expect=version)
    job.enqueue(receipt, number)
    if number < 0:
        raise Dead("negative", keep=number < -1)
    return "ordered"


@app.task(queue="mail")
def receipt(job: JobContext, number: int) -> int:
    job.kv.set(f"receipt/{number}", b"sent")
    assert job.kv.get_sync("total") is not None
    return number


async def test_tasks_have_effects_in_a_memory_queue() -> None:
    async with memory_queue(app) as queue:
        handle = await order.enqueue(5)
        await queue.drain()
        assert await handle.result() == "ordered"
        (sent,) = queue.enqueued(receipt, number=5)
        assert await sent.result() == 5
        assert [key.key for key in (await queue.kv.keys()).keys] == ["receipt/5", "total"]
        async with queue.transaction() as t:
            typed = t.enqueue(order, number=6)
        await queue.drain()
        assert await typed.result() == "ordered"
        total = await queue.kv.get("total")
        assert total is not None
        assert total.json() == 11


async def test_tasks_have_effects_inline() -> None:
    kept: dict[str, bytes] = {}
    with app.inline(values=kept):
        assert await (await order.enqueue(5)).result() == "ordered"
        assert kept == {"total": b"5", "receipt/5": b"sent"}
        await order.enqueue(-1)
        assert kept == {"total": b"5", "receipt/5": b"sent"}
        await order.enqueue(-2)
        assert kept == {"total": b"3", "receipt/5": b"sent", "receipt/-2": b"sent"}
