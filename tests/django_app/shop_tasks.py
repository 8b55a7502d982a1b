"""Tasks of Django for the tests of its backend."""

from typing import Any

from ledgerq.tools.django.tasks_api import _part
from ledgerq.worker.outcomes import Dead, Snooze

task: Any = _part("").task
ran: list[Any] = []


class Refused(Exception):
    """An exception of the program's own."""


@task
def add(a: int, b: int) -> int:
    """A plain task."""
    ran.append((a, b))
    return a + b


@task
async def aadd(a: int, b: int) -> dict[str, int]:
    """An async task."""
    return {"sum": a + b}


@task
def refuse(text: str) -> None:
    """A task that fails each time."""
    raise Refused(text)


@task(takes_context=True)
def second(context: Any, name: str) -> list[Any]:
    """A task whose second try goes well."""
    if context.attempt < 2:
        raise LookupError(name)
    return [name, context.attempt, [error.exception_class.__name__ for error in context.task_result.errors]]


@task
def bury() -> None:
    """A task that can never succeed."""
    raise Dead("no such address")


@task
def put_off() -> None:
    """A task that is not done now."""
    raise Snooze(3600)


@task
def unkeepable() -> object:
    """A task whose result JSON can't hold."""
    return object()


@task
def enqueue_another(a: int) -> str:
    """A task that enqueues one itself."""
    return str(add.enqueue(a, b=a).id)


def no_task() -> None:
    """A function of the same module."""
