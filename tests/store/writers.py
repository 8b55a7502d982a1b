"""Processes that write a store, for the tests of its single writer: started, given orders, killed."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["LIMIT_S", "Writer", "writer", "writers"]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0


class Writer:
    """A process of writer_child.py; `said` is its first line: "open", or the error as JSON, or "" if it was killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.pid = process.pid
        self.said = ""

    @property
    def is_open(self) -> bool:
        """Whether it opened the store."""
        return self.said == "open"

    @property
    def error(self) -> dict[str, Any]:
        """Why it did not."""
        found: dict[str, Any] = json.loads(self.said)
        return found

    async def line(self) -> str:
        """Its next line; "" when it has ended."""
        assert self._process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            return (await self._process.stdout.readline()).decode().strip()

    async def ask(self, command: str) -> str:
        """Send it a command; gives its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        return await self.line()

    async def kill(self) -> None:
        """Kill -9; returns when it is gone."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

    async def wait(self) -> int:
        """Wait for its end."""
        async with asyncio.timeout(LIMIT_S):
            return await self._process.wait()


@asynccontextmanager
async def writers(url: str, *words: str, count: int) -> AsyncIterator[list[Writer]]:
    """So many processes, started at the same moment, when each has reported its opening; killed in the end."""
    command = [sys.executable, str(ROOT / "tests/store/writer_child.py"), url, *words]
    pipe, environment = asyncio.subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    found = [
        Writer(await asyncio.create_subprocess_exec(*command, env=environment, stdin=pipe, stdout=pipe))
        for _ in range(count)
    ]
    try:
        for one in found:
            one.said = await one.line()
        yield found
    finally:
        for one in found:
            await one.kill()


@asynccontextmanager
async def writer(url: str, *words: str) -> AsyncIterator[Writer]:
    """One of them."""
    async with writers(url, *words, count=1) as (one,):
        yield one
