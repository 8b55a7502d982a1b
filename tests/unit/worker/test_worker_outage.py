"""A store that can't be read for a while doesn't end a worker."""

from ledgerq import Worker
from ledgerq.eventlog.errors import StoreUnavailable
from tests.support.loops import until
from tests.support.rig import Rig
from tests.support.workers import Stage, working


async def test_a_worker_claims_again_when_the_store_can_be_read_again() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"1")
        await rig.reopen()
        stage = Stage()
        stage.cue.set()
        worker = Worker(rig.queue)
        worker.handler("q")(stage)
        rig.faults.spoil("get", StoreUnavailable("away"))
        async with working(worker):
            await until(lambda: rig.faults.calls.count("get") >= 1)
            assert stage.ended == []
            await until(lambda: not rig.queue.failure and rig.clock.next_due_ms() is not None)
            rig.clock.advance(seconds=1)
            await until(lambda: stage.ended == [b"1"])
