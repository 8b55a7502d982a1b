"""The oracle of a simulation: what was asked for, what was promised to which caller, and whether the ledger keeps it.

Everything here is about answers that a caller received. Each is compared at that very moment with what is durable:
what the ledger does not hold when the call returns was promised too early.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgpack

from ledgerq.eventlog.events import Enqueued, Replaced, Ticked
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.worker.claims import Claim, EnqueueResult
from tests.model.job import UNFINISHED, Model, Violation

__all__ = ["Asked", "Oracle"]


class Asked(NamedTuple):
    """An enqueue call of a producer; `id` None: any. `due_ms` is 0 for at once, `hold_ms` for no period of the key."""

    queue: str
    payload: bytes
    headers: dict[str, str] | None
    priority: int
    max_attempts: int
    due_ms: int
    unique_key: bytes | None
    until: str
    id: bytes | None
    hold_ms: int = 0
    on_conflict: str = "keep"
    most_ms: int = 0


class Oracle:
    """The oracle. A token is the number that the payload of each job begins with, never the same twice."""

    def __init__(self) -> None:
        self.model: Model
        self.asked: dict[int, Asked] = {}
        self.scheduled: dict[int, tuple[str, str]] = {}  # the schedule and the queue, by the number in its arguments
        self.refused: set[int] = set()
        self.promised: dict[int, bytes] = {}
        self.durable: dict[int, bytes] = {}
        self.payloads: dict[bytes, PayloadRecord] = {}
        self.received: set[tuple[bytes, int]] = set()
        self.handed: set[tuple[bytes, int]] = set()
        self.acked: set[bytes] = set()
        self.created: list[bytes] = []
        self.replaced: dict[int, bytes] = {}
        # By job, of how many enqueues the payload was replaced in the commit that brought it: nobody has seen it.
        self.unseen: dict[bytes, int] = {}

    def enqueued_event(self, event: Enqueued, record: PayloadRecord) -> None:
        """Record that a job became durable; raises `Violation`."""
        if event.terms is not None and msgpack.unpackb(event.terms)[0]:
            self._of_tick(event, record)
            return
        token, asked = self._new(record)
        told = (event.priority, event.max_attempts, event.due_ms, event.unique_key, event.unique_until)
        id = event.id if asked.id is not None else None
        if asked[:9] != (event.queue, record.payload, record.headers, *told, id) or asked.hold_ms != _hold_ms(event):
            raise Violation("invented", f"the job {token} was asked for as {asked}, and is {event}, {record.headers}")
        self.durable[token] = event.id
        self.acked.discard(event.id)  # the id of a job that was swept may be used again
        self.payloads[event.id] = record
        self.created.append(event.id)

    def _new(self, record: PayloadRecord) -> tuple[int, Asked]:
        """The call with this payload, which is in the log for the first time."""
        token = int(record.payload.split(b" ", 1)[0])
        if token not in self.asked:
            raise Violation("invented", f"a job with the payload {record.payload[:20]!r} was never asked for")
        if token in self.durable or token in self.replaced:
            raise Violation("repeated", f"the job asked for once as {token} is in the log twice")
        if token in self.refused:
            raise Violation("repeated", f"the job {token} is in the log although its caller was refused")
        return token, self.asked[token]

    def unseen_event(self, event: Enqueued | Replaced) -> None:
        """Record that a job became durable, or was replaced, with a payload that the same commit replaced again."""
        self.unseen[event.id] = self.unseen.get(event.id, 0) + 1
        if isinstance(event, Enqueued):
            self.acked.discard(event.id)
            self.created.append(event.id)

    def replaced_event(self, event: Replaced, record: PayloadRecord) -> None:
        """Record that a job that waits was replaced, durably; raises `Violation`."""
        token, asked = self._new(record)
        job = self.model.jobs[event.id]
        due_ms = min(asked.due_ms, job.enqueued_ms + asked.most_ms) if asked.most_ms else asked.due_ms
        told = (job.queue, job.unique_key, record.payload, record.headers, event.max_attempts, event.due_ms)
        wanted = (asked.queue, asked.unique_key, asked.payload, asked.headers, asked.max_attempts)
        if told != (*wanted, due_ms if due_ms > self.model.time_ms else 0) or asked.on_conflict != "replace":
            raise Violation("unique", f"the job {token} was asked for as {asked}, and replaces {told}, by {event}")
        self.replaced[token] = event.id
        self.payloads[event.id] = record

    def free_keys(self) -> dict[bytes, int]:
        """The jobs that must give up their keys to whoever wants them now, with the number of their events."""
        now_ms = self.model.time_ms
        return {id: len(job.life) for id, job in self.model.jobs.items() if job.gives_key_up(now_ms)}

    def _of_tick(self, event: Enqueued, record: PayloadRecord) -> None:
        """A job of a task is one of a schedule: there are no others here."""
        number = json.loads(record.payload)["number"]
        if number not in self.scheduled or self.scheduled[number][1] != event.queue:
            raise Violation("invented", f"the job {event} of a schedule with {record.payload!r} was never asked for")
        self.model.schedules.to_tick = event.id
        self.acked.discard(event.id)
        self.payloads[event.id] = record
        self.created.append(event.id)

    def ticked(self, event: Ticked) -> None:
        """Check that the job of a tick has the arguments of the newest setting, and the time of the tick."""
        if event.job is None:
            return
        given, reason = (
            json.loads(self.payloads[event.job].payload),
            self.model.schedules.by_name[event.name].setting.reason,
        )
        tick_ms = round(datetime.fromisoformat(given["tick"]).timestamp() * 1000)
        is_newest = not isinstance(reason, str) or reason.endswith(f'(arguments: {{"number": {given["number"]}}})')
        if tick_ms != event.tick_ms or self.scheduled[given["number"]][0] != event.name or not is_newest:
            raise Violation("tick", f"{event} has a job with {given}, of the setting {reason!r}")

    def answered(
        self, token: int, queue: str, unique: bytes | None, answer: EnqueueResult, free: dict[bytes, int]
    ) -> None:
        """Check an enqueue call that returned; raises `Violation`. `free`: the `free_keys` when it was made."""
        found = self.durable if answer.created else self.replaced if answer.replaced else {}
        is_there = found.get(token) == answer.id
        if (answer.created or answer.replaced) and not is_there and self.unseen.get(answer.id):
            self.unseen[answer.id] -= 1
            is_there = True
        if answer.replaced:
            if not is_there:
                raise Violation("too early", f"enqueue of {token} returned before {answer.id.hex()} was replaced")
            return
        if answer.created:
            if not is_there:
                raise Violation("too early", f"enqueue of {token} returned before its event was durable")
            self.promised[token] = answer.id
            return
        self.refused.add(token)
        holder = self.model.jobs.get(answer.id)
        queues = () if holder is None else (holder.queue, holder.life[0].event.queue)  # it may have been moved since
        if unique is None or holder is None or queue not in queues or holder.unique_key != unique:
            raise Violation("unique", f"enqueue of {token} was answered with {answer.id.hex()}, which has not its key")
        if token in self.durable or token in self.replaced:
            raise Violation("unique", f"enqueue of {token} said that nothing was added, and added a job")
        if free.get(answer.id) == len(holder.life):
            raise Violation("unique", f"enqueue of {token} was refused for {answer.id.hex()}, whose period was over")

    def receive(self, claim: Claim, lease_ms: int, now_ms: int) -> None:
        """Check a claim that was returned now, by the wall clock, for this long; raises `Violation`."""
        key = (claim.id, claim.offset)
        if key not in self.model.claims:
            raise Violation("too early", f"the claim at {claim.offset} was handed over before it was durable")
        if key in self.received:
            raise Violation("two claims", f"the claim at {claim.offset} was handed over twice")
        if claim.id in self.acked:
            raise Violation("again", f"{claim.id.hex()} was handed over at {claim.offset} although it was acked")
        self.received.add(key)
        if (claim.lease_ms, claim.lease_expires_ms) != (lease_ms, now_ms + lease_ms):
            left_ms = claim.lease_expires_ms - now_ms
            raise Violation("lease", f"the claim at {claim.offset} is for {left_ms} ms, asked for {lease_ms} ms")
        self.model.leases[key] = claim.lease_expires_ms
        job, record = self.model.jobs[claim.id], self.payloads[claim.id]
        # While it was on its way it may have been ended, and its job may have been claimed again.
        if not self.model.claims[key] and claim.attempt != job.attempt:
            raise Violation("attempts", f"the claim at {claim.offset} is attempt {job.attempt}, not {claim.attempt}")
        told = (claim.queue, claim.priority, claim.max_attempts, claim.enqueued_ms)
        if told != (job.queue, job.priority, job.max_attempts, job.enqueued_ms):
            raise Violation("claim", f"the claim at {claim.offset} differs from its job: {claim}")
        if (claim.payload, claim.headers) != (record.payload, record.headers or {}):
            raise Violation("payload", f"the claim at {claim.offset} has another payload than its job")

    def hand(self, claim: Claim) -> None:
        """Check a claim on which work begins; raises `Violation`."""
        key = (claim.id, claim.offset)
        if key not in self.received or key in self.handed:
            raise Violation("two claims", f"the claim at {claim.offset} was worked on twice, or by one who had it not")
        if claim.id in self.acked:
            raise Violation("again", f"{claim.id.hex()} was worked on at {claim.offset} although it was acked")
        self.handed.add(key)

    def settled(self, claim: Claim, how: str) -> None:
        """Check a settlement that was accepted: `how` is acked, nacked or released; raises `Violation`."""
        found = self.model.claims.get((claim.id, claim.offset))
        if found != how:
            raise Violation("settled", f"the claim at {claim.offset} was {how} by the call, {found!r} by the log")
        if how == "acked":
            self.acked.add(claim.id)

    def lost(self, claim: Claim) -> None:
        """Check a settlement that was refused with `ClaimLost`; raises `Violation`."""
        if self.model.claims.get((claim.id, claim.offset)) == "":
            raise Violation("settled", f"the claim at {claim.offset} is current, and was refused as lost")

    def renewed(self, claim: Claim) -> None:
        """Record that a lease was renewed."""
        key = (claim.id, claim.offset)
        self.model.leases[key] = claim.lease_expires_ms

    def drained(self, queues: Sequence[str]) -> None:
        """Check that `drained` returned rightly; raises `Violation`."""
        left = [job for job in self.model.jobs.values() if job.queue in queues and job.state in UNFINISHED]
        if left:
            raise Violation("drained", f"{queues} are said to be drained, and {left[0].id.hex()} is {left[0].state}")

    def finished(self, *, swept: bool) -> None:
        """Check the end, after everything was worked off: each promised job ended exactly once; raises `Violation`."""
        lost = [token for token, id in self.promised.items() if id not in self.model.jobs]
        if lost:
            raise Violation("lost", f"jobs that were promised are nowhere: {lost[:5]}")
        for job in self.model.jobs.values():
            if job.state in UNFINISHED or (swept and job.state != "gone"):
                raise Violation("lost", f"{job.id.hex()} enqueued at {job.offset} ends as {job.state}")
            if job.ends != job.requeues + job.moves + 1:
                begun = f"requeued {job.requeues} times, moved {job.moves} times"
                raise Violation("repeated", f"{job.id.hex()} ended {job.ends} times, {begun}")
        current = [key for key, how in self.model.claims.items() if not how]
        if current:
            raise Violation("lost", f"claims are current for ever: {current[:5]}")


def _hold_ms(event: Enqueued) -> int:
    return next(iter(() if event.terms is None else msgpack.unpackb(event.terms)[4:5]), 0)
