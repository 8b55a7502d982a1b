"""A simulated world: a workload on the processes of one machine (machine.py), faults, and the quiesce phase.

Everything runs on one simulated event loop, a manual clock and one seed, so that a run can be repeated exactly. When
the moves of the plan are over, the faults end, everything left is worked off, and the oracle compares. `run_plan`
returns what happened; a promise that was broken on the way is in it.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.model.job import Violation
from tests.simulation.loop import Stuck
from tests.simulation.machine import KILL_TURNS, Machine
from tests.simulation.old_store import begin_with_format_2
from tests.simulation.plan import Plan
from tests.simulation.quiesce import quiesce
from tests.simulation.watchdog import watch
from tests.simulation.workload import Workload

__all__ = ["Outcome", "World", "run_plan"]


class Outcome(NamedTuple):
    """The outcome of a run. `digest` is one of everything that happened; `broken` None when all promises were kept."""

    broken: Violation | None
    digest: str
    commits: int
    jobs: int
    story: tuple[str, ...]


class World(Machine):
    """One simulated world."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._workload = Workload(self)

    async def main(self) -> None:
        """Run the moves in order, then end all faults and all jobs."""
        self.failed = self.loop.create_future()
        story = self.spawn(None, self._play)
        await asyncio.wait({story, self.failed}, return_when=asyncio.FIRST_COMPLETED)

    async def _play(self) -> None:
        if old := self.plan.settings["format 2"]:
            await begin_with_format_2(self, old)
        self.ledger.model.limits.expected = {*self.plan.settings["limits"]}
        self.start_process()
        supervisor = self.spawn(None, self.supervise)
        watcher = self.spawn(None, watch, self)
        playing: dict[asyncio.Task[Any], None] = {}
        for move in self.plan.moves:
            wait_ms = move.at_ms - self.loop.now_ms()
            if wait_ms > 0:
                await asyncio.sleep(wait_ms / 1000)
            task = self.spawn(None, self._workload.play, move)
            playing[task] = None
            task.add_done_callback(lambda done: playing.pop(done, None))
        while playing:
            await asyncio.wait([*playing])
        await quiesce(self, supervisor)
        watcher.cancel()

    def run(self) -> Outcome:
        """Run the whole world."""
        try:
            self.loop.run_until_complete(self.main())
        except Stuck as stuck:
            self.broken = self.broken or Violation("hang", str(stuck))
            self.say(f"BROKEN: {self.broken}")
        self.over = True
        digest = hashlib.blake2b("\n".join(self.story).encode(), digest_size=16)
        for key, value in self.disk.rows.items():
            digest.update(key)
            digest.update(value)
        return Outcome(
            self.broken, digest.hexdigest(), self.ledger.commits, len(self.ledger.model.jobs), tuple(self.story)
        )

    def dispose(self) -> None:
        """Drop every task that is left, so that none complains later."""
        self.loop.add_turns(2 * KILL_TURNS)
        for turns in range(KILL_TURNS):
            tasks = [task for owned in self.loop.owned.values() for task in owned]
            if not tasks or turns == KILL_TURNS - 1:
                break
            for task in tasks:
                task.cancel()
            self.loop.call_soon(self.loop.stop)
            try:
                self.loop.run_forever()
            except Stuck:
                break
        self.loop.close()


def run_plan(plan: Plan) -> Outcome:
    """Run a plan from its beginning to its end."""
    with _quietly():
        world = World(plan)
        try:
            return world.run()
        finally:
            world.dispose()


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence the library's warnings about faults, which are intended here."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
