"""The call of a task for one job, within middleware."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ledgerq.worker.detached import TaskFunction
from ledgerq.worker.execution import JobContext

if TYPE_CHECKING:
    from ledgerq.worker.tasks.task import Definition

__all__ = ["CallNext", "Middleware", "call_task"]

CallNext = Callable[[JobContext], Awaitable[Any]]
"""The rest of a try: what a middleware awaits for what the task returns."""

Middleware = Callable[[JobContext, CallNext], Awaitable[Any]]
"""A function around each try."""


async def call_task(definition: "Definition", middleware: Sequence[Middleware], job: JobContext) -> bytes | None:
    """Call a task for its job, within middleware; returns its result as JSON."""

    async def innermost(job: JobContext) -> Any:
        function = definition.function
        call = definition.signature.call(function, job.payload, job)
        detached = TaskFunction(function.__module__, function.__qualname__)
        returned = call() if definition.is_async else await job.in_thread(call, detached)
        return await returned if inspect.isawaitable(returned) else returned

    call_next: CallNext = innermost
    for one in reversed(middleware):
        call_next = partial(_within, one, call_next)
    return definition.signature.encode_result(await call_next(job))


def _within(middleware: Middleware, call_next: CallNext, job: JobContext) -> Awaitable[Any]:
    return middleware(job, call_next)
