"""The workload of a simulated world: producers, claimers, workers, operators, observers, and faults.

Each move of a plan is a method here, or in what this is made of.

Each answer of a call is given to the oracle at once. A call that fails for a reason (its store, its process, its clock)
has an unknown outcome and is not recorded; one that fails without a reason breaks the run.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.errors import DuplicateJobId, InvalidState, JobNotFound, UniqueKeyHeld
from ledgerq.eventlog.events import QueuePaused, QueueResumed, State
from ledgerq.projections.selection import Filter
from ledgerq.worker.options import NewJob
from tests.model.job import Violation
from tests.simulation.claimers import Claimers, Gone
from tests.simulation.limiters import Limiters
from tests.simulation.observers import Observers
from tests.simulation.oracle import Asked
from tests.simulation.plan import Move
from tests.simulation.process import Process
from tests.simulation.schedulers import Schedulers
from tests.simulation.store_faults import Fault
from tests.simulation.workers import Workers

__all__ = ["Workload"]

_OWN_ID_BYTE: Final = 0xEE


class Workload(Claimers, Workers, Observers, Schedulers, Limiters):
    """The workload of a simulated world."""

    async def play(self, move: Move) -> None:
        """Make one move and wait for its end."""
        act: Callable[..., Awaitable[None]] = getattr(self, f"_{move.what}")
        world = self._world
        if move.what in ("fault", "kill_at", "second", "jump", "audit"):
            await act(**move.args)
            return
        process = await world.process()
        if move.what in ("kill", "restart"):
            await act(process, **move.args)
            return
        task = world.spawn(process, self._acting, act, process, move.args)
        if move.cancel_after_ms is not None:
            await asyncio.wait({task}, timeout=move.cancel_after_ms / 1000)
            if not task.done():
                world.say(f"p{process.number} {move.what} is cancelled by its caller")
                task.cancel()
        await asyncio.wait({task, *self.holders})

    async def _acting(self, act: Callable[..., Awaitable[None]], process: Process, args: dict[str, Any]) -> None:
        try:
            await act(process, **args)
        except Gone:
            return

    # ------------------------------------------------------------------ producers

    def _arguments(self, process: Process, queue: str, job: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """Draw the arguments of an enqueue call and give them to the oracle."""
        options, now_ms, token = self._queue(process).options(queue), self._world.clock.now_ms(), job["token"]
        payload, delay_ms = b"%d " % token + b"x" * job["size"], job.get("delay_ms", job.get("debounce_ms", 0))
        headers = {"token": str(token)} if token % 3 == 0 else None
        named: dict[str, Any] = {"headers": headers}
        if "priority" in job:
            named["priority"] = job["priority"]
        if "max_attempts" in job:
            named["max_attempts"] = job["max_attempts"]
        if "delay_ms" in job:
            named["delay"] = job["delay_ms"] / 1000
        for name in ("expires", "deadline"):
            if f"{name}_ms" in job:
                named[name] = job[f"{name}_ms"] / 1000
        if "unique" in job:
            named |= {"unique_key": b"key-%d" % job["unique"], "unique_until": job["until"]}
        if "on_conflict" in job:
            named["on_conflict"] = job["on_conflict"]
        for name, given in (("unique_for", "period_ms"), ("debounce", "debounce_ms"), ("debounce_max", "most_ms")):
            if job.get(given):
                named[name] = job[given] / 1000
        if "own_id" in job:
            named["job_id"] = job_id_text(bytes([0] * 14 + [_OWN_ID_BYTE, job["own_id"]]))
        self._oracle.asked[token] = Asked(
            queue,
            payload,
            headers,
            named.get("priority", options.priority),
            named.get("max_attempts", options.max_attempts),
            now_ms + delay_ms if delay_ms else 0,
            named.get("unique_key"),
            named.get("unique_until", "finished"),
            job_id_bytes(named["job_id"]) if "job_id" in named else None,
            now_ms + job["period_ms"] if "period_ms" in job else 0,
            "replace" if "debounce_ms" in job else job.get("on_conflict", "keep"),
            job.get("most_ms", 0),
        )
        return payload, named

    async def _enqueue(self, process: Process, queue: str, **job: Any) -> None:
        payload, named = self._arguments(process, queue, job)
        what, free = f"enqueue {queue} {job['token']}", self._oracle.free_keys()
        try:
            answer = await self.call(process, what, self._queue(process).enqueue(queue, payload, **named))
        except (DuplicateJobId, UniqueKeyHeld) as error:
            self._refused(error, [job])
            return
        self._world.say(f"p{process.number} {what} -> {answer.id.hex()[-6:]} {answer.created} {answer.replaced}")
        self._oracle.answered(job["token"], queue, named.get("unique_key"), answer, free)

    async def _enqueue_many(self, process: Process, queue: str, jobs: Sequence[dict[str, Any]]) -> None:
        made = [self._arguments(process, queue, job) for job in jobs]
        new = [NewJob(payload, **named) for payload, named in made]
        what, free = f"enqueue_many {queue} {[job['token'] for job in jobs]}", self._oracle.free_keys()
        try:
            answers = await self.call(process, what, self._queue(process).enqueue_many(queue, new))
        except (DuplicateJobId, UniqueKeyHeld) as error:
            self._refused(error, jobs)
            return
        self._world.say(f"p{process.number} {what} -> {[(one.created, one.replaced) for one in answers]}")
        for job, (_, named), answer in zip(jobs, made, answers, strict=True):
            self._oracle.answered(job["token"], queue, named.get("unique_key"), answer, free)

    def _refused(self, error: DuplicateJobId | UniqueKeyHeld, jobs: Sequence[dict[str, Any]]) -> None:
        """All or none: none of these jobs may ever be in the log."""
        is_asked_for = [
            "own_id" in job if isinstance(error, DuplicateJobId) else job.get("on_conflict") == "raise" for job in jobs
        ]
        if not any(is_asked_for):
            raise Violation("error", f"{error!r} for jobs that can't have it")
        for job in jobs:
            self._oracle.refused.add(job["token"])
            if job["token"] in self._oracle.durable:
                raise Violation("repeated", f"the job {job['token']} was refused, and added")

    # ------------------------------------------------------------------ operators

    async def _cancel(self, process: Process, which: int) -> None:
        queue = self._queue(process)
        await self._on_job(process, "cancel", which, lambda job, why: queue.cancel(job, actor="someone", reason=why))

    async def _requeue(self, process: Process, which: int) -> None:
        queue = self._queue(process)
        await self._on_job(process, "requeue", which, lambda job, why: queue.requeue(job, actor="someone", reason=why))

    async def _on_job(
        self, process: Process, what: str, which: int, call: Callable[[str, str], Awaitable[Any]]
    ) -> None:
        id = self._some_job(which)
        if id is None:
            return
        model = self._oracle.model.jobs[id]
        before = (model.ends, model.requeues, model.stop_asked)
        try:
            why = self.give(id, f"a whim at {len(self._world.ledger.records)}")
            job = await self.call(process, what, call(job_id_text(id), why))
        except JobNotFound:
            if model.state != "gone":
                raise Violation("lost", f"{what}: job {id.hex()} is {model.state} and was not found") from None
            return
        except InvalidState as refused:
            self._world.say(f"p{process.number} {what}: {refused}")
            if what == "cancel" and not model.ends:
                raise Violation("state", f"{what} of a job that never ended was refused: {refused}") from refused
            return
        self._world.say(f"p{process.number} {what} {id.hex()[-6:]} -> {job.state}")
        if self._oracle.model.jobs[id] is not model:
            return  # its id was used again
        after = (model.ends, model.requeues, model.stop_asked)
        if what == "cancel" and after == before and not model.stop_asked:
            raise Violation("too early", f"{what} of {id.hex()} returned before its event was durable")
        if what == "requeue" and after == before:
            raise Violation("too early", f"{what} of {id.hex()} returned before its event was durable")

    async def _bulk(
        self, process: Process, what: str, queue: str, state: State | None, error: str | None, to: str | None = None
    ) -> None:
        bulk, model = self._queue(process).bulk, self._oracle.model
        if what != "resume":
            why = f"a whim at {len(self._world.ledger.records)}"
            self.give(queue, why if error is None else f"{why} (jobs whose error has: {error})")
            known: dict[str, Any] = {"actor": "someone", "reason": why}
            filter = Filter(queue=queue, state=state, error=error)
            change: Callable[..., Any] = getattr(bulk, what) if to is None else partial(bulk.move, to=to)
            seen = await self.call(process, f"bulk {what} {queue}", change(filter, **known))
            if len(seen.examples) != min(seen.count, 20) or seen.offset is not None:
                raise Violation("bulk", f"a dry run says {seen}")
            try:
                asked = change(filter, **known, dry_run=False)
                result = await self.call(process, f"bulk {what} {queue} {state} {error}", asked)
                self._world.say(f"p{process.number} bulk {what} {queue} -> {result.count}, {result.skipped} skipped")
                return
            except InvalidState as refused:
                self._world.say(f"p{process.number} bulk {what} {queue}: {refused}")
        open_bulks = {name: counts.bulk for name, counts in model.queues.items() if counts.bulk is not None}
        results = await self.call(process, "bulk resume", bulk.resume())
        self._world.say(f"p{process.number} bulk resume -> {[(one.offset, one.count) for one in results]}")
        still = [one for name, one in open_bulks.items() if model.counts(name).bulk is one]
        if still:
            raise Violation("bulk", f"resume returned, and {still} is open")

    async def _pause(self, process: Process, queue: str, for_ms: int) -> None:
        asked = len(self._world.ledger.records)
        why = self.give(queue, f"a whim at {asked}")
        await self.call(process, "pause", self._queue(process).pause(queue, actor="someone", reason=why))
        self._is_paused(queue, True, asked)
        self._world.say(f"p{process.number} pause {queue}")
        await asyncio.sleep(for_ms / 1000)
        asked = len(self._world.ledger.records)
        why = self.give(queue, f"enough at {asked}")
        await self.call(process, "resume", self._queue(process).resume(queue, actor="someone", reason=why))
        self._is_paused(queue, False, asked)

    def _is_paused(self, queue: str, wanted: bool, asked: int) -> None:
        """Check that a queue's pause is durable, unless it was changed since the offset `asked`."""
        since = self._world.ledger.records[asked:]
        changed = any(isinstance(one.event, QueuePaused | QueueResumed) and one.event.queue == queue for one in since)
        if not changed and self._oracle.model.counts(queue).paused != wanted:
            raise Violation("too early", f"{queue} was {'paused' if wanted else 'resumed'}, and that is not durable")

    # ------------------------------------------------------------------ faults

    async def _fault(self, kind: str, for_ms: int, chance: float, seed: int) -> None:
        world = self._world
        world.say(f"fault: {kind} for {for_ms} ms")
        world.faults.append(Fault(kind, world.loop.now_ms() + for_ms, chance, seed))

    async def _jump(self, by_ms: int, back_after_ms: int | None) -> None:
        world = self._world
        world.say(f"the clock is set by {by_ms} ms")
        world.set_clock(by_ms)
        if back_after_ms is not None:
            await asyncio.sleep(back_after_ms / 1000)
            world.say("the clock is set right")
            world.set_clock(-by_ms)

    async def _kill(self, process: Process, turns: int, lands: bool) -> None:
        self._world.kill_after(turns, process, lands=lands)

    async def _kill_at(self, call: str, lands: bool) -> None:
        self._world.kill_next.setdefault(call, lands)

    async def _restart(self, process: Process) -> None:
        await asyncio.wait({self._world.spawn(process, self._world.close_process, process)})

    async def _second(self, call: str | None) -> None:
        if call is None:
            self._world.start_process()
        else:
            self._world.second_next = call
