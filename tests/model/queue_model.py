"""The model of a queue, call by call: each call becomes the event it should cause, in the reference model."""

from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    Enqueued,
    Event,
    LeaseExpired,
    Nacked,
    Promoted,
    QueuePaused,
    QueueResumed,
    Requeued,
    State,
    Swept,
    UniqueUntil,
    WriterClosed,
    WriterOpened,
)
from ledgerq.worker.claims import Claim
from tests.model import job as reference
from tests.model.job import ModelJob

__all__ = ["LEASE_S", "MAX_ATTEMPTS", "Model"]

LEASE_S = 30
MAX_ATTEMPTS = 2
KEEP_MS = {"done": 24 * 3600 * 1000, "cancelled": 24 * 3600 * 1000, "dead": 7 * 24 * 3600 * 1000, "pending": 0}
WHO = ("ann", "because")


class Model:
    """The queue as its callers see it."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms
        self.swept: list[str] = []
        self.lost_claims: list[Claim] = []
        self.lease_ends_ms: dict[str, int] = {}
        self._claims: dict[str, Claim] = {}
        self._reference = reference.Model()
        self._offset = 0

    def _happened(self, event: Event) -> None:
        self._offset += 1
        self._reference.apply(self._offset, self.now_ms, event)

    @property
    def jobs(self) -> dict[str, ModelJob]:
        """All jobs that are not swept, by id."""
        return {job_id_text(job.id): job for job in self._reference.jobs.values() if job.state != "gone"}

    def is_paused(self, queue: str) -> bool:
        """Whether a queue is paused."""
        return self._reference.counts(queue).paused

    def added(self, job_id: str, queue: str, priority: int, delay: float, key: str | None, until: UniqueUntil) -> None:
        """A job was enqueued."""
        due_ms = self.now_ms + round(delay * 1000) if delay else 0
        unique_key = None if key is None else key.encode()
        job = job_id_bytes(job_id)
        self._happened(Enqueued(job, queue, priority, MAX_ATTEMPTS, due_ms, unique_key, until, 1, bytes(32)))

    def holder(self, queue: str, key: str) -> str | None:
        """The job that holds a unique key."""
        found = self._reference.keys.get((queue, key.encode()))
        return None if found is None else job_id_text(found)

    def error(self, job_id: str) -> str:
        """Why the job's last try ended without success; empty when none did."""
        events = [moment.event for moment in self.jobs[job_id].life]
        ends = [event for event in events if isinstance(event, Nacked | LeaseExpired)]
        errors = [str(end.error if isinstance(end, Nacked) else end.reason) for end in ends]
        return errors[-1] if errors else ""

    def pending(self, queue: str) -> list[str]:
        """The jobs of a queue that can be claimed, in order."""
        waiting = self._reference.pending.get(queue, {})
        return [job_id_text(id) for id in sorted(waiting, key=waiting.__getitem__)]

    def claimed(self, claim: Claim, lease_ms: int, *, kept: bool = False) -> None:
        """A claim was returned."""
        self._happened(Claimed(claim.id, claim.attempt, lease_ms, None, kept))
        assert claim.payload == b"%d" % self.jobs[claim.job_id].priority
        self._claims[claim.job_id], self.lease_ends_ms[claim.job_id] = claim, self.now_ms + lease_ms

    def current(self) -> list[tuple[str, Claim]]:
        """All current claims."""
        return [(job_id, self._claims[job_id]) for job_id, job in self.jobs.items() if job.state == "claimed"]

    def acked(self, job_id: str) -> None:
        """A job is done."""
        self.lost_claims.append(self._claims[job_id])
        self._happened(Acked(job_id_bytes(job_id), self.now_ms + KEEP_MS["done"]))

    def has_acked(self, claim: Claim) -> bool:
        """Whether this claim has acked its job, whose record is still there."""
        job = self.jobs.get(claim.job_id)
        return job is not None and job.state == "done" and self._claims[claim.job_id].offset == claim.offset

    def cancelled(self, job_id: str) -> None:
        """A job was cancelled, or its claim is asked to stop."""
        job = self.jobs[job_id]
        if job.state == "claimed":
            self._happened(CancelRequested(job.id, *WHO))
        else:
            self._happened(Cancelled(job.id, self.now_ms + KEEP_MS["cancelled"], *WHO))

    def gave_up(self, job_id: str, *, dead: bool = False, delay_ms: int = 0, released: bool = False) -> None:
        """A claim was nacked or released."""
        to, sweep_at_ms = self._claim_ended(job_id, dead=dead, released=released)
        due_ms = self.now_ms + delay_ms if to == "pending" and delay_ms else 0
        job = job_id_bytes(job_id)
        error = "released" if released else "e"
        self._happened(Nacked(job, "scheduled" if due_ms else to, due_ms, sweep_at_ms, released, error))

    def _claim_ended(self, job_id: str, *, dead: bool = False, released: bool = False) -> tuple[State, int]:
        """What becomes of a job whose claim ended without success, and when it is swept."""
        job = self.jobs[job_id]
        self.lost_claims.append(self._claims[job_id])
        is_dead = not released and (dead or job.attempt >= MAX_ATTEMPTS)
        to: State = "cancelled" if job.stop_asked else "dead" if is_dead else "pending"
        return to, self.now_ms + KEEP_MS[to] if to != "pending" else 0

    def _expired(self, job_id: str, reason: str, *, crashed: bool = False) -> None:
        self._happened(LeaseExpired(job_id_bytes(job_id), *self._claim_ended(job_id), reason, crashed))

    def requeued(self, job_id: str) -> None:
        """A dead job got a new start."""
        self._happened(Requeued(job_id_bytes(job_id), *WHO))

    def paused(self, queue: str, *, now: bool) -> None:
        """A queue was paused or resumed."""
        self._happened((QueuePaused if now else QueueResumed)(queue, *WHO))

    def passed(self, now_ms: int) -> None:
        """Time went on, and what it brings about happened."""
        self.now_ms = now_ms
        for job_id, job in self.jobs.items():
            if job.state == "claimed" and self.lease_ends_ms[job_id] <= now_ms:
                self._expired(job_id, "lease expired")
            elif job.state == "scheduled" and job.due_ms <= now_ms:
                self._happened(Promoted(job.id))
            elif job.state in ("done", "dead", "cancelled") and job.sweep_at_ms <= now_ms:
                self._happened(Swept(job.id))
                self.swept.append(job_id)

    def restarted(self, *, clean: bool = False) -> None:
        """The process ended, or `clean`, closed its queue; the next one found its claims interrupted."""
        if clean:
            self._happened(WriterClosed("last"))
        self._happened(WriterOpened("next", "1", None))
        claims = self.current()
        interrupted = [job_id for job_id, _ in claims if not self.jobs[job_id].kept]
        for job_id, job in self.jobs.items():
            if job.kept and job.state == "claimed":
                self.lease_ends_ms[job_id] = self.now_ms + job.lease_ms
        for job_id in interrupted:
            self._expired(job_id, "interrupted", crashed=not clean and len(interrupted) <= 12)
