"""Effects whose order and number matter: each is committed once, after the end of its job, and counted as it is."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from ledgerq.eventlog.errors import EffectConflict, EffectsTooLarge, InvalidState
from ledgerq.eventlog.events import Acked, Enqueued, KvSet
from ledgerq.eventlog.side_records import MAX_VALUE_BYTES
from ledgerq.worker.effects import MAX_EFFECT_BYTES
from ledgerq.worker.execution import JobContext
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig


async def test_effects_are_committed_once() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        first, second = await rig.queue.claim("q", limit=2)
        effects = rig.queue.effects()
        effects.enqueue("mail", b"x")
        effects.kv.set("k", b"v")
        acks = (rig.queue.ack(first, effects=effects), rig.queue.ack(second, effects=effects))
        done, error = await asyncio.gather(*acks, return_exceptions=True)
        assert done is None
        assert isinstance(error, InvalidState)
        assert "committed already" in str(error)
        with pytest.raises(InvalidState, match="they were given to a commit"):
            effects.enqueue("mail", b"y")
        async with rig.queue.transaction() as transaction:
            transaction.enqueue("mail", b"z")
        with pytest.raises(InvalidState, match="committed already"):
            await rig.queue.ack(second, effects=transaction)
        assert (await rig.queue.stats("q")).claimed == 1
        assert (await rig.queue.stats("mail")).totals["enqueued"] == 2


async def test_effects_that_were_refused_can_be_given_again() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        (claim,) = await rig.queue.claim("q")
        effects = rig.queue.effects()
        effects.kv.set("k", b"2", expect=0)
        async with rig.queue.transaction() as transaction:
            transaction.kv.set("k", b"1")
        with pytest.raises(EffectConflict):
            await rig.queue.ack(claim, effects=effects)
        async with rig.queue.transaction() as transaction:
            transaction.kv.delete("k")
        await rig.queue.ack(claim, effects=effects)
        assert [event.key for event in await rig.events() if isinstance(event, KvSet)] == ["k", "k"]


@pytest.mark.parametrize("dead", [False, True])
async def test_a_job_that_ends_leaves_its_unique_key_to_its_effects(dead: bool) -> None:
    async with Rig() as rig:
        before = await rig.queue.enqueue("q", b"1", unique_key="k")
        (claim,) = await rig.queue.claim("q")
        effects = rig.queue.effects()
        handle, again = (effects.enqueue("q", payload, unique_key="k") for payload in (b"2", b"3"))
        if dead:
            await rig.queue.nack(claim, "no", dead=True, effects=effects)
        else:
            await rig.queue.ack(claim, effects=effects)
        assert (handle.created, again.created) == (True, False)
        assert handle.job_id == again.job_id != before.job_id
        assert (await rig.queue.enqueue("q", b"4", unique_key="k")).job_id == handle.job_id
        assert (await rig.queue.stats("q")).pending == 1
        assert [type(event) for event in (await rig.events())[-1:]] == [Enqueued]


async def test_a_value_that_is_set_again_is_counted_once() -> None:
    async with Rig() as rig:
        effects = rig.queue.effects()
        value = bytes(MAX_VALUE_BYTES)
        times = MAX_EFFECT_BYTES // MAX_VALUE_BYTES + 2
        for _ in range(times):
            effects.kv.set("progress", value)
        once = effects.size_bytes
        assert MAX_VALUE_BYTES < once < 2 * MAX_VALUE_BYTES
        with pytest.raises(EffectsTooLarge, match="store large ones elsewhere"):
            for at in range(times):
                effects.kv.set(str(at), value)
        effects.kv.delete("progress")
        effects.kv.set("progress", value)


async def test_many_large_effects_at_a_time_do_not_come_into_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig() as rig:
        payload, store = bytes(1_000_000), rig.queue.log.store
        read = store.get_many

        async def later(keys: Sequence[bytes]) -> list[bytes | None]:
            await settle()  # so that all calls read at the same time
            return await read(keys)

        monkeypatch.setattr(store, "get_many", later)
        claims = []
        for at in range(6):
            await rig.queue.enqueue("q", b"%d" % at)
            claims += await rig.queue.claim("q")

        async def ack(at: int) -> None:
            effects = rig.queue.effects()
            effects.kv.set(f"k{at}", b"v", expect=0)
            for _ in range(4):
                effects.enqueue("mail", payload)
            await rig.queue.ack(claims[at], effects=effects)

        await asyncio.gather(*(ack(at) for at in range(6)))
        acks = [sum(type(event) is Acked for event in batch.events) for batch in await rig.batches()]
        assert sum(acks) == 6
        assert max(acks) <= 3


async def test_a_thread_that_outlives_its_try_adds_nothing() -> None:
    """Also where the try had no effects yet."""
    async with Rig() as rig:
        contexts: list[JobContext] = []
        worker = Worker(rig.queue)
        worker.handler("q")(contexts.append)
        await rig.queue.enqueue("q", b"1")
        running = asyncio.create_task(worker.run(signals=False))
        await rig.queue.drained("q")
        worker.stop()
        await running

        def late() -> None:
            contexts[0].enqueue("mail", b"x")

        with ThreadPoolExecutor(1) as threads, pytest.raises(InvalidState, match="the try is over"):
            await asyncio.get_running_loop().run_in_executor(threads, late)
