"""The handles of the soak's processes under load: started, given orders, read from, killed."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from ledgerq.tools.console.child_process import start_module
from ledgerq.tools.console.output import shorten

__all__ = ["Process", "SoakFailed"]

_ANSWER_LIMIT_S: Final = 120.0
_END_LIMIT_S: Final = 10.0
_ERROR_CHARS: Final = 400
# The C library keeps up to 8 heaps a core, and each queue opened in a process has threads that leave holes in others of
# them: memory that creeps upward for an hour and is no leak. With two it shows what is kept. Your setting goes first.
_FEW_HEAPS: Final = {"MALLOC_ARENA_MAX": "2"}

Listener = Callable[["Process", dict[str, Any]], Awaitable[None]]


class SoakFailed(Exception):
    """The soak can't go on, for the reason in the text."""


class Process:
    """One process that runs child.py. Its samples go to a listener."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, errors: Path, listen: Listener) -> None:
        """Use `start`."""
        self.name = name
        self.pid = process.pid
        self._process = process
        self._errors = errors
        self._listen = listen
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, name: str, folder: Path, arguments: list[str], listen: Listener) -> "Process":
        """Start one; what it writes to stderr goes to a file in `folder`."""
        errors = folder / f"{name}.log"
        process = await start_module("tests.soak.child", arguments, folder=folder, errors=errors, defaults=_FEW_HEAPS)
        return cls(process, name, errors, listen)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                news = json.loads(line)
                if "sample" in news:
                    await self._listen(self, news["sample"])
                else:
                    self._answers.put_nowait(news)
        finally:
            self._answers.put_nowait(None)

    def order(self, name: str, **arguments: Any) -> None:
        """Give an order; `answer` waits for its result."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": name, **arguments}).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """The answer to the next order. Raises `SoakFailed` when it failed, or the process ended or hangs."""
        try:
            async with asyncio.timeout(_ANSWER_LIMIT_S):
                found = await self._answers.get()
        except TimeoutError:
            raise SoakFailed(f"process {self.name} gave no answer within {_ANSWER_LIMIT_S:g} s") from None
        if found is None:
            await self._reading
            await self._process.wait()
            raise SoakFailed(
                f"process {self.name} ended with exit code {self._process.returncode}: {self.last_words()}"
            )
        if "failed" in found:
            raise SoakFailed(f"process {self.name}: {found['failed']}")
        return found

    async def do(self, name: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and wait for its answer."""
        self.order(name, **arguments)
        return await self.answer()

    async def kill(self) -> None:
        """SIGKILL. Raises `SoakFailed` when it had ended before."""
        if self._process.returncode is None:
            self._process.kill()
        code = await self._process.wait()
        await self._reading
        if code != -signal.SIGKILL:
            raise SoakFailed(
                f"process {self.name} ended with exit code {code} before it was killed: {self.last_words()}"
            )

    def check(self) -> None:
        """Raise `SoakFailed` when it has ended by itself."""
        if self._reading.done():
            self._reading.result()
        if self._process.returncode is not None:
            raise SoakFailed(
                f"process {self.name} ended with exit code {self._process.returncode}: {self.last_words()}"
            )

    async def stop(self) -> None:
        """Let it end by itself, and kill it when it doesn't."""
        if self._process.returncode is None:
            self.order("end")
            try:
                async with asyncio.timeout(_END_LIMIT_S):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await self._reading

    def last_words(self) -> str:
        """The last line of what it wrote to stderr."""
        lines = self._errors.read_text("utf-8", "replace").split("\n")
        return shorten(next((line for line in reversed(lines) if line.strip()), "it left no message"), _ERROR_CHARS)

    def complaints(self) -> list[str]:
        """All that it wrote to stderr: a process that is well writes nothing."""
        return [line for line in self._errors.read_text("utf-8", "replace").split("\n") if line.strip()]
