"""The handle of a worker process of the demo, which runs worker_program.py: it is started, read from, killed."""

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from ledgerq.tools.console.child_process import start_module
from ledgerq.tools.console.output import shorten

__all__ = ["Child", "DemoFailed", "started"]

_LIMIT_S: Final = 120.0
_ERROR_CHARS: Final = 300

Listener = Callable[[dict[str, Any]], None]


class DemoFailed(Exception):
    """A step of the demo did not come out as it should; the text is what."""


class Child:
    """One running worker process."""

    def __init__(self, process: asyncio.subprocess.Process, errors: Path) -> None:
        self._process = process
        self._errors = errors
        self.pid = process.pid

    async def until_held(self, listen: Listener) -> int:
        """Wait until its handlers hang; returns how many claims it holds then."""
        async for news in self._news():
            listen(news)
            if "held" in news:
                held: int = news["held"]
                return held
        raise await self._broken("ended before it could be killed")

    async def kill(self) -> None:
        """Kill it by SIGKILL: it can't close, flush or write anything."""
        self._process.kill()
        if await self._process.wait() != -signal.SIGKILL:
            raise await self._broken("ended before it could be killed")

    async def until_done(self, listen: Listener) -> None:
        """Wait until it has finished all jobs and closed the store."""
        async for news in self._news():
            listen(news)
        if await self._process.wait() != 0:
            raise await self._broken(f"ended with exit code {self._process.returncode}")

    async def _news(self) -> AsyncIterator[dict[str, Any]]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(_LIMIT_S):
                while line := await self._process.stdout.readline():
                    yield json.loads(line)
        except TimeoutError:
            raise DemoFailed(f"worker process {self.pid} did not come to its end within {_LIMIT_S:g} s") from None

    async def _broken(self, what: str) -> DemoFailed:
        await self._process.wait()
        lines = self._errors.read_text("utf-8", "replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it left no message")
        return DemoFailed(f"worker process {self.pid} {what}: {shorten(last, _ERROR_CHARS)}")


@asynccontextmanager
async def started(scratch: Path, arguments: Sequence[str]) -> AsyncIterator[Child]:
    """Start a worker process with these arguments; it outlives neither this block nor the demo."""
    errors = scratch / "worker.log"
    process = await start_module("ledgerq.tools.demo.worker_program", arguments, folder=scratch, errors=errors)
    try:
        yield Child(process, errors)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
