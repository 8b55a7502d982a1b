"""Tasks that run in the call of `enqueue`, without a queue: for tests."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.entropy import SystemEntropy, job_id_bytes, new_job_id
from ledgerq.eventlog.errors import JobFailed
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.terms import Terms, encode_terms
from ledgerq.worker.claims import Claim
from ledgerq.worker.engine.core import DEFAULT_OPTIONS
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob
from ledgerq.worker.outcomes import plain_text
from ledgerq.worker.tasks.calling import Middleware, call_task
from ledgerq.worker.tasks.handle import Handle

if TYPE_CHECKING:
    from ledgerq.worker.tasks.task import Definition

__all__ = ["InlineHandle", "InlineRun"]

R_co = TypeVar("R_co", covariant=True)


class InlineHandle(Handle[R_co]):
    """The handle of a job that was run inline: its result, or what it raised, is there."""

    def __init__(self, job_id: str, value: R_co | None, error: Exception | None) -> None:
        self.job_id = job_id
        self.created = True
        self._value = value
        self._error = error

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109
        """What the task returned; raises `JobFailed` from what it raised."""
        if self._error is not None:
            raise JobFailed(self.job_id, type(self._error).__name__, plain_text(self._error)) from self._error
        return self._value  # type: ignore[return-value]


class InlineRun(NamedTuple):
    """How tasks are run inline: within which middleware, and with which `job.state`."""

    middleware: Sequence[Middleware]
    state: Any

    async def run(self, definition: "Definition", job: NewJob) -> InlineHandle[Any]:
        """Run the task of a job once; its arguments and its result are turned into JSON and back."""
        now_ms, entropy = SystemClock().now_ms(), SystemEntropy()
        claim = Claim(
            definition.queue,
            new_job_id(now_ms, entropy) if job.job_id is None else job_id_bytes(job.job_id),
            0,
            1,
            job.max_attempts or DEFAULT_OPTIONS.max_attempts,
            DEFAULT_OPTIONS.priority if job.priority is None else job.priority,
            now_ms,
            0,
            now_ms,
            PayloadRecord(b"", dict(job.headers or {}), job.payload),
            encode_terms(Terms(definition.name)),
        )
        context = JobContext(claim, _call)
        context.state = self.state
        try:
            result = await call_task(definition, self.middleware, context)
            return InlineHandle(claim.job_id, definition.signature.decode_result(result), None)
        except Exception as error:
            return InlineHandle(claim.job_id, None, error)


async def _call(function: Callable[[], Any]) -> Any:
    return function()
