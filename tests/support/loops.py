"""Letting other tasks run, by a bounded number of turns of the event loop and never by waiting for time to pass."""

import asyncio
from collections.abc import Callable

__all__ = ["settle", "until"]

_TURNS = 60


async def settle(turns: int = _TURNS) -> None:
    """Give every task that can run its turn. On a store in memory nothing takes longer than a few turns."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], turns: int = 10_000) -> None:
    """Let tasks run until `condition` holds; fails when it still doesn't after `turns` turns of the loop."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("what was waited for did not happen")
