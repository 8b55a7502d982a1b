"""Ticks, ended at every call of the store in every way that a process can end: none is lost, and none comes twice."""

from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import Enqueued, Ticked
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.engine import ticking, timetable
from ledgerq.worker.engine.ticking import Ticking
from ledgerq.worker.queue import Queue
from ledgerq.worker.tasks.registry import Tasks
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.model.job import Model
from tests.model.records import Violation
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig

app = Tasks("app")


@app.cron(every=timedelta(minutes=10), missed="all", overlap="queue")
@app.task(queue="q")
def poll() -> None: ...


@app.task(queue="q")
def export(tenant: str) -> None: ...


async def operate(rig: Rig, point: CrashPoint) -> None:
    """A schedule in code and one of an operator tick, which is paused, resumed, set anew and removed."""
    point.store = store = MemoryStore(rig.disk, fault=point)
    given: dict[str, Any] = {"clock": rig.clock, "entropy": rig.entropy, "commit_interval_ms": 0.0, "tasks": app}
    queue = rig.queue = await Queue.open(store=store, **given)
    schedules = queue.schedules

    async def pass_time(minutes: int) -> None:
        rig.clock.advance(seconds=60 * minutes)
        await settle()
        await queue.log.committed()

    policies: dict[str, Any] = {"args": {"tenant": "acme"}, "missed": "all", "overlap": "queue"}
    await schedules.set("own", timedelta(minutes=7), export, **policies, **WHO)
    for _ in range(3):
        await pass_time(7)
    await schedules.pause("own", **WHO)
    await pass_time(25)
    await schedules.resume("own", **WHO)
    await pass_time(15)
    await schedules.set("own", timedelta(minutes=4), export, **policies, **WHO)
    await pass_time(5)
    await schedules.remove("own", **WHO)
    await pass_time(5)
    await queue.close()


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, None]:
    """Run the scenario up to its end or the crash."""
    point = CrashPoint(at, end)
    await until_crash(rig, point, end, operate(rig, point))
    return point, None


async def check_promises(rig: Rig, nothing: None = None) -> int:
    """Open again, a little later: each tick up to then is there once, in its order, with one job, and no other job is.

    Returns how many ticks there were.
    """
    await rig.check()
    rig.clock.advance(seconds=60 * 30)
    await rig.open(tasks=app)
    for _ in range(20):
        await settle()
    await rig.queue.close()
    await rig.check()
    model, ticks = Model(), 0
    for batch in await rig.batches():
        for number, event in enumerate(batch.events):
            model.apply(batch.base_offset + number, batch.time_ms, event)
            if isinstance(event, Enqueued):
                model.schedules.to_tick = event.id
            ticks += isinstance(event, Ticked)
        assert model.schedules.to_tick is None, "a tick and its job are in one commit"
    late = model.schedules.late(rig.clock.now_ms(), now_ms=1)
    assert not late, f"{late} did not tick"
    return ticks


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    point, _ = await run_until_it_ends(rig, None, "error")
    assert len(point.calls) > 40
    assert await check_promises(rig) > 13


@each_end("vanish", 5)
async def test_ticks_that_are_ended_at_any_call_of_their_store_go_on_with_the_next_process(end: End, step: int) -> None:
    await at_each_call(run_until_it_ends, check_promises, end, step)


def twice(patch: pytest.MonkeyPatch) -> None:
    """A tick adds its job twice."""
    real = Ticking._enqueue

    def enqueue(self: Ticking, prepared: Any, replaced: Any) -> None:
        real(self, prepared, replaced)
        id = prepared.event.id[:-1] + bytes([prepared.event.id[-1] ^ 1])
        real(self, prepared._replace(event=replace(prepared.event, id=id)), None)

    patch.setattr(Ticking, "_enqueue", enqueue)


def never(patch: pytest.MonkeyPatch) -> None:
    """A tick is recorded, and its job is not there."""
    patch.setattr(Ticking, "_enqueue", lambda self, prepared, replaced: None)


def left_out(patch: pytest.MonkeyPatch) -> None:
    """Each second tick is left out."""
    real = timetable.next_tick
    patch.setattr(ticking, "next_tick", lambda spec, zone, after_ms: real(spec, zone, real(spec, zone, after_ms)))


@pytest.mark.parametrize("defect", [twice, never, left_out])
async def test_planted_defects_are_noticed(defect: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    rig = Rig()
    await run_until_it_ends(rig, None, "error")
    with pytest.raises((AssertionError, LogCorrupt, Violation)):
        await check_promises(rig)
