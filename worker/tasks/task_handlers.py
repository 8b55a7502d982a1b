"""The handlers that a worker runs for tasks, chosen by the task that a job names."""

from typing import Any, Final

from ledgerq.eventlog.errors import FormatTooNew
from ledgerq.eventlog.terms import JSON, decode_terms
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import Handler, JobContext
from ledgerq.worker.outcomes import TaskMissing
from ledgerq.worker.tasks.calling import call_task
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.tasks.task import Definition

__all__ = ["TaskHandlers"]

# After so long another worker, or a newer version of this one, may know the task.
_MISSING_DELAY_S: Final = 60.0


class TaskHandlers:
    """The handlers of one worker; `state` is what its tasks' lifespan yielded."""

    def __init__(self, tasks: Tasks) -> None:
        self.state: Any = None
        self._tasks = tasks
        self._handlers: dict[str, Handler] = {}

    def of_queues(self) -> dict[str, Handler]:
        """The handler of each queue that has tasks, in the order of these: it chooses the task's by the claim."""
        self._handlers = {task.name: self._handler(task.definition) for task in self._tasks}
        return {
            task.queue: Handler(task.queue, _give_back, None, True, f"ledgerq-{task.queue}", choose=self._choose)
            for task in self._tasks
        }

    def _handler(self, definition: Definition) -> Handler:
        async def function(job: JobContext) -> bytes | None:
            job.state = self.state
            return await call_task(definition, self._tasks.middleware, job)

        return Handler(
            definition.queue,
            function,
            definition.timeout_ms,
            True,
            f"ledgerq-{definition.name}",
            keeps_result=True,
            retry=definition.retry,
        )

    def _choose(self, claim: Claim) -> Handler:
        handler = None
        if claim.terms is not None:
            try:
                terms = decode_terms(claim.terms)
            except (FormatTooNew, ValueError):  # of a newer version, or damaged
                terms = None
            if terms is not None and terms.content_type == JSON:
                handler = self._handlers.get(terms.task)
        return handler or Handler(claim.queue, _give_back, None, True, f"ledgerq-{claim.queue}")


async def _give_back(job: JobContext) -> None:
    """Give a job back that this worker can't do: while a new version is rolled out another one can."""
    try:
        task = job.task
        what = "its job names no task" if task is None else f"this worker knows no task {task!r} with such arguments"
    except (FormatTooNew, ValueError) as error:
        what = str(error)
    raise TaskMissing(_MISSING_DELAY_S, f"{what}; due again in {_MISSING_DELAY_S:g} s, the try not counted")
