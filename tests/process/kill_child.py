"""A process to be killed: mixed load on a store, and a file of facts, each written after its call had returned.

    python tests/process/kill_child.py DIR SEED [URL]

The store is DIR/store unless a URL is given. The facts are lines in DIR/facts: what happened, the job's id, and the
payload's beginning or the claim's offset.
"""

import asyncio
import os
import random
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from ledgerq.eventlog.errors import ClaimLost, EffectConflict, InvalidState, JobNotFound
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.tasks.registry import Tasks

WORKERS = 4
PRODUCERS = 3
QUEUES = ("q", "ticks", "followers")
app = Tasks("app")


@app.cron(every=timedelta(seconds=1), missed="all", overlap="queue")
@app.task(queue="ticks")
def tick() -> None:
    """What is added each second; the load claims it as it does other jobs."""


OPTIONS = QueueOptions(max_attempts=3, backoff_base_s=0.01, lease_s=60.0)


class Load:
    """What the process does until it is killed."""

    def __init__(self, queue: Queue, facts_fd: int, seed: int) -> None:
        self.queue = queue
        self.rng = random.Random(seed)
        self._fd = facts_fd
        self._fresh: list[str] = []
        self._dead: list[str] = []
        self._held: list[Claim] = []

    def report(self, *facts: str) -> None:
        """One write for each fact, so that a kill leaves whole lines."""
        for fact in facts:
            os.write(self._fd, fact.encode() + b"\n")

    async def produce(self) -> None:
        """Add jobs: alone, in bulk, later, urgent, unique."""
        while True:
            payload = self.rng.randbytes(self.rng.choice((4, 4, 40, 4000)))
            kind = self.rng.randrange(5)
            if kind == 0:
                batch: Sequence[bytes | NewJob] = [payload, NewJob(payload, priority=self.rng.randrange(3)), payload]
                added = await self.queue.enqueue_many("q", batch)
            elif kind == 1:
                added = [await self.queue.enqueue("q", payload, delay=self.rng.choice((0.003, 3600)))]
            elif kind == 2:
                added = [await self.queue.enqueue("q", payload, unique_key=f"k{self.rng.randrange(20)}")]
            else:
                added = [await self.queue.enqueue("q", payload)]
            created = [job.job_id for job in added if job.created]
            self.report(*(f"enqueued {job_id} {payload.hex()[:16]}" for job_id in created))
            self._fresh = [*self._fresh[-50:], *created]

    async def work(self, name: str) -> None:
        """Claim and settle, one way or another."""
        while True:
            claims = await self.queue.claim(QUEUES, limit=self.rng.randrange(1, 6), wait=None, worker=name)
            self.report(*(f"claimed {claim.job_id} {claim.offset}" for claim in claims))
            if self.rng.random() < 0.3:
                with suppress(ClaimLost):  # the error does not name the lost one, so nothing is reported
                    await self.queue.ack_many(claims)
                    self.report(*(f"acked {claim.job_id} {claim.offset}" for claim in claims))
                continue
            for claim in claims:
                with suppress(ClaimLost):
                    await self.settle(claim)
            if self._held and self.rng.random() < 0.2:
                with suppress(ClaimLost):
                    await self.settle(self._held.pop(0))

    async def settle(self, claim: Claim) -> None:
        """Ack most, fail some, and hold a few until their leases end, or longer."""
        chance = self.rng.random()
        if chance < 0.1 and claim.queue == "q":
            await self.count(claim)
        elif chance < 0.7:
            await self.queue.ack(claim, result=b"of %d" % claim.offset if chance < 0.3 else None)
            self.report(f"acked {claim.job_id} {claim.offset}")
        elif chance < 0.8:
            await self.queue.nack(claim, f"boom at {claim.offset}")
        elif chance < 0.85:
            await self.queue.nack(claim, f"hopeless at {claim.offset}", dead=True)
            self.report(f"dead {claim.job_id} -")
            self._dead = [*self._dead[-20:], claim.job_id]
        elif chance < 0.95:
            await self.queue.release(claim)
        else:
            self._held = [*self._held[-20:], claim]

    async def count(self, claim: Claim) -> None:
        """Ack a job with effects: a number that counts them, and a job that follows."""
        found = await self.queue.kv.get("count")
        number, version = (0, 0) if found is None else (found.json(), found.version)
        effects = self.queue.effects()
        effects.kv.set_json("count", number + 1, expect=version)
        effects.enqueue("followers", claim.payload)
        with suppress(EffectConflict):  # another worker counted meanwhile: this claim is held
            await self.queue.ack(claim, effects=effects)
            self.report(f"acked {claim.job_id} {claim.offset}", f"counted {claim.job_id} {number + 1}")
            return
        self._held = [*self._held[-20:], claim]

    async def operate(self) -> None:
        """Cancel a job now and then, and give a dead one a new start."""
        while True:
            await self.queue.stats("q")
            with suppress(JobNotFound, InvalidState):  # it was swept or went on meanwhile
                if self._fresh and self.rng.random() < 0.2:
                    await self.cancel(self.rng.choice(self._fresh))
                if self._dead and self.rng.random() < 0.05:
                    await self.queue.requeue(self.rng.choice(self._dead), actor="operator", reason="a test")
            await asyncio.sleep(0.001)

    async def cancel(self, job_id: str) -> None:
        """Cancel a job that is scheduled."""
        job = await self.queue.get(job_id)
        if job.state == "scheduled":
            job = await self.queue.cancel(job_id, actor="operator", reason="a test")
            if job.state == "cancelled":
                self.report(f"cancelled {job_id} -")

    async def run(self, *, producers: int = PRODUCERS, workers: int = WORKERS) -> None:
        """All of it at once, without an end."""
        async with asyncio.TaskGroup() as group:
            for _ in range(producers):
                group.create_task(self.produce())
            for i in range(workers):
                group.create_task(self.work(f"worker-{i}"))
            group.create_task(self.operate())


async def main(folder: Path, seed: int, url: str) -> None:
    """Run until this process is killed."""
    async with Queue.open(url, default=OPTIONS, ready_window=50, tasks=app) as queue:
        await Load(queue, open_facts(folder), seed).run()


def open_facts(folder: Path) -> int:
    """The file descriptor to which facts are written; several processes may do so."""
    return os.open(folder / "facts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    asyncio.run(main(FOLDER, int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else (FOLDER / "store").as_uri()))
