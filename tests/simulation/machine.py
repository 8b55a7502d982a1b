"""The machine of a simulated world: its clocks, its disk, its faults, and the processes that come and go on it.

A process is a `Queue` on the one disk, with all that use it. It can be killed at any turn of the event loop or at
any call of its store, be overtaken by another one, fail, close, and be started anew, as a service manager does.
"""

import asyncio
import contextvars
import hashlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.errors import Fenced, LedgerError
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.scheduling import begin_ticks
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.model.job import Model, Violation
from tests.simulation.ledger import SimLedger
from tests.simulation.loop import SimLoop, Stuck
from tests.simulation.oracle import Oracle
from tests.simulation.plan import Plan
from tests.simulation.process import Process
from tests.simulation.projection import SimProjection
from tests.simulation.store_faults import Fault, SimDisk, SimStore

__all__ = ["CALL_LIMIT_S", "KILL_TURNS", "Machine"]

MAX_TURNS: Final = 400_000
KILL_TURNS: Final = 200
_KILLS_UNTIL_SET_ASIDE: Final = 3
# Longer than any stall, any lease and the longest time that the clock is set back for.
CALL_LIMIT_S: Final = 6 * 3600.0
_START_MS: Final = 1_700_000_000_000
_PATIENCE_MS: Final = 1000
_OPEN_AGAIN_S: Final = 1.0
_OPEN_AGAIN_MOST_S: Final = 600.0


class Machine:
    """The machine of a simulated world."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = ManualClock(_START_MS)
        self.loop = SimLoop(self.clock, max_turns=MAX_TURNS)
        self.loop.before_turn = self._count_down
        self.loop.set_exception_handler(self._unhandled)
        self.disk = SimDisk()
        self.oracle = Oracle()
        options = (plan.settings["keep_ms"], plan.settings["backoff_ms"])
        self.oracle.model = model = Model(
            self.loop.now_ms,
            self.clock.now_ms,
            options,
            plan.settings["max_crashes"],
            plan.settings["dead letters"],
        )
        self.ledger = SimLedger(self.disk, self.oracle, model)
        self.entropy = SeededEntropy(plan.seed)
        self.faults: list[Fault] = []
        self.processes: list[Process] = []
        self.broken: Violation | None = None
        self.over = False
        self.clock_went_back = False
        self.jumped_ms = -1
        self.kill_next: dict[str, bool] = {}
        self._kills = 0
        self.second_next: str | None = None
        self.story: list[str] = []
        self._countdown: tuple[int, Process, bool] | None = None
        self._changes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.failed: asyncio.Future[None]

    # ------------------------------------------------------------------ used by all

    def say(self, text: str) -> None:
        """Add one line to the trace."""
        self.story.append(f"{self.loop.now_ms() / 1000:9.3f} s  {text}")

    def break_(self, violation: Violation) -> None:
        """End the run with a broken promise; the first one counts."""
        if self.broken is None:
            self.broken = violation
            self.say(f"BROKEN: {violation}")
            if not self.failed.done():
                self.failed.set_result(None)

    def on_flush(self, process: Process, changes: Mapping[bytes, bytes | None]) -> None:
        """Check a change of the disk."""
        if not changes:
            return
        digest = hashlib.blake2b(repr(sorted(changes.items(), key=lambda row: row[0])).encode(), digest_size=6)
        self.say(f"p{process.number} commits {len(changes)} rows, {digest.hexdigest()}")
        try:
            self.ledger.changed(changes)
        except Violation as violation:
            self.break_(violation)
        except LedgerError as error:
            self.break_(Violation("log", str(error)))

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Violation):
            self.break_(error)
        elif not self.over:
            self.break_(Violation("error", f"{context.get('message')}: {error!r}"))

    def spawn(
        self, process: Process | None, act: Callable[..., Coroutine[Any, Any, Any]], *args: Any
    ) -> asyncio.Task[Any]:
        """Start a task that belongs to `process` and vanishes with it; None: to the world."""
        context = contextvars.copy_context()
        context.run(self.loop.owner.set, 0 if process is None else process.number)
        return self.loop.create_task(self._guarded(act, args), context=context)

    async def _guarded(self, act: Callable[..., Coroutine[Any, Any, Any]], args: tuple[Any, ...]) -> None:
        try:
            await act(*args)
        except Violation as violation:
            self.break_(violation)
        except (Exception, Stuck) as error:
            self.break_(Violation("error", f"{type(error).__name__}: {error}"))

    async def process(self) -> Process:
        """The newest process whose queue takes calls; waits until there is one."""
        while True:
            for process in reversed(self.processes):
                if process.healthy:
                    return process
            await self._next_change()

    async def _next_change(self) -> None:
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiters.append(waiter)
        await waiter

    def set_clock(self, by_ms: int) -> None:
        """Set the wall clock of the machine forward or back."""
        if by_ms < 0:
            self.clock_went_back = self.ledger.model.clock_went_back = True
            for process in self.processes:
                process.causes.add("clock")
        self.jumped_ms = self.loop.now_ms()
        self.loop.set_wall_clock(by_ms)

    @property
    def patience_ms(self) -> int:
        """The time limit within which something due must happen, when no fault is in its way."""
        settings = self.plan.settings
        return _PATIENCE_MS + 50 * int(settings["latency_ms"]) + 10 * int(settings["commit_interval_ms"])

    def calm_since_ms(self, process: Process) -> int | None:
        """Since when no fault has hindered this process, by the simulation's time; None: one does now."""
        if not process.healthy or process.causes or process.disturbances:
            return None
        return max(process.opened_ms, process.disturbed_ms, self.jumped_ms)

    def faults_now(self) -> list[Fault]:
        """The faults that are not over yet."""
        self.faults = [fault for fault in self.faults if fault.until_ms > self.loop.now_ms()]
        return self.faults

    def calm(self) -> None:
        """End all faults."""
        self.faults = []
        self.kill_next = {}
        self.second_next = self._countdown = None

    def notice(self) -> None:
        """Wake those that wait for a change of the processes."""
        self._changes += 1
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # ------------------------------------------------------------------ processes

    def start_process(self) -> Process:
        """Start a process, which begins to open the store, whatever others do."""
        process = Process(len(self.processes) + 1)
        if self.clock_went_back:
            process.causes.add("clock")
        self.processes.append(process)
        self.spawn(process, self._open, process)
        return process

    async def _open(self, process: Process) -> None:
        settings = self.plan.settings
        if process.number % 2 == 0:
            settings = settings | settings["every other"]
        is_projecting = settings["projection"] == "always" or (
            settings["projection"] == "every other" and process.number % 2 == 0
        )
        options = QueueOptions(
            max_attempts=settings["max_attempts"],
            max_crashes=settings["max_crashes"],
            lease_s=settings["lease_ms"] / 1000,
            backoff_base_s=settings["backoff_ms"] / 1000,
            keep_done_s=settings["keep_ms"] / 1000,
            keep_dead_s=settings["keep_ms"] / 1000,
            keep_cancelled_s=settings["keep_ms"] / 1000,
        )
        dead_letters = settings["dead letters"].items()
        queues = {queue: options.model_copy(update={"dead_letter_queue": to}) for queue, to in dead_letters}
        for queue, limits in settings["limits"].items():
            queues[queue] = queues.get(queue, options).model_copy(update=limits)
        wait_s = _OPEN_AGAIN_S
        while process.alive:
            process.store = SimStore(self, process)
            self.say(f"p{process.number} opens")
            try:
                core = Core(
                    process.store,
                    default=options,
                    queues=queues,
                    ready_window=settings["ready_window"],
                    commit_interval_ms=settings["commit_interval_ms"],
                    overlap=settings["overlap"],
                    clock=self.clock,
                    entropy=self.entropy,
                    projections=[SimProjection()] if is_projecting else [],
                    writer=f"p{process.number}",
                )
                async with asyncio.timeout(CALL_LIMIT_S):
                    await core.take_over(accept_rollback=False)
                    await begin_ticks(core, None)
            except (LedgerError, TimeoutError) as error:
                self.say(f"p{process.number} can't open: {type(error).__name__}")
                if not process.excuses(error):
                    raise Violation("open", f"p{process.number} can't open, for no reason: {error!r}") from error
                if isinstance(error, Fenced):
                    process.alive = False
                    self.notice()
                    return
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, _OPEN_AGAIN_MOST_S)
                continue
            process.queue = Queue(core)
            process.opened_ms = self.loop.now_ms()
            core.on_failure.append(lambda error: self._queue_failed(process, error))
            self.say(f"p{process.number} is open")
            self.notice()
            return

    def _queue_failed(self, process: Process, error: LedgerError) -> None:
        if not process.alive:
            return
        self.say(f"p{process.number} fails: {type(error).__name__}")
        if not process.excuses(error):
            self.break_(Violation("failed", f"the queue of p{process.number} failed, for no reason: {error}"))
        self.notice()

    async def supervise(self) -> None:
        """Supervise like a service manager: a process whose queue failed ends, and if none is left one starts."""
        while True:
            seen = self._changes
            for process in self.processes:
                if process.alive and not process.closing and process.queue is not None and process.queue.failure:
                    self.spawn(process, self.close_process, process)
            if not any(process.alive and not process.closing for process in self.processes):
                await asyncio.sleep(self.plan.settings["restart_after_ms"] / 1000)
                if not any(process.alive and not process.closing for process in self.processes):
                    self.start_process()
            if self._changes == seen:
                await self._next_change()

    async def close_process(self, process: Process) -> None:
        """Close its queue in good order; the process ends."""
        process.closing = True
        process.causes.add("closing")
        self.say(f"p{process.number} closes")
        self.notice()
        try:
            if process.queue is not None:
                async with asyncio.timeout(CALL_LIMIT_S):
                    await process.queue.close()
        except TimeoutError as error:
            raise Violation("hang", f"closing p{process.number} did not end") from error
        except LedgerError as error:
            self.say(f"p{process.number} closes with {type(error).__name__}")
        process.alive = False
        self.notice()

    async def meet(self, process: Process, call: str) -> None:
        """Run what was planned for this call of a store."""
        if process.killed:
            await asyncio.Event().wait()
        if call in self.kill_next:
            self.kill(process, lands=self.kill_next.pop(call))
            await asyncio.Event().wait()
        if self.second_next == call:
            self.second_next = None
            await self._overtaken()

    async def _overtaken(self) -> None:
        self.start_process()
        await asyncio.sleep(0)  # one turn, and it has opened the store

    def kill_after(self, turns: int, process: Process, *, lands: bool) -> None:
        """Kill the process some turns of the loop from now."""
        if self._countdown is None:
            self._countdown = (turns, process, lands)

    def _count_down(self) -> None:
        if self._countdown is not None:
            turns, process, lands = self._countdown
            self._countdown = (turns - 1, process, lands) if turns > 0 else None
            if turns <= 0:
                self.kill(process, lands=lands)

    def kill(self, process: Process, *, lands: bool) -> None:
        """Kill the process. `lands`: what was on its way to the disk arrives all the same."""
        if not process.alive:
            return
        self.say(f"p{process.number} is killed")
        if lands and process.store is not None:
            process.store.land()
        process.alive = False
        process.killed = True
        self._kills += 1
        if self._kills % _KILLS_UNTIL_SET_ASIDE == 0 and not any(one.alive for one in self.processes):
            # As if power had failed: what the next opener found in its way, the next writer has to record.
            self.disk.set_aside[f"set-aside/{self._kills}"] = [f"wal/{self._kills}.sst"]
        self._drop_tasks(process, KILL_TURNS)
        self.notice()

    def _drop_tasks(self, process: Process, turns: int) -> None:
        """End its tasks. They may try to tidy up, which comes to nothing: the store no longer answers them."""
        tasks = [*self.loop.owned.get(process.number, {})]
        for task in tasks:
            task.cancel()
        if tasks and turns > 0:
            self.loop.call_soon(self._drop_tasks, process, turns - 1, context=contextvars.Context())
