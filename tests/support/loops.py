"""Letting tasks run and limits end: by turns of the event loop and its clock, never by waiting for time to pass."""

import asyncio
from collections.abc import Callable

import pytest

__all__ = ["set_forward", "settle", "until"]

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


def set_forward(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Put the running loop's clock forward: what has waited for less by now has reached its limit, on any machine."""
    loop = asyncio.get_running_loop()
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + seconds)
