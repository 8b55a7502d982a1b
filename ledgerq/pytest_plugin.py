"""A plugin for pytest, for those who ask for it: `pytest_plugins = ["ledgerq.pytest_plugin"]` in their conftest.py.

It has the fixture `ledgerq_queue`, a `MemoryQueue` for the tasks that a fixture of theirs, `ledgerq_tasks`, returns.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import pytest

from ledgerq.worker.tasks.memory_queue import MemoryQueue, memory_queue
from ledgerq.worker.tasks.registry import Tasks

__all__ = ["ledgerq_queue", "ledgerq_tasks"]

FixtureT = TypeVar("FixtureT", bound=Callable[..., Any])


try:
    import pytest_asyncio

    _made: Any = pytest_asyncio.fixture
except ImportError:  # anyio's plugin takes the fixtures of pytest itself
    _made = pytest.fixture
_async_fixture: Callable[[FixtureT], FixtureT] = _made


@pytest.fixture
def ledgerq_tasks() -> Tasks:
    """The tasks of the program under test: define a fixture of this name that returns them."""
    raise pytest.UsageError("define a fixture `ledgerq_tasks` that returns the Tasks of your program")


@_async_fixture
async def ledgerq_queue(ledgerq_tasks: Tasks) -> AsyncIterator[MemoryQueue]:
    """A queue in memory, with a clock that stands still: `await ledgerq_queue.drain()` runs its jobs."""
    async with memory_queue(ledgerq_tasks) as queue:
        yield queue
