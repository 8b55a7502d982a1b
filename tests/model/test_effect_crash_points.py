"""Effects, ended at every call of the store in every way that a process can end: all of them are there, or none."""

from typing import Any

import pytest

from ledgerq.eventlog.errors import ClaimLost, EffectConflict
from ledgerq.eventlog.events import Acked, Enqueued, KvDeleted, KvSet
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.effects import Change
from ledgerq.worker.engine import effect_staging, settlement
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.support.rig import Rig

OPTIONS: dict[str, Any] = {"commit_interval_ms": 0.0, "default": QueueOptions(lease_s=10.0)}
JOBS = 4


async def count_on(queue: Queue, claim: Any) -> None:
    """Count the job, name it as the last one, and enqueue a follow-up, with its ack."""
    found = await queue.kv.get("count")
    effects = queue.effects()
    effects.kv.set_json("count", 1 if found is None else found.json() + 1, expect=0 if found is None else found.version)
    effects.kv.set(f"job/{claim.job_id}", claim.payload)
    effects.enqueue("after", claim.payload)
    await queue.ack(claim, effects=effects)


async def operate(rig: Rig, point: CrashPoint) -> None:
    """Jobs come by a transaction; they are counted; a lost claim, a conflict, and the end of a key are among it."""
    point.store = store = MemoryStore(rig.disk, fault=point)
    queue = rig.queue = await Queue.open(store=store, clock=rig.clock, entropy=rig.entropy, **OPTIONS)
    async with queue.transaction() as t:
        t.kv.set_json("open", JOBS)
        for i in range(JOBS):
            t.enqueue("q", b"%d" % i)
    claims = await queue.claim("q", limit=JOBS)
    for claim in claims[:2]:
        await count_on(queue, claim)
    with pytest.raises(EffectConflict):
        async with queue.transaction() as t:
            t.kv.set_json("count", 99, expect=0)
            t.enqueue("after", b"never")
    await queue.release(claims[2])
    effects = queue.effects()
    effects.kv.set("lost", b"!")
    effects.enqueue("after", b"lost")
    with pytest.raises(ClaimLost):
        await queue.ack(claims[2], effects=effects)
    async with queue.transaction() as t:
        t.kv.delete("open")
    await queue.close()


async def check_promises(rig: Rig, nothing: None = None) -> int:
    """Open again and do the rest: each job was counted once, with its key and its follow-up in the commit of its ack.

    Returns how many effects the log has.
    """
    await rig.check()
    queue = await rig.open(**OPTIONS)
    while claims := await queue.claim("q", limit=1):
        await count_on(queue, claims[0])
    count = await queue.kv.get("count")
    given = JOBS if (await queue.stats("q")).totals["enqueued"] else 0
    assert (0 if count is None else count.json()) == given == (await queue.stats("after")).pending
    assert len((await queue.kv.keys("job/")).keys) == given
    await queue.close()
    await rig.check()
    for batch in await rig.batches():
        kinds = [type(event) for event in batch.events]
        keys = [event.key for event in batch.events if isinstance(event, KvSet)]
        assert "lost" not in keys
        acks, followed = kinds.count(Acked), sum(isinstance(e, Enqueued) and e.queue == "after" for e in batch.events)
        assert acks == followed == keys.count("count") == sum(key.startswith("job/") for key in keys)
        assert ("open" in keys) == any(isinstance(e, Enqueued) and e.queue == "q" for e in batch.events)
    return sum(isinstance(event, KvSet | KvDeleted) for event in await rig.events())


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, None]:
    """Run the scenario up to its end or the crash."""
    point = CrashPoint(at, end)
    await until_crash(rig, point, end, operate(rig, point))
    return point, None


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    point, _ = await run_until_it_ends(rig, None, "error")
    assert len(point.calls) > 15
    assert await check_promises(rig) == 2 * JOBS + 2


@each_end("vanish", 5)
async def test_effects_that_are_ended_at_any_call_of_their_store_are_whole_or_none(end: End, step: int) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, step)


def of_a_lost_claim(patch: pytest.MonkeyPatch) -> None:
    """Effects are committed though the claim is lost."""
    real = settlement.stage_ack

    def stage(*given: Any) -> None:
        try:
            real(*given)
        except ClaimLost:
            if len(given) < 3:
                raise

    patch.setattr(settlement, "stage_ack", stage)


def without_the_ack(patch: pytest.MonkeyPatch) -> None:
    """Effects are committed by themselves, and the ack after them."""
    real = effect_staging.stage_effects

    async def stage(core: Any, effects: Any, *, job: Any = None, settle: Any = lambda: True) -> None:
        await real(core, effects, job=job)
        settle()
        await core.log.committed()

    patch.setattr(settlement, "stage_effects", stage)


def whatever_is_expected(patch: pytest.MonkeyPatch) -> None:
    """What is expected of a key is not looked at."""
    patch.setattr(Change, "expect", None)


def no_row(patch: pytest.MonkeyPatch) -> None:
    """The event of a value is there, and the value is not."""
    real = WriterState.apply_value

    def apply(self: WriterState, event: Any, sealed: bytes = b"") -> None:
        real(self, event, sealed)
        self.log.commit().payloads.pop(b"k/count", None)

    patch.setattr(WriterState, "apply_value", apply)


@pytest.mark.parametrize("defect", [of_a_lost_claim, without_the_ack, whatever_is_expected, no_row])
async def test_planted_defects_are_noticed(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    rig = Rig()
    with pytest.raises((AssertionError, pytest.fail.Exception, EffectConflict)):
        await run_until_it_ends(rig, None, "error")
        await check_promises(rig)
