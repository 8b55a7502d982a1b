"""The worker of Django's tasks: each runs in a thread, with the database connections of that thread."""

import json
from collections.abc import Callable
from typing import Any

from django.db import close_old_connections, reset_queries
from django.utils import timezone

from ledgerq.tools.django.task_results import Found, decode_call, error_of, loaded_task, moment, read_job, result_of
from ledgerq.tools.django.tasks_api import TaskContext, TaskResult, TaskResultStatus, normalize_json, signals
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import ArgumentsDontFit, Dead, ResultDoesntFit, Retry, Snooze, TaskMissing, error_text
from ledgerq.worker.sync.sync_queue import Queue

__all__ = ["TaskRunner"]

# After so long another worker, or a newer version of this one, may have the task.
_MISSING_DELAY_S = 60.0


class TaskRunner:
    """The handler of all queues of a backend: it runs the task that a job names."""

    def __init__(self, backend: Any, queue: Queue, worker_name: str) -> None:
        self._backend = backend
        self._queue = queue
        self._name = worker_name

    def __call__(self, job: JobContext) -> bytes | None:
        """Run the task of a job in this thread; returns what it returned, as JSON."""
        reset_queries()
        close_old_connections()
        try:
            return self._run(job)
        finally:
            close_old_connections()

    def _run(self, job: JobContext) -> bytes | None:
        try:
            if job.task is None:
                raise ImportError("its job names no task")
            task = loaded_task(job.task)
        except ImportError as error:
            words = f"{error}; due again in {_MISSING_DELAY_S:g} s, the try not counted"
            raise TaskMissing(_MISSING_DELAY_S, words) from error
        result = self._begun(job, task)
        sender = type(self._backend)
        signals.task_started.send(sender=sender, task_result=result)
        call: Callable[..., Any] = task.call
        try:
            context = (TaskContext(task_result=result),) if task.takes_context else ()
            returned = _encoded(task, call(*context, *result.args, **result.kwargs))
        except BaseException as error:
            self._failed(job, result, error)
            raise
        object.__setattr__(result, "finished_at", timezone.now())
        object.__setattr__(result, "status", TaskResultStatus.SUCCESSFUL)
        object.__setattr__(result, "_return_value", None if returned is None else json.loads(returned))
        signals.task_finished.send(sender=sender, task_result=result)
        return returned

    def _begun(self, job: JobContext, task: Any) -> Any:
        """The result of the task as it begins; of a later try it has the earlier ones."""
        try:
            args, kwargs = decode_call(job.payload)
        except ValueError as error:
            raise ArgumentsDontFit(f"the job holds no call of task {job.task!r}: {error}") from error
        alias = self._backend.alias
        if job.attempt > 1:
            queue = self._queue
            found: Found = queue._owner.wait(lambda: read_job(queue.asynchronous, job.job_id), "")
            return result_of(found, alias)
        now = timezone.now()
        return TaskResult(
            task=task.using(queue_name=job.queue, backend=alias),
            id=job.job_id,
            status=TaskResultStatus.RUNNING,
            enqueued_at=moment(job.enqueued_ms),
            started_at=now,
            finished_at=None,
            last_attempted_at=now,
            args=args,
            kwargs=kwargs,
            backend=alias,
            errors=[],
            worker_ids=[self._name],
        )

    def _failed(self, job: JobContext, result: Any, error: BaseException) -> None:
        """Send that the task has failed, unless another try follows."""
        is_last = isinstance(error, Dead) or job.attempt >= job.max_attempts
        if isinstance(error, Snooze) or not is_last:
            return
        text = str(error) if isinstance(error, Dead | Retry) else error_text(error)
        result.errors.append(error_of(type(error).__name__, text))
        object.__setattr__(result, "finished_at", timezone.now())
        object.__setattr__(result, "status", TaskResultStatus.FAILED)
        signals.task_finished.send(sender=type(self._backend), task_result=result)


def _encoded(task: Any, value: Any) -> bytes | None:
    """What a task returned, as JSON; raises `ResultDoesntFit`."""
    if value is None:
        return None
    try:
        return json.dumps(normalize_json(value), separators=(",", ":")).encode()
    except (TypeError, ValueError) as error:
        raise ResultDoesntFit(f"task {task.module_path!r} returned what JSON can't hold: {error}") from error
