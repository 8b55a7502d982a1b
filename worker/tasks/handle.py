"""The handle of an enqueued job: its id, and the wait for its result."""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ledgerq.eventlog.errors import JobCancelled, JobFailed, JobNotFound, ResultGone
from ledgerq.projections.job import Job

if TYPE_CHECKING:
    from ledgerq.worker.queue_reads import QueueReads
    from ledgerq.worker.remote.remote_reads import RemoteReads
    from ledgerq.worker.tasks.signature import Signature

__all__ = ["Handle"]

R_co = TypeVar("R_co", covariant=True)


class Handle(Generic[R_co]):
    """A job that was enqueued: `job_id`, and `created`, which is False when it was there already by its unique key.

    `replaced`: it has the arguments of this call, in the place of those that it had.

    `await handle` is `await handle.result()`, so `asyncio.gather(*handles)` has all results.
    """

    def __init__(
        self,
        queue: "QueueReads | RemoteReads",
        job_id: str,
        signature: "Signature | None" = None,
        *,
        created: bool = True,
        replaced: bool = False,
    ) -> None:
        """Not called by users: enqueue a task, or use `queue.handle(job_id)` or `task.handle(job_id)`."""
        self.job_id = job_id
        self.created = created
        self.replaced = replaced
        self._queue = queue
        self._signature = signature

    def __repr__(self) -> str:
        return f"Handle({self.job_id!r})"

    def __await__(self) -> Generator[Any, None, R_co]:
        return self.result().__await__()

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109
        """Wait until the job is finished, and return what its task returned, when that is durable.

        Raises `JobFailed` when it is dead, `JobCancelled`, `TimeoutError` after `timeout` seconds (None: never), and
        `ResultGone` when the job was swept. The wait is in memory: nothing is polled, and nothing is left behind by
        a wait that is cancelled. Of a job whose task this process doesn't know the result is given as bytes.
        """
        try:
            job = await self._queue.finished(self.job_id, timeout)
        except JobNotFound as error:
            raise ResultGone(
                f"job {self.job_id} is not there any more, nor is its result: it was swept (the log has its history), "
                "or never was"
            ) from error
        if job.state == "dead":
            raise JobFailed(self.job_id, job.error_type, job.error)
        if job.state == "cancelled":
            raise JobCancelled(self.job_id)
        result: Any = await self._queue.result(job)
        signature = self._signature or self._known(job)
        return result if signature is None else signature.decode_result(result)  # type: ignore[no-any-return]

    def result_sync(self, timeout: float | None = None) -> R_co:
        """The same as `result` for a thread without an event loop, which waits."""
        return self._queue.owner.wait(lambda: self.result(timeout), "use `await handle.result()` here")

    def _known(self, job: Job) -> "Signature | None":
        tasks = self._queue.tasks
        task = None if tasks is None or job.task is None else tasks.get(job.task)
        return None if task is None else task.signature
