"""The tasks of the shop."""

from typing import Any

try:
    from django.tasks import task
except ImportError:  # Django before 6.0, with the package django-tasks
    from django_tasks import task


@task(queue_name="mail", priority=10, takes_context=True)
def confirm(context: Any, order: int) -> str:
    """Confirm an order by mail."""
    return f"order {order} confirmed at try {context.attempt}"


@task
async def count(words: list[str]) -> dict[str, int]:
    """Count words."""
    return {word: words.count(word) for word in words}
