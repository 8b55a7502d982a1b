"""Every interleaving that Hypothesis can think of: a queue against a model, its ledger proven after every step.

LEDGERQ_EXAMPLES=5000 looks longer, and at other examples each time.
"""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec.structs import replace

from ledgerq.eventlog.errors import ClaimLost, InvalidState, JobNotFound, QueueClosed
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import NewJob, QueueOptions
from tests.model.queue_model import LEASE_S, MAX_ATTEMPTS, Model
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, abandon

T = TypeVar("T")
QUEUES = ("q", "r")
BACKOFF_S = 8.0

any_number = st.integers(0, 10_000)
queues = st.sampled_from(QUEUES)
priorities = st.integers(0, 3)
delays = st.sampled_from((0, 0, 0, 5, 40))
keys = st.sampled_from((None, None, "k", "l"))
untils = st.sampled_from(("finished", "claimed"))
leases = st.sampled_from((None, 1, 100))
new_jobs = st.lists(st.tuples(priorities, delays, keys, untils), min_size=1, max_size=12)


class QueueMachine(RuleBasedStateMachine):
    """The queue under test, its model, and the claims that wait."""

    @initialize(window=st.sampled_from((1, 3, 10_000)))
    def begin(self, window: int) -> None:
        """Open an empty store."""
        self.loop = asyncio.new_event_loop()
        options = QueueOptions(max_attempts=MAX_ATTEMPTS, lease_s=LEASE_S, backoff_base_s=BACKOFF_S)
        self.rig = Rig(ready_window=window, default=options)
        self.model = Model(self.rig.clock.now_ms())
        self.waiting: list[tuple[str, asyncio.Task[list[Claim]]]] = []
        self.run(self.rig.open())
        self.after()

    def run(self, work: Awaitable[T]) -> T:
        """Run to the end of `work`."""
        return self.loop.run_until_complete(work)

    # ------------------------------------------------------------------ adding and claiming

    @rule(queue=queues, priority=priorities, delay=delays, key=keys, until=untils)
    def enqueue(self, queue: str, priority: int, delay: float, key: str | None, until: Any) -> None:
        """One job."""
        holder = None if key is None else self.model.holder(queue, key)
        arguments = {"priority": priority, "delay": delay, "unique_key": key, "unique_until": until}
        added = self.run(self.rig.queue.enqueue(queue, b"%d" % priority, **arguments))
        assert added.created == (holder is None)
        if holder is None:
            self.model.added(added.job_id, queue, priority, delay, key, until)
        else:
            assert added.job_id == holder
        self.after()

    @rule(queue=queues, jobs=new_jobs)
    def enqueue_many(self, queue: str, jobs: list[tuple[int, float, str | None, Any]]) -> None:
        """Several in one commit, perhaps with the same key among them."""
        new = [NewJob(b"%d" % p, priority=p, delay=d, unique_key=k, unique_until=u) for p, d, k, u in jobs]
        for (priority, delay, key, until), added in zip(
            jobs, self.run(self.rig.queue.enqueue_many(queue, new)), strict=True
        ):
            holder = None if key is None else self.model.holder(queue, key)
            assert added.created == (holder is None)
            if holder is None:
                self.model.added(added.job_id, queue, priority, delay, key, until)
            else:
                assert added.job_id == holder
        self.after()

    @rule(queue=queues, limit=st.integers(1, 6), lease=leases, kept=st.booleans())
    def claim(self, queue: str, limit: int, lease: float | None, kept: bool) -> None:
        """Without a wait: the first jobs in order, at least one if there is one."""
        claims = self.run(self.rig.queue.claim(queue, limit=limit, lease=lease, kept=kept))
        wanted = [] if self.model.is_paused(queue) else self.model.pending(queue)[:limit]
        assert [claim.job_id for claim in claims] == wanted[: len(claims)]
        assert bool(claims) == bool(wanted)
        for claim in claims:
            self.model.claimed(claim, round((lease or LEASE_S) * 1000), kept=kept)
        self.after()

    @rule(queue=queues, limit=st.integers(1, 4))
    def wait(self, queue: str, limit: int) -> None:
        """A claim that waits until it is served."""
        task = self.loop.create_task(self.rig.queue.claim(queue, limit=limit, wait=None))
        self.waiting.append((queue, task))
        self.after()

    @precondition(lambda self: self.waiting)
    @rule(number=any_number)
    def stop_waiting(self, number: int) -> None:
        """A claim that waited is cancelled."""
        _, task = self.waiting.pop(number % len(self.waiting))
        task.cancel()
        self.after()
        assert task.cancelled()

    # ------------------------------------------------------------------ settling

    @precondition(lambda self: self.model.current())
    @rule(number=any_number)
    def ack(self, number: int) -> None:
        """A current claim's work is done."""
        job_id, claim = self.pick_claim(number)
        self.run(self.rig.queue.ack(claim))
        self.model.acked(job_id)
        self.after()

    @precondition(lambda self: self.model.current())
    @rule(number=any_number, delay=st.sampled_from((None, 0, 5)), dead=st.booleans())
    def nack(self, number: int, delay: float | None, dead: bool) -> None:
        """A current claim's work failed."""
        job_id, claim = self.pick_claim(number)
        self.run(self.rig.queue.nack(claim, "e", delay=delay, dead=dead))
        delay_ms = 0 if delay is None else round(delay * 1000)
        if delay is None:
            job = self.run(self.rig.queue.get(job_id))
            if job.state == "scheduled":
                delay_ms = job.due_ms - self.model.now_ms
                assert 1 <= delay_ms <= BACKOFF_S * 1000 * 2 ** (job.attempt - 1)
        self.model.gave_up(job_id, dead=dead, delay_ms=delay_ms)
        self.after()

    @precondition(lambda self: self.model.current())
    @rule(number=any_number)
    def release(self, number: int) -> None:
        """A current claim is given back."""
        job_id, claim = self.pick_claim(number)
        self.run(self.rig.queue.release(claim))
        self.model.gave_up(job_id, released=True)
        self.after()

    @precondition(lambda self: self.model.current())
    @rule(number=any_number, lease=st.sampled_from((1, 20, 500)))
    def extend(self, number: int, lease: int) -> None:
        """A current claim gets another end, sooner or later."""
        job_id, claim = self.pick_claim(number)
        extended = self.run(self.rig.queue.extend(claim, lease))
        ends_ms = self.model.lease_ends_ms[job_id] = self.model.now_ms + lease * 1000
        assert extended.lease_expires_ms == ends_ms
        self.after()

    @precondition(lambda self: self.model.lost_claims)
    @rule(number=any_number, how=st.sampled_from(("ack", "nack", "release", "extend")))
    def settle_a_lost_claim(self, number: int, how: str) -> None:
        """It is refused, unless it is an ack that is repeated, and changes nothing."""
        claim = self.model.lost_claims[number % len(self.model.lost_claims)]
        arguments = {"nack": ("e",), "extend": (5,)}.get(how, ())
        offset = self.rig.queue.log.next_offset
        try:
            self.run(getattr(self.rig.queue, how)(claim, *arguments))
        except ClaimLost:
            assert self.rig.queue.log.next_offset == offset
        else:
            assert how == "ack", "a lost claim was settled"
            assert self.model.has_acked(claim), "a lost claim acked"
            assert self.rig.queue.log.next_offset == offset

    def pick_claim(self, number: int) -> tuple[str, Claim]:
        """One of the current claims."""
        claims = self.model.current()
        return claims[number % len(claims)]

    # ------------------------------------------------------------------ operating

    @precondition(lambda self: self.model.jobs)
    @rule(number=any_number)
    def cancel(self, number: int) -> None:
        """A job in any state."""
        job_id = sorted(self.model.jobs)[number % len(self.model.jobs)]
        job = self.model.jobs[job_id]
        try:
            answer = self.run(self.rig.queue.cancel(job_id, **WHO))
        except InvalidState:
            assert job.state in ("done", "dead", "cancelled")
        else:
            self.model.cancelled(job_id)
            assert answer.state == job.state
        self.after()

    @precondition(lambda self: self.model.jobs)
    @rule(number=any_number)
    def requeue(self, number: int) -> None:
        """A job in any state, dead ones rather than others."""
        dead = [job_id for job_id, job in self.model.jobs.items() if job.state == "dead"]
        ids = sorted(dead or self.model.jobs)
        job_id = ids[number % len(ids)]
        job = self.model.jobs[job_id]
        key = None if job.until != "finished" or job.unique_key is None else job.unique_key.decode()
        taken = key is not None and self.model.holder(job.queue, key) is not None
        try:
            self.run(self.rig.queue.requeue(job_id, **WHO))
        except InvalidState:
            assert job.state != "dead" or taken
        else:
            assert job.state == "dead"
            assert not taken
            self.model.requeued(job_id)
        self.after()

    @rule(queue=queues)
    def pause(self, queue: str) -> None:
        """Nothing is handed out."""
        self.run(self.rig.queue.pause(queue, **WHO))
        self.model.paused(queue, now=True)
        self.after()

    @rule(queue=queues)
    def resume(self, queue: str) -> None:
        """Jobs are handed out again."""
        self.run(self.rig.queue.resume(queue, **WHO))
        self.model.paused(queue, now=False)
        self.after()

    # ------------------------------------------------------------------ time and restarts

    @rule(seconds=st.sampled_from((0.999, 1, 5, 30, 24 * 3600, 8 * 24 * 3600)))
    def time_passes(self, seconds: float) -> None:
        """Leases end, jobs fall due, finished jobs are swept."""
        self.rig.clock.advance(seconds=seconds)
        self.run(settle())
        self.model.passed(self.rig.clock.now_ms())
        self.after()

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        """The queue is closed, or its process vanishes; then it is opened again."""
        if clean:
            self.run(self.rig.queue.close())
            self.run(settle())
            assert all(isinstance(task.exception(), QueueClosed) for _, task in self.waiting)
        else:
            self.vanish()
        self.waiting = []
        self.run(self.rig.open())
        self.model.restarted(clean=clean)
        self.after()

    @rule(queue=queues, lands=st.booleans(), number=any_number)
    def vanish_in_a_commit(self, queue: str, lands: bool, number: int) -> None:
        """The process vanishes while a commit is under way, which is there afterwards as a whole, or not at all."""
        for _, task in self.waiting:
            task.cancel()
        self.run(settle())
        self.waiting = []
        self.rig.faults.hold("sync:before")
        claims = self.model.current()
        acked = claims[number % len(claims)] if claims else None
        enqueuing = self.loop.create_task(self.rig.queue.enqueue(queue, b"1", priority=1))
        calls: list[asyncio.Task[Any]] = [enqueuing]
        calls += [self.loop.create_task(self.rig.queue.ack(acked[1]))] if acked else []
        self.run(settle())
        assert not any(task.done() for task in calls)
        if lands:
            self.rig.store.flush()
        self.vanish()
        for task in calls:
            task.cancel()
        self.run(settle())
        self.rig.faults.let_go("sync:before")
        self.run(self.rig.open())
        if lands:
            page = self.run(self.rig.queue.jobs(queue, limit=10_000))
            (new,) = [job.job_id for job in page.jobs if job.job_id not in self.model.jobs]
            self.model.added(new, queue, 1, 0, None, "finished")
            if acked is not None:
                self.model.acked(acked[0])
        self.model.restarted()
        self.after()

    def vanish(self) -> None:
        """Nothing of the queue runs any more."""
        self.run(abandon(self.rig.queue))
        for _, task in self.waiting:
            task.cancel()
        self.run(settle())

    # ------------------------------------------------------------------ what must hold after each step

    def after(self) -> None:
        """Serve the model's waiting claims, then compare."""
        self.run(settle())
        for queue, task in list(self.waiting):
            if task.done():
                self.waiting.remove((queue, task))
                claims = task.result()
                assert claims
                for claim in claims:
                    self.model.claimed(claim, LEASE_S * 1000)
        for queue, _ in self.waiting:
            assert self.model.is_paused(queue) or not self.model.pending(queue), "a waiting claim was not woken"
        self.run(self.compare())

    async def compare(self) -> None:
        """The ledger is clean, and the queue's answers are those of the model."""
        fold = await self.rig.check()
        for queue in QUEUES:
            stats = await self.rig.queue.stats(queue)
            states = [job.state for job in self.model.jobs.values() if job.queue == queue]
            for state in ("scheduled", "pending", "claimed", "done", "dead", "cancelled"):
                assert getattr(stats, state) == states.count(state), (queue, state)
            assert stats.paused == self.model.is_paused(queue)
        assert {job.job_id for job in fold.jobs.values()} == self.model.jobs.keys()
        for job in fold.jobs.values():
            model = self.model.jobs[job.job_id]
            assert (job.state, job.attempt, job.unique_held) == (model.state, model.attempt, model.key_held)
            assert job.due_ms == (model.due_ms if model.state == "scheduled" else 0)
            assert job.sweep_at_ms == (model.sweep_at_ms if model.state in ("done", "dead", "cancelled") else 0)
            assert (job.cancel_request is not None) == (model.state == "claimed" and model.stop_asked)
        for job_id in [*self.model.jobs][-2:]:
            found, folded = await self.rig.queue.get(job_id), next(j for j in fold.jobs.values() if j.job_id == job_id)
            # What the fold has as a place beside the log is read as it was given.
            assert replace(found, last_error=folded.last_error, cancel_request=folded.cancel_request) == folded
            assert found.last_error == self.model.error(job_id)
            assert found.cancel_request in (None, tuple(WHO.values()))
        for job_id in self.model.swept[-1:]:
            try:
                await self.rig.queue.get(job_id)
            except JobNotFound:
                continue
            raise AssertionError("a swept job is still there")

    def teardown(self) -> None:
        """Close; no task may be left."""
        if not hasattr(self, "rig"):
            return
        try:
            self.run(self.rig.queue.close())
            self.run(settle())
            assert all(isinstance(task.exception(), QueueClosed) for _, task in self.waiting)
            assert not asyncio.all_tasks(self.loop)
            self.run(self.rig.check())
        finally:
            self.loop.close()


class ThoroughQueueMachine(QueueMachine):
    """The same with more examples, for the proof."""


_examples = os.environ.get("LEDGERQ_EXAMPLES")
_settings = settings(
    max_examples=7,
    stateful_step_count=50,
    derandomize=_examples is None,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
QueueMachine.TestCase.settings = _settings
ThoroughQueueMachine.TestCase.settings = settings(_settings, max_examples=int(_examples or 100))
TestQueueMachine = QueueMachine.TestCase
TestThoroughQueueMachine = pytest.mark.proof(ThoroughQueueMachine.TestCase)
