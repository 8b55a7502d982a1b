"""What a queue should do, as a dict of plain records: the model that the state machine test compares a queue with."""

from dataclasses import dataclass, field

from ledgerq.worker.claims import Claim

__all__ = ["LEASE_S", "MAX_ATTEMPTS", "Model", "ModelJob"]

LEASE_S = 30
MAX_ATTEMPTS = 2
KEEP_MS = {"done": 24 * 3600 * 1000, "cancelled": 24 * 3600 * 1000, "dead": 7 * 24 * 3600 * 1000}


@dataclass
class ModelJob:
    """A job as a user would describe it."""

    queue: str
    place: tuple[int, int]
    state: str
    due_ms: int = 0
    attempt: int = 0
    key: str | None = None
    until: str = "finished"
    held: bool = False
    sweep_at_ms: int = 0
    asked_to_stop: bool = False
    claim: Claim | None = None
    lease_ends_ms: int = 0


@dataclass
class Model:
    """All jobs that are not swept, by id."""

    now_ms: int
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    swept: list[str] = field(default_factory=list)
    lost_claims: list[Claim] = field(default_factory=list)
    paused: set[str] = field(default_factory=set)
    number: int = 0

    def added(self, job_id: str, queue: str, priority: int, delay: float, key: str | None, until: str) -> None:
        """A job was enqueued."""
        assert job_id not in self.jobs
        self.number += 1
        job = self.jobs[job_id] = ModelJob(queue, (priority, self.number), "pending", key=key, until=until)
        job.held = key is not None
        if delay:
            job.state, job.due_ms = "scheduled", self.now_ms + round(delay * 1000)

    def holder(self, queue: str, key: str) -> str | None:
        """Who holds a unique key."""
        found = [i for i, job in self.jobs.items() if job.queue == queue and job.key == key and job.held]
        assert len(found) <= 1
        return found[0] if found else None

    def pending(self, queue: str) -> list[str]:
        """The jobs of a queue that can be claimed, in order."""
        found = [(job.place, i) for i, job in self.jobs.items() if job.queue == queue and job.state == "pending"]
        return [job_id for _, job_id in sorted(found)]

    def claimed(self, claim: Claim, lease_ms: int) -> None:
        """A claim was handed over."""
        job = self.jobs[claim.job_id]
        assert job.state == "pending", f"a job that is {job.state} was claimed"
        assert job.queue not in self.paused
        assert claim.payload == b"%d" % job.place[0]
        job.state, job.claim, job.lease_ends_ms = "claimed", claim, self.now_ms + lease_ms
        job.attempt += 1
        assert claim.attempt == job.attempt
        job.held = job.held and job.until == "finished"

    def current(self) -> list[tuple[str, Claim]]:
        """All current claims."""
        return [(i, job.claim) for i, job in self.jobs.items() if job.state == "claimed" and job.claim is not None]

    def finish(self, job_id: str, state: str) -> None:
        """A job's life ends in this state."""
        job = self.jobs[job_id]
        self._end_claim(job)
        job.state, job.held, job.due_ms = state, False, 0
        job.sweep_at_ms = self.now_ms + KEEP_MS[state]

    def gave_up(self, job_id: str, *, dead: bool = False, delay_ms: int = 0, released: bool = False) -> None:
        """A claim ended without success: nacked, released, or its lease was over."""
        job = self.jobs[job_id]
        if job.asked_to_stop:
            job.attempt -= released
            self.finish(job_id, "cancelled")
        elif not released and (dead or job.attempt >= MAX_ATTEMPTS):
            self.finish(job_id, "dead")
        else:
            self._end_claim(job)
            job.attempt -= released
            job.state = "scheduled" if delay_ms else "pending"
            job.due_ms = self.now_ms + delay_ms if delay_ms else 0

    def _end_claim(self, job: ModelJob) -> None:
        if job.claim is not None:
            self.lost_claims.append(job.claim)
        job.claim, job.asked_to_stop = None, False

    def requeued(self, job_id: str) -> None:
        """A dead job got a new start."""
        job = self.jobs[job_id]
        job.state, job.attempt, job.sweep_at_ms = "pending", 0, 0
        job.held = job.key is not None and job.until == "finished"

    def passed(self, now_ms: int) -> None:
        """Time went on, and what it brings about happened."""
        self.now_ms = now_ms
        for job_id, job in list(self.jobs.items()):
            if job.state == "claimed" and job.lease_ends_ms <= now_ms:
                self.gave_up(job_id)
            elif job.state == "scheduled" and job.due_ms <= now_ms:
                job.state, job.due_ms = "pending", 0
            elif job.sweep_at_ms and job.sweep_at_ms <= now_ms:
                del self.jobs[job_id]
                self.swept.append(job_id)

    def restarted(self) -> None:
        """The process ended; the next one found its claims interrupted."""
        for job_id, _ in self.current():
            self.gave_up(job_id)
