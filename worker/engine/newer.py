"""The jobs that are newer than what the store answers to a group of reads: see `WriterState.watch`."""

from collections.abc import Iterable

from ledgerq.projections.job import Job
from ledgerq.worker.engine.commit_rows import Touched

__all__ = ["Newer"]


class Newer:
    """Jobs staged since a group of reads began, or not durable then: newer than what the store answers.

    Making one costs nothing, however much is not durable: a commit keeps its jobs where they are when it is on its way.
    """

    def __init__(self, undurable: list[Touched]) -> None:
        """`undurable`: what each commit that is not durable has touched, oldest first."""
        self.readers = 0
        self.changes: dict[bytes, Job | None] = {}
        self._undurable = undurable

    def __contains__(self, id: bytes) -> bool:
        return id in self.changes or any(id in staged for staged in self._undurable)

    def __getitem__(self, id: bytes) -> Job | None:
        if id in self.changes:
            return self.changes[id]
        return next(touched[id] for touched in reversed(self._undurable) if id in touched)[1]

    def state_of(self, job: Job) -> Job | None:
        """The newest state of a job that was read."""
        if job.id not in self:
            return job
        return self[job.id]

    def values(self) -> Iterable[Job | None]:
        """The newest state of each of these jobs."""
        undurable = {id: after for staged in self._undurable for id, (_, after) in staged.items()}
        return (undurable | self.changes).values()
