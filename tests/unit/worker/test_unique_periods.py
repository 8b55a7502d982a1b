"""Unique keys for a period, and what an enqueue does whose key is held: it keeps, replaces, is refused, or puts off."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from ledgerq.eventlog.errors import InvalidArgument, UniqueKeyHeld
from ledgerq.eventlog.events import Replaced, UniqueReleased
from ledgerq.eventlog.keys import PAYLOAD_PREFIX
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.tasks.registry import Tasks
from tests.support.loops import settle
from tests.support.rig import Rig, payloads

KEYED: dict[str, Any] = {"unique_key": "k", "unique_for": 60}


async def events_of(rig: Rig, kind: type[Any]) -> list[Any]:
    """The events of this type."""
    return [record.event async for record in rig.queue.log.read() if isinstance(record.event, kind)]


@pytest.mark.parametrize("end", ["acked", "dead", "cancelled", "swept by another writer's options"])
async def test_a_key_is_held_for_its_period_whatever_becomes_of_the_job_and_not_longer(end: str) -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"1", max_attempts=1, **KEYED)
        await rig.advance(10)
        if end == "cancelled":
            await rig.queue.cancel(first.job_id, actor="a", reason="r")
        else:
            if end.startswith("swept"):
                await rig.reopen(default=QueueOptions(keep_done_s=1, keep_dead_s=1, keep_cancelled_s=1))
            (claim,) = await rig.queue.claim("q")
            await (rig.queue.nack(claim, "e") if end == "dead" else rig.queue.ack(claim))
        await rig.advance(49.999)
        again = await rig.queue.enqueue("q", b"2", unique_key="k")
        assert (again.job_id, again.created, again.replaced) == (first.job_id, False, False)
        with pytest.raises(UniqueKeyHeld, match=first.job_id):
            await rig.queue.enqueue("q", b"2", unique_key="k", on_conflict="raise")
        await rig.advance(0.001)
        second = await rig.queue.enqueue("q", b"2", unique_key="k")
        assert second.created
        await rig.check()
        assert len(await events_of(rig, UniqueReleased)) == (not end.startswith("swept"))


async def test_a_period_alone_says_nothing_of_the_jobs_state_and_does_not_slide() -> None:
    async with Rig() as rig:
        ids = []
        for number in range(6):
            result = await rig.queue.enqueue("q", b"%d" % number, unique_until="period", **KEYED)
            ids.append(result.job_id)
            assert result.created == (number % 3 == 0)
            await rig.advance(20)
        assert len(set(ids)) == 2
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"0", b"3"]
        later = await rig.queue.enqueue("q", b"", unique_until="period", **KEYED)
        assert later.created
        await rig.check()
        await rig.crash()
        assert not (await rig.queue.enqueue("q", b"", unique_until="period", **KEYED)).created
        await rig.advance(60)
        taken = await asyncio.gather(*(rig.queue.enqueue("q", b"", unique_until="period", **KEYED) for _ in range(9)))
        assert sum(one.created for one in taken) == 1
        await rig.check()


async def test_what_waits_is_replaced_and_keeps_its_place_and_its_tries_are_new() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"old", unique_key="k", headers={"h": "1"})
        await rig.queue.enqueue("q", b"behind")
        (claim,) = await rig.queue.claim("q")
        result = await rig.queue.enqueue("q", b"no", unique_key="k", on_conflict="replace")
        assert (result.job_id, result.created, result.replaced) == (first.job_id, False, False)
        await rig.queue.nack(claim, "e", delay=5)
        for payload in (b"two", b"new"):
            given: dict[str, Any] = {"headers": {"h": "2"}, "max_attempts": 7, "expires": 50}
            result = await rig.queue.enqueue("q", payload, unique_key="k", on_conflict="replace", **given)
            assert (result.job_id, result.created, result.replaced) == (first.job_id, False, True)
            await rig.check()
        job = await rig.queue.get(first.job_id)
        assert (job.state, job.attempt, job.max_attempts, job.payload_offset) == ("pending", 0, 7, job.last_offset)
        assert (await rig.queue.payload(job.job_id)).payload == b"new"
        assert sum(key.startswith(PAYLOAD_PREFIX) for key in rig.disk.rows) == 2
        claims = await rig.queue.claim("q", limit=2)
        assert [(one.payload, one.headers) for one in claims] == [(b"new", {"h": "2"}), (b"behind", {})]
        await rig.queue.ack_many(claims)
        await rig.advance(25 * 3600)
        await rig.check()
        assert not any(key.startswith(PAYLOAD_PREFIX) for key in rig.disk.rows)


@pytest.mark.parametrize("window", [1, 1000])
async def test_what_is_replaced_in_the_commit_of_its_enqueue_or_while_a_window_is_filled_runs_once(window: int) -> None:
    async with Rig(ready_window=window) as rig:
        await rig.queue.enqueue_many("q", [b"a", NewJob(b"b", unique_key="b"), NewJob(b"c", unique_key="c")])
        await rig.reopen(ready_window=window)
        rig.faults.hold("get")
        claiming = asyncio.create_task(rig.queue.claim("q"))
        await settle()
        changes = [
            asyncio.create_task(rig.queue.enqueue("q", b"%b%d" % (key, number), unique_key=key, on_conflict="replace"))
            for key in (b"a", b"b", b"c")
            for number in range(3)
        ]
        await settle()
        rig.faults.let_go("get")
        done = await asyncio.gather(*changes)
        assert [one.created for one in done] == [True, *[False] * 8]
        found = payloads(await claiming)
        while claims := await rig.queue.claim("q", limit=1):
            found += payloads(claims)
        assert found == [b"a", b"b2", b"c2", b"a2"]
        await rig.check()


async def test_a_debounced_job_runs_once_with_the_last_arguments_so_long_after_the_last_call() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"0", unique_key="k", debounce=5)
        for number in range(1, 4):
            await rig.advance(4)
            again = await rig.queue.enqueue("q", b"%d" % number, unique_key="k", debounce=5)
            assert (again.job_id, again.replaced) == (first.job_id, True)
        await rig.advance(4.999)
        assert await rig.queue.claim("q") == []
        await rig.advance(0.001)
        (claim,) = await rig.queue.claim("q")
        assert claim.payload == b"3"
        # It runs: what comes now is another job.
        assert (await rig.queue.enqueue("q", b"4", unique_key="k", debounce=5)).created
        assert len(await events_of(rig, Replaced)) == 3
        await rig.check()


async def test_a_debounced_job_is_not_put_off_longer_than_that() -> None:
    async with Rig() as rig:
        limits: dict[str, Any] = {"unique_key": "k", "debounce": 5, "debounce_max": 12}
        dues = []
        for number in range(4):
            job = await rig.queue.get((await rig.queue.enqueue("q", b"%d" % number, **limits)).job_id)
            dues.append((job.due_ms - job.enqueued_ms, job.state))
            await rig.advance(4)
        assert dues == [(5000, "scheduled"), (9000, "scheduled"), (12_000, "scheduled"), (dues[3][0], "pending")]
        assert payloads(await rig.queue.claim("q")) == [b"3"]


async def test_a_refused_key_of_a_bulk_call_adds_nothing_and_a_replaced_one_comes_with_the_others() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1", unique_key="k")
        job = NewJob(b"3", unique_key="k", on_conflict="raise")
        with pytest.raises(UniqueKeyHeld):
            await rig.queue.enqueue_many("q", [b"2", job])
        twice = NewJob(b"4", unique_key="l", on_conflict="raise")
        with pytest.raises(UniqueKeyHeld, match="two jobs of one call"):
            await rig.queue.enqueue_many("q", [twice, twice])
        jobs = [NewJob(b"%d" % number, unique_key="k", on_conflict="replace") for number in range(5)]
        results = await rig.queue.enqueue_many("q", [*jobs, twice])
        assert [one.replaced for one in results] == [True] * 5 + [False]
        await rig.check()
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"4", b"4"]


async def test_a_dead_job_in_its_period_is_requeued_with_its_key() -> None:
    async with Rig() as rig:
        first = await rig.queue.enqueue("q", b"", max_attempts=1, **KEYED)
        (claim,) = await rig.queue.claim("q")
        await rig.queue.nack(claim, "e")
        await rig.queue.requeue(first.job_id, actor="a", reason="r")
        await rig.advance(60)
        assert not (await rig.queue.enqueue("q", b"", unique_key="k")).created
        await rig.check()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"unique_for": 5}, "give unique_key"),
        ({"on_conflict": "replace"}, "give unique_key"),
        ({"debounce": 5}, "give unique_key"),
        ({"unique_key": "k", "debounce_max": 5}, "give that, too"),
        ({"unique_key": "k", "debounce": 5, "delay": 1}, "debounce is a delay"),
        ({"unique_key": "k", "debounce": 5, "unique_for": 1}, "debounce is a delay"),
        ({"unique_key": "k", "debounce": 5, "debounce_max": 4}, "debounce_max"),
        ({"unique_key": "k", "unique_until": "period"}, "needs the period"),
        ({"unique_key": "k", "unique_for": 0}, "unique_for"),
        ({"unique_key": "k", "unique_for": 24 * 3600 + 1}, "raise keep_done_s"),
        ({"unique_key": "k", "on_conflict": "drop"}, "on_conflict"),
    ],
)
async def test_what_makes_no_sense_about_a_key_is_refused(given: dict[str, Any], what: str) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match=what):
            await rig.queue.enqueue("q", b"", **given)
        assert await rig.queue.queues() == []


async def test_keys_of_arguments_are_equal_for_equal_arguments_however_they_are_given() -> None:
    app = Tasks()

    @app.task(queue="q", unique="args", on_conflict="replace")
    async def work(
        at: datetime, names: set[str], data: bytes = b"\xff", more: dict[str, list[int]] | None = None
    ) -> None:
        """Its arguments have values that JSON has no order or no form for."""

    @app.task(queue="q", unique=("user",), unique_for=60)
    async def welcome(user: int, name: str) -> None:
        """One for each user in a minute."""

    async with Rig(tasks=app) as rig:
        now, names = datetime(2026, 1, 1, tzinfo=UTC), {f"n{number}" for number in range(9)}
        first = await work.enqueue(now, names)
        again = await work.enqueue(names={*names}, at=now, data=b"\xff", more=None)
        assert (again.job_id, again.created, again.replaced) == (first.job_id, False, True)
        assert (await work.enqueue(now, names | {"x"})).created
        assert (await welcome.enqueue(1, "Ann")).created
        assert not (await welcome.enqueue(name="Anne", user=1)).created
        many = await welcome.enqueue_many([{"user": 1, "name": ""}, {"user": 2, "name": ""}])
        assert [one.created for one in many] == [False, True]
        assert (await welcome.options(unique_key="mine").enqueue(1, "Ann")).created
        await rig.check()
    for wrong in ("user", (), ("nobody",), 5):
        with pytest.raises(InvalidArgument, match="unique"):
            app.task(name=f"w{wrong}", unique=wrong)(welcome.function)  # type: ignore[arg-type]
