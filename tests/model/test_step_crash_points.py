"""Steps, ended at every call of the store in every way that a process can end: what is done is not done again."""

from typing import Any

from ledgerq.eventlog.events import StepDone
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.model.crash_points import CrashPoint, End, at_each_call, each_end, until_crash
from tests.support.rig import Rig

OPTIONS: dict[str, Any] = {
    "commit_interval_ms": 0.0,
    "default": QueueOptions(lease_s=10.0, backoff_base_s=0.0, max_attempts=9, max_crashes=None),
}
NAMES = ("charge", "ship", "mail")


class World:
    """The work of steps: each call of one is counted, and so is what each was told that it returned."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.told: dict[tuple[str, str], int] = {}

    async def handle(self, job: JobContext) -> None:
        """Do three steps; the first try of each job fails after the second, and each try reports."""
        for number, name in enumerate(NAMES):
            key = (job.job_id, name)

            async def work(key: tuple[str, str] = key) -> int:
                assert key not in self.told, "it was told as done, and is done again"
                self.calls.append(key)
                return self.calls.count(key)

            value = await job.step(name, work)
            assert self.told.setdefault(key, value) == value
            job.progress(number / 3, name)
            if name == "ship" and job.attempt == 1:
                raise ConnectionError("lost")

    async def work_off(self, queue: Queue) -> None:
        """Run a worker until the queue is empty."""
        worker = Worker(queue, concurrency=2)
        worker.handler("q")(self.handle)
        await worker.run(until_empty=True, signals=False)


async def operate(rig: Rig, point: CrashPoint, world: World) -> None:
    """Two jobs are worked off."""
    point.store = store = MemoryStore(rig.disk, fault=point)
    queue = rig.queue = await Queue.open(store=store, clock=rig.clock, entropy=rig.entropy, **OPTIONS)
    await queue.enqueue_many("q", [b"1", b"2"])
    await world.work_off(queue)
    await queue.close()


async def check_promises(rig: Rig, world: World) -> int:
    """Open again and do the rest; each step is done once by the log. Returns how many steps the log has."""
    await rig.check()
    queue = await rig.open(**OPTIONS)
    assert not any(key.startswith(b"m/progress/") for key in rig.disk.rows)
    await world.work_off(queue)
    for job in (await queue.jobs("q")).jobs:
        assert job.state == "done"
        assert [name for name, _ in job.steps] == [*NAMES]
    await queue.close()
    await rig.check()
    done = [(event.id, event.name) for event in await rig.events() if isinstance(event, StepDone)]
    assert len(done) == len(set(done)) == len(world.told)
    assert not any(key.startswith(b"m/progress/") for key in rig.disk.rows)
    return len(done)


async def run_until_it_ends(rig: Rig, at: int | None, end: End) -> tuple[CrashPoint, World]:
    """Run the scenario up to its end or the crash."""
    point, world = CrashPoint(at, end), World()
    await until_crash(rig, point, end, operate(rig, point, world))
    return point, world


async def test_the_scenario_itself_goes_well() -> None:
    rig = Rig()
    _, world = await run_until_it_ends(rig, None, "error")
    assert await check_promises(rig, world) == len(world.calls) == 2 * len(NAMES)


@each_end("vanish", 6)
async def test_steps_that_are_ended_at_any_call_of_their_store_are_done_once(end: End, step: int) -> None:
    # At every second call in the proof: a try is the same before each of its steps.
    await at_each_call(run_until_it_ends, check_promises, end, max(step, 2))
