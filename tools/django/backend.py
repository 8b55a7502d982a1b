"""The backend of Django's tasks: each is a job whose task is the function's module path."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.django.connections import Place, found_queue, opened_queue
from ledgerq.tools.django.task_results import NO_PRIORITY, encode_call, read_job, result_of
from ledgerq.tools.django.tasks_api import BaseTaskBackend, TaskResult, TaskResultStatus, signals
from ledgerq.worker.sync.blocking import refuse_loop
from ledgerq.worker.sync.sync_queue import Queue

__all__ = ["LedgerqBackend"]


class LedgerqBackend(BaseTaskBackend):  # type: ignore[misc]
    """A backend that enqueues to ledgerq, in the settings:

    TASKS = {
        "default": {
            "BACKEND": "ledgerq.tools.django.backend.LedgerqBackend",
            "QUEUES": ["default", "mail"],
            "OPTIONS": {"url": BASE_DIR / "jobs"},
        }
    }

    OPTIONS: `url`, of a store or of a service (`http://...`, with `token`); `max_attempts` of each job; `default` and
    `queues`, options of queues as `Queue.open` has them; `share`: whether all processes open the store, as one in a
    folder is unless this is False; `wait`: seconds for a store that another process has open by itself.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: Mapping[str, Any]) -> None:
        super().__init__(alias, params)
        options = dict(self.options)
        self.max_attempts: int | None = options.pop("max_attempts", None)
        """The tries of each job; None: as its queue has it."""
        try:
            self.place = Place.of(options)
        except (InvalidArgument, TypeError) as error:
            raise ImproperlyConfigured(f"TASKS[{alias!r}]['OPTIONS']: {error}") from error

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Add a job; it is durable when this returns. It knows nothing of the database's transaction."""
        refuse_loop("use `await task.aenqueue(...)`")
        result, add = self._new(task, args, kwargs)
        queue = opened_queue(self.place)
        added = queue._owner.wait(lambda: add(queue.asynchronous), "")
        object.__setattr__(result, "id", added.job_id)
        signals.task_enqueued.send(type(self), task_result=result)
        return result

    async def aenqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The same for async views; it takes no thread."""
        result, add = self._new(task, args, kwargs)
        queue = await self._aopened()
        added = await asyncio.wrap_future(queue._owner.start(lambda: add(queue.asynchronous)))
        object.__setattr__(result, "id", added.job_id)
        await signals.task_enqueued.asend(type(self), task_result=result)
        return result

    def _new(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Callable[[Any], Any]]:
        """The result of a call that is not enqueued yet, and what enqueues it to a queue."""
        self.validate_task(task)
        result = TaskResult(
            task=task,
            id="",
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        payload, run_at = encode_call(result.args, result.kwargs), task.run_after
        if run_at is not None and timezone.is_naive(run_at):
            run_at = timezone.make_aware(run_at)

        def add(queue: Any) -> Any:
            return queue.enqueue(
                task.queue_name,
                payload,
                task=task.module_path,
                priority=NO_PRIORITY - task.priority,
                run_at=run_at,
                max_attempts=self.max_attempts,
            )

        return result, add

    def get_result(self, result_id: str) -> Any:
        """What became of a job, until its record is swept; raises `TaskResultDoesNotExist`."""
        refuse_loop("use `await task.aget_result(...)`")
        queue = opened_queue(self.place)
        return result_of(queue._owner.wait(lambda: read_job(queue.asynchronous, result_id), ""), self.alias)

    async def aget_result(self, result_id: str) -> Any:
        """The same for async views."""
        queue = await self._aopened()
        found = await asyncio.wrap_future(queue._owner.start(lambda: read_job(queue.asynchronous, result_id)))
        return result_of(found, self.alias)

    async def _aopened(self) -> Queue:
        if (queue := found_queue(self.place)) is not None:
            return queue
        return await asyncio.to_thread(opened_queue, self.place)

    def check(self, **kwargs: Any) -> list[Any]:
        """The checks of Django: a store that ends with its process loses its jobs."""
        if not self.place.url.startswith("memory:"):
            return []
        hint = "Give a folder, as in {'url': BASE_DIR / 'jobs'}."
        return [checks.Warning(f"TASKS[{self.alias!r}] keeps its jobs in memory.", hint=hint, id="ledgerq.W001")]
