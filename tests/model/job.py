"""The reference model of a job's life: a second, plain implementation of what a log may hold, apart from the code.

It reads the durable events one by one and is independent of how ledgerq decides or keeps its state: nothing of
ledgerq.projections or ledgerq.worker is imported. An event that can't be is a `Violation`. The
simulation, the long run, the processes that are killed and the state machine test are all held to it. What is due by a
clock is judged where that clock stands still between two events, in the simulation: elsewhere time passes from a
decision to its commit.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from ledgerq.eventlog.events import (
    Acked,
    BulkBegan,
    BulkEnded,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Event,
    Expired,
    LeaseExpired,
    Moved,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Replaced,
    Requeued,
    StepDone,
    Swept,
    UniqueReleased,
    WriterClosed,
    WriterOpened,
)
from tests.model.bulks import begin_bulk, change_in_bulk, end_bulk
from tests.model.limits import ModelLimits
from tests.model.records import UNFINISHED, ModelJob, Moment, QueueCounts, Violation
from tests.model.schedules import ModelSchedules

_MAX_SUSPECTS: Final = 12
_MAX_SNOOZES: Final = 1000
_MAX_STEPS: Final = 200
__all__ = ["UNFINISHED", "Model", "ModelJob", "Violation"]

_COUNTED: Final[dict[type[Any], str]] = {
    Enqueued: "enqueued",
    Promoted: "promoted",
    Claimed: "claimed",
    Acked: "acked",
    Nacked: "nacked",
    LeaseExpired: "lease_expired",
    CancelRequested: "cancel_requested",
    Cancelled: "cancelled",
    Requeued: "requeued",
    Swept: "swept",
    Deleted: "deleted",
    DeadLettered: "dead_lettered",
    Expired: "expired",
    Moved: "moved_out",
    StepDone: "step_done",
    Replaced: "replaced",
    UniqueReleased: "unique_released",
}


class Model:
    """All jobs, swept ones too until they are forgotten, and all their claims.

    `options`: how long finished jobs are kept, and the first backoff, both in ms; without them no time is judged.
    """

    def __init__(
        self,
        now_ms: Callable[[], int] = lambda: 0,
        wall_ms: Callable[[], int] = lambda: 0,
        options: tuple[int, int] | None = None,
        max_crashes: int | None = 3,
        dead_letters: Mapping[str, str] | None = None,
    ) -> None:
        self._now_ms = now_ms
        self._wall_ms = wall_ms
        self._is_timed = options is not None
        self._keep_ms, self._backoff_ms = options or (0, 0)
        self._max_crashes = max_crashes
        self._dead_letters = dead_letters or {}
        self._to_move: ModelJob | None = None  # it died, and its queue has another one for dead letters
        self._to_take: tuple[str, bytes | None] | None = None  # a unique key that was given up
        self.jobs: dict[bytes, ModelJob] = {}
        self.schedules = ModelSchedules(self.jobs, now_ms)
        self.limits = ModelLimits(lambda one: self.jobs[one].queue)
        self.queues: dict[str, QueueCounts] = {}
        self.pending: dict[str, dict[bytes, tuple[int, int]]] = {}
        self.pending_since_ms: dict[bytes, int] = {}  # by the clock of the simulation, which is never set
        self.claims: dict[tuple[bytes, int], str] = {}  # how each claim ended; "" while it is current
        self.leases: dict[tuple[bytes, int], int] = {}  # ends that were promised by a renewal
        self.keys: dict[tuple[str, bytes], bytes] = {}
        self.opened_at = -1
        self.suspects = 0  # claims that the last writer found, when the one before had not closed
        self._is_closed = True
        self.clock_went_back = False  # then leases, which go by the clock, may end early by the log's time
        self.time_ms = 0

    def overlooked(self, queue: str, since_ms: int) -> list[bytes]:
        """Jobs of a queue, neither paused nor limited, that could be claimed since then, and were not."""
        if self.counts(queue).paused or self.limits.concern(queue):
            return []
        return [id for id in self.pending.get(queue, {}) if self.pending_since_ms[id] <= since_ms]

    def forget(self, id: bytes) -> None:
        """Drop what is known of a job, if it was swept."""
        if id in self.jobs and self.jobs[id].state == "gone":
            for moment in self.jobs.pop(id).life:
                self.claims.pop((id, moment.offset), None)
            self.pending_since_ms.pop(id, None)

    def counts(self, queue: str) -> QueueCounts:
        """The counters of a queue."""
        return self.queues.setdefault(queue, QueueCounts())

    def apply(self, offset: int, time_ms: int, event: Event, bulk: int = -1) -> None:
        """Apply one durable event; `bulk` is the offset of the event that has its reason. Raises `Violation`."""
        self.time_ms = time_ms
        self.schedules.apply(offset, time_ms, event)
        if self._to_move is not None and not (isinstance(event, Moved) and event.id == self._to_move.id):
            raise Violation("dead", f"{self._to_move.id.hex()} died before {offset} and was not moved")
        if self._to_take is not None and not isinstance(event, UniqueReleased):
            if not isinstance(event, Enqueued) or (event.queue, event.unique_key) != self._to_take:
                raise Violation("unique", f"the key {self._to_take} was given up before {offset}, and nothing took it")
            self._to_take = None
        if isinstance(event, QueuePaused | QueueResumed | Enqueued | BulkBegan | BulkEnded | Moved):
            counts = self.counts(event.queue)
            counts.first_offset = offset if counts.first_offset < 0 else counts.first_offset
        if isinstance(event, QueuePaused | QueueResumed):
            counts.paused = isinstance(event, QueuePaused)
        elif isinstance(event, BulkBegan):
            begin_bulk(counts, offset, event)
        elif isinstance(event, BulkEnded):
            end_bulk(counts, [job for job in self.jobs.values() if job.queue == event.queue], offset, event)
        elif isinstance(event, WriterOpened):
            self.opened_at = offset
            held = [self.jobs[id] for (id, _), how in self.claims.items() if not how]
            self.suspects = 0 if self._is_closed else sum(not one.kept for one in held)
            # Those that are kept have a full lease, from some time after this on.
            self.leases |= {(one.id, one.claim_offset): self.time_ms + one.lease_ms for one in held if one.kept}
        elif isinstance(event, Enqueued):
            self._enqueued(offset, event)
        elif type(event) in _COUNTED:
            job = self.jobs.get(event.id)  # type: ignore[union-attr]
            if job is None:
                raise Violation("log", f"{event} at {offset} is about a job that was never enqueued")
            change_in_bulk(self.counts(job.queue), job, offset, event, bulk)
            if isinstance(event, Moved):
                self._move(job, offset, event)
            else:
                self._change(job, offset, event)
        self.limits.apply(offset, time_ms, event)
        self._is_closed = isinstance(event, WriterClosed | Rebuilt)

    def _enqueued(self, offset: int, event: Enqueued) -> None:
        old = self.jobs.get(event.id)
        if old is not None and old.state != "gone":
            raise Violation("log", f"{event.id.hex()} is enqueued at {offset} while it is {old.state}")
        state = "scheduled" if event.due_ms else "pending"
        job = ModelJob(
            event.id,
            event.queue,
            event.priority,
            offset,
            event.max_attempts,
            event.unique_key,
            event.unique_until,
            state,
            self.time_ms,
            due_ms=event.due_ms,
            since_ms=event.due_ms or self.time_ms,
            starts_before_ms=_starts_before_ms(event.terms),
            hold_ms=_hold_ms(event.terms),
            changed_at_ms=self._now_ms(),
        )
        job.life.append(Moment(offset, self.time_ms, event, state, 0))
        self.jobs[job.id] = job
        counts = self.counts(job.queue)
        counts.count("enqueued")
        counts.states[state] = counts.states.get(state, 0) + 1
        if state == "pending":
            self.pending.setdefault(job.queue, {})[job.id] = (job.priority, offset)
            self.pending_since_ms[job.id] = self._now_ms()
        self._take_key(job, offset)

    def _take_key(self, job: ModelJob, offset: int) -> None:
        if job.unique_key is None:
            return
        place = (job.queue, job.unique_key)
        holder = self.keys.get(place)
        if holder is not None:
            raise Violation("unique", f"{job.id.hex()} takes the key {place} at {offset}, which {holder.hex()} holds")
        self.keys[place] = job.id
        job.key_held = True

    def _drop_key(self, job: ModelJob) -> None:
        """Let it hold its key no more, once the period is over."""
        if self.time_ms >= job.hold_ms:
            self._lose_key(job)

    def _lose_key(self, job: ModelJob) -> None:
        if job.key_held and job.unique_key is not None:
            del self.keys[job.queue, job.unique_key]
            job.key_held = False

    def _change(self, job: ModelJob, offset: int, event: Any) -> None:
        counts, before = self.counts(job.queue), job.state
        counts.count(_COUNTED[type(event)])
        after = _HOW[type(event)](self, job, offset, event)
        job.life.append(Moment(offset, self.time_ms, event, after, job.attempt))
        if after == before:
            return
        job.state = after
        job.changed_at_ms = self._now_ms()
        if after == "pending" and before != "scheduled":
            job.since_ms = self.time_ms
        counts.move(before, after)
        waiting = self.pending.setdefault(job.queue, {})
        waiting.pop(job.id, None)
        if after == "pending":
            waiting[job.id] = (job.priority, job.offset)
            self.pending_since_ms[job.id] = self._now_ms()
        elif after in ("done", "dead", "cancelled"):
            self._drop_key(job)
            job.ends += 1
            if after == "dead":
                counts.count("dead")
                if self._dead_letters.get(job.queue, job.queue) != job.queue:
                    self._to_move = job

    def _move(self, job: ModelJob, offset: int, event: Moved) -> None:
        self._must_be(job, offset, event, "dead", "pending", "scheduled")
        by_rule, self._to_move = self._to_move is not None, None
        if by_rule and (event.queue, event.actor) != (self._dead_letters[job.queue], "ledgerq"):
            raise Violation("dead", f"{event} at {offset} is not where the dead letters of {job.queue!r} go")
        if (not by_rule and event.actor == "ledgerq") or event.queue == job.queue:
            raise Violation("state", f"{event} at {offset}, and nothing asked for it")
        after, was_dead = "scheduled" if job.state == "scheduled" else "pending", job.state == "dead"
        left, entered = self.counts(job.queue), self.counts(event.queue)
        left.count("moved_out")
        entered.count("moved_in")
        left.states[job.state] -= 1
        entered.states[after] = entered.states.get(after, 0) + 1
        self.pending.setdefault(job.queue, {}).pop(job.id, None)
        self._lose_key(job)
        job.queue, job.state, job.changed_at_ms = event.queue, after, self._now_ms()
        job.attempt = job.crashes = job.snoozes = 0
        job.stop_asked = False
        job.moves += was_dead
        if was_dead:
            job.starts_before_ms = 0
        job.since_ms = job.due_ms if after == "scheduled" else self.time_ms
        if after == "pending":
            self.pending.setdefault(job.queue, {})[job.id] = (job.priority, job.offset)
            self.pending_since_ms[job.id] = self._now_ms()
        job.life.append(Moment(offset, self.time_ms, event, after, 0))

    def _must_be(self, job: ModelJob, offset: int, event: Any, *states: str) -> None:
        if job.state not in states:
            what = type(event).__name__
            raise Violation("state", f"{what} at {offset}: the job {job.id.hex()} is {job.state}, not {states}")

    def _promoted(self, job: ModelJob, offset: int, event: Promoted) -> str:
        self._must_be(job, offset, event, "scheduled")
        if self._is_timed and self.time_ms < job.due_ms:
            raise Violation("early", f"promoted at {offset}, {job.due_ms - self.time_ms} ms before it was due")
        return "pending"

    def _claimed(self, job: ModelJob, offset: int, event: Claimed) -> str:
        self._must_be(job, offset, event, "pending")
        if job.stop_asked:
            raise Violation("stop", f"{job.id.hex()} was claimed at {offset}, and somebody had asked that it stops")
        if 0 < job.starts_before_ms <= self.time_ms:
            raise Violation("late", f"{job.id.hex()} was claimed at {offset}, and is to start before {self.time_ms}")
        if self.counts(job.queue).paused:
            raise Violation("paused", f"{job.id.hex()} was claimed at {offset} from a paused queue")
        first = min(self.pending[job.queue].values())
        if first != (job.priority, job.offset):
            raise Violation("order", f"{(job.priority, job.offset)} was claimed at {offset} before {first}")
        job.attempt += 1
        self.counts(job.queue).measures.claimed(self.time_ms - job.since_ms)
        if event.attempt != job.attempt:
            raise Violation("attempts", f"the claim at {offset} is attempt {job.attempt}, recorded as {event.attempt}")
        if job.attempt > job.max_attempts:
            raise Violation("attempts", f"attempt {job.attempt} of {job.max_attempts} at {offset}")
        if job.until == "claimed":
            self._drop_key(job)
        job.claim_offset, job.claim_ms, job.lease_ms = offset, self.time_ms, event.lease_ms
        job.stop_asked, job.kept = False, event.kept
        self.claims[job.id, offset] = ""
        return "claimed"

    def _keep(self, job: ModelJob, offset: int, sweep_at_ms: int) -> None:
        """Finished jobs are kept for the time in the options, from the moment of the decision, and for their keys."""
        hold_ms = job.hold_ms if job.key_held else 0
        least_ms, most_ms = (max(at_ms + self._keep_ms, hold_ms) for at_ms in (self.time_ms, self._wall_ms()))
        if self._is_timed and not self.clock_went_back and not least_ms <= sweep_at_ms <= most_ms:
            raise Violation("kept", f"finished at {offset}, {self.time_ms}, and to be swept at {sweep_at_ms}")

    def _acked(self, job: ModelJob, offset: int, event: Acked) -> str:
        self._must_be(job, offset, event, "claimed")
        self._keep(job, offset, event.sweep_at_ms)
        self.claims[job.id, job.claim_offset] = "acked"
        measures = self.counts(job.queue).measures
        measures.acked(self.time_ms - job.claim_ms, self.time_ms - job.enqueued_ms, job.attempt)
        job.sweep_at_ms = event.sweep_at_ms
        return "done"

    def _nacked(self, job: ModelJob, offset: int, event: Nacked) -> str:
        self._must_be(job, offset, event, "claimed")
        self.claims[job.id, job.claim_offset] = "released" if event.released else "nacked"
        if event.released:
            job.attempt -= 1
            self.counts(job.queue).count("released")
        else:
            self.counts(job.queue).measures.nacked(self.time_ms - job.claim_ms)
            if job.attempt >= job.max_attempts and event.to != "dead" and not job.stop_asked:
                raise Violation("attempts", f"nacked at {offset} with no attempt left, and {event.to}")
            self._check_retry(job, offset, event)
        if not event.released:
            job.crashes = job.snoozes = 0
        elif event.to == "dead" and (job.snoozes + 1 < _MAX_SNOOZES or job.stop_asked):
            raise Violation("dead", f"{job.id.hex()} is dead at {offset}, put off {job.snoozes} times")
        elif event.to == "scheduled":
            job.crashes, job.snoozes = 0, job.snoozes + 1
        job.due_ms, job.sweep_at_ms, job.since_ms = event.due_ms, event.sweep_at_ms, event.due_ms
        return event.to

    def _check_retry(self, job: ModelJob, offset: int, event: Nacked) -> None:
        if not self._is_timed:
            return
        if event.to == "dead":
            self._keep(job, offset, event.sweep_at_ms)
            if job.stop_asked or (job.attempt < job.max_attempts and "hopeless" not in str(event.error)):
                raise Violation("dead", f"{job.id.hex()} is dead at {offset}, with attempts left, or asked to stop")
        elif str(event.error).startswith("it failed") and not job.stop_asked:
            most_ms = min(self._backoff_ms * 2 ** (job.attempt - 1), 300_000)
            if (event.to == "scheduled") != (most_ms > 0):
                raise Violation("backoff", f"nacked at {offset}: {event.to}, the backoff is at most {most_ms} ms")
            earliest_ms, latest_ms = self.time_ms, self._wall_ms() + most_ms
            if most_ms and not self.clock_went_back and not earliest_ms < event.due_ms <= latest_ms:
                raise Violation("backoff", f"nacked at {offset}, {earliest_ms}, due {event.due_ms}: most {most_ms} ms")

    def _expired(self, job: ModelJob, offset: int, event: LeaseExpired) -> str:
        self._must_be(job, offset, event, "claimed")
        claim = (job.id, job.claim_offset)
        self.claims[claim] = "expired"
        end_ms = self.leases.get(claim, job.claim_ms + job.lease_ms)
        interrupted = job.claim_offset < self.opened_at and not job.kept
        if event.reason == "interrupted" and not interrupted:
            raise Violation("early", f"the claim of this writer was interrupted at {offset}")
        if interrupted and event.crashed != (0 < self.suspects <= _MAX_SUSPECTS):
            raise Violation("crash", f"{event} at {offset}, of a writer that left {self.suspects} claims")
        if not interrupted and self._is_timed and self.time_ms < end_ms and not self.clock_went_back:
            raise Violation("early", f"the lease ended at {offset}, {end_ms - self.time_ms} ms before its end")
        job.crashes, job.snoozes = job.crashes + event.crashed, 0
        is_poison = event.crashed and self._max_crashes is not None and job.crashes >= self._max_crashes
        if (job.attempt >= job.max_attempts or is_poison) and event.to != "dead" and not job.stop_asked:
            raise Violation("attempts", f"expired at {offset} with no attempt left, and {event.to}")
        if event.to == "dead":
            self._keep(job, offset, event.sweep_at_ms)
            if job.stop_asked or (job.attempt < job.max_attempts and not is_poison):
                raise Violation("dead", f"{job.id.hex()} is dead at {offset}, with attempts left, or asked to stop")
        job.sweep_at_ms = event.sweep_at_ms
        return event.to

    def _stop_asked(self, job: ModelJob, offset: int, event: CancelRequested) -> str:
        self._must_be(job, offset, event, "claimed")
        job.stop_asked = True
        job.stop_asked_at_ms = self._now_ms()
        return job.state

    def _cancelled(self, job: ModelJob, offset: int, event: Cancelled) -> str:
        self._must_be(job, offset, event, "pending", "scheduled")
        self._keep(job, offset, event.sweep_at_ms)
        job.stop_asked = False
        job.sweep_at_ms = event.sweep_at_ms
        return "cancelled"

    def _not_started(self, job: ModelJob, offset: int, event: Expired) -> str:
        self._must_be(job, offset, event, "pending", "scheduled")
        if not 0 < job.starts_before_ms <= self.time_ms:
            raise Violation("early", f"{event} at {offset}, {self.time_ms}: it may start up to {job.starts_before_ms}")
        self._keep(job, offset, event.sweep_at_ms)
        job.sweep_at_ms = event.sweep_at_ms
        return "cancelled"

    def _requeued(self, job: ModelJob, offset: int, event: Requeued) -> str:
        self._must_be(job, offset, event, "dead")
        job.attempt = job.crashes = job.snoozes = 0
        job.stop_asked = False
        job.requeues += 1
        if job.until == "finished" and not job.key_held:
            self._take_key(job, offset)
        return "pending"

    def _swept(self, job: ModelJob, offset: int, event: Swept) -> str:
        self._must_be(job, offset, event, "done", "dead", "cancelled")
        if self._is_timed and self.time_ms < job.sweep_at_ms:
            raise Violation("early", f"swept at {offset}, {job.sweep_at_ms - self.time_ms} ms before its time")
        if job.key_held and self.time_ms < job.hold_ms:
            raise Violation("unique", f"swept at {offset}, {job.hold_ms - self.time_ms} ms before its key is free")
        self._lose_key(job)
        return "gone"

    def _deleted(self, job: ModelJob, offset: int, event: Deleted) -> str:
        self._must_be(job, offset, event, "done", "dead", "cancelled")
        self._lose_key(job)
        return "gone"

    def _step_done(self, job: ModelJob, offset: int, event: StepDone) -> str:
        self._must_be(job, offset, event, "claimed")
        if event.name in job.steps or len(job.steps) >= _MAX_STEPS:
            raise Violation("step", f"step {event.name!r} at {offset}, after {sorted(job.steps)}")
        job.steps[event.name] = None if event.value is None else event.value.at
        return job.state

    def _replaced(self, job: ModelJob, offset: int, event: Replaced) -> str:
        self._must_be(job, offset, event, "pending", "scheduled")
        if not job.key_held or _hold_ms(event.terms) != job.hold_ms:
            raise Violation("unique", f"{event} at {offset} is of a job that holds no key, or changes until when")
        job.attempt = job.crashes = job.snoozes = 0
        job.max_attempts, job.due_ms, job.starts_before_ms = (
            event.max_attempts,
            event.due_ms,
            _starts_before_ms(event.terms),
        )
        job.since_ms = event.due_ms or self.time_ms
        return "scheduled" if event.due_ms else "pending"

    def _key_given_up(self, job: ModelJob, offset: int, event: UniqueReleased) -> str:
        if not job.gives_key_up(self.time_ms):
            raise Violation("unique", f"{event} at {offset}, {self.time_ms}: it is held until {job.hold_ms} at least")
        self._to_take = (job.queue, job.unique_key)
        self._lose_key(job)
        return job.state

    def _dead_lettered(self, job: ModelJob, offset: int, event: DeadLettered) -> str:
        """No payload is ever lost where this model is used, so none may be taken for lost."""
        raise Violation("dead", f"{job.id.hex()} is dead-lettered at {offset}: {event.reason}")


_HOW: Final[dict[type[Any], Any]] = {
    Promoted: Model._promoted,
    Claimed: Model._claimed,
    Acked: Model._acked,
    Nacked: Model._nacked,
    LeaseExpired: Model._expired,
    CancelRequested: Model._stop_asked,
    Cancelled: Model._cancelled,
    Requeued: Model._requeued,
    Swept: Model._swept,
    Deleted: Model._deleted,
    DeadLettered: Model._dead_lettered,
    Expired: Model._not_started,
    StepDone: Model._step_done,
    Replaced: Model._replaced,
    UniqueReleased: Model._key_given_up,
}


def _starts_before_ms(terms: bytes | None) -> int:
    """The first of the times at which it expires and at which its deadline is over; 0 for none."""
    times = () if terms is None else msgpack.unpackb(terms)[2:4]
    return min((ms for ms in times if ms), default=0)


def _hold_ms(terms: bytes | None) -> int:
    """Until when the unique key is held at least; 0 for no such time."""
    return next(iter(() if terms is None else msgpack.unpackb(terms)[4:5]), 0)
