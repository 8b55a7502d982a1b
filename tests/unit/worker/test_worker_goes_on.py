"""A worker all of whose slots are free, with nothing on its way that would end and wake it, claims again."""

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.worker.worker import Worker
from tests.support.loops import settle
from tests.support.rig import Rig
from tests.support.workers import Stage, fetching_ahead, working


async def test_after_claims_were_given_back_while_too_many_outcomes_were_on_their_way() -> None:
    stage = Stage()
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"1", b"2"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, max_settling=1), 1, patience_s=1)
        worker.handler("q")(stage)
        async with working(worker):
            rig.faults.hold("sync:before")
            stage.cue.set()
            await settle()
            assert [claim.payload for claim in worker._slots.held] == [b"1", b"2"]
            await rig.advance(1)
            rig.faults.let_go("sync:before")
            await settle()
            assert stage.started == [b"1", b"2"]


async def test_after_a_call_ahead_for_all_slots_has_failed() -> None:
    stage = Stage()
    async with Rig(ready_window=4) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(12)])
        worker = fetching_ahead(Worker(rig.queue, concurrency=4), 1)
        worker.handler("q")(stage)
        rig.faults.hold("scan")
        async with working(worker):
            assert len(stage.started) == 4
            stage.cue.set()
            await settle()
            assert not worker._slots.held
            rig.faults.spoil("scan", *[StoreUnavailable("not now")] * 2)
            rig.faults.let_go("scan")
            await settle()
            await rig.advance(1)
            assert len(stage.started) == 12
