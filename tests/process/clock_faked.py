"""Processes under a clock that the test sets: libfaketime (Debian: `faketime`), preloaded.

It stands between a process and the kernel for Python's `time` and for Rust's, too. The clock that can't be set, by
which event loops wait, stays as it is.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.process.kills import ROOT
from tests.support.cli_rig import Ran

__all__ = ["Answers", "FakedClock", "Refused", "needs_faketime"]

_FOLDERS: Final = ("/usr/lib", "/usr/local/lib")
LIBRARY: Final = next((path for folder in _FOLDERS for path in Path(folder).rglob("libfaketimeMT.so.1")), None)
ANSWER_LIMIT_S: Final = 40.0

needs_faketime = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed (Debian: faketime)")


class Refused(Exception):
    """What a child's call raised: the error's name, then its message."""


class Answers:
    """A child (clock_child.py) that answers."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: Path) -> None:
        self._process = process
        self._stderr = stderr

    def __getattr__(self, what: str) -> Any:
        async def ask(*arguments: Any) -> Any:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(json.dumps([what, *arguments]).encode() + b"\n")
            async with asyncio.timeout(ANSWER_LIMIT_S):
                line = await self._process.stdout.readline()
            assert line, self.says()
            answer = json.loads(line)
            if "error" in answer:
                raise Refused(answer["error"], answer["says"])
            return answer["answer"]

        return ask

    def says(self) -> str:
        """What it wrote to its standard error."""
        return self._stderr.read_text()


class FakedClock:
    """A clock for processes; in step with the real one at first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "faketime"
        self.set("+0")

    def set(self, time: str) -> None:
        """Set it: "+3d" or "-3d" against the real one, or "@1980-01-01 00:00:00" to go on from there (UTC)."""
        new = self._file.with_suffix(".new")
        new.write_text(time + "\n")
        new.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with to be under this clock."""
        return os.environ | {
            "PYTHONPATH": str(ROOT),
            "TZ": "UTC",
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    async def command(self, program: str, *arguments: object) -> Ran:
        """Run `ledgerq` or `rebuild-projections` under this clock."""
        entry = {"ledgerq": "main", "rebuild-projections": "rebuild_main"}[program]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", f"from ledgerq.tools.cli.app import {entry}; {entry}()", *map(str, arguments)),
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Ran(process.returncode, out.decode(), err.decode())

    @asynccontextmanager
    async def child(self, url: str, *, lease_s: float = 30.0) -> AsyncIterator[Answers]:
        """A child with a queue that is still to be opened."""
        stderr = self._folder / "clock-stderr"
        with stderr.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, str(ROOT / "tests/process/clock_child.py"), url, str(lease_s)),
                env=self.environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
            )
        try:
            yield Answers(process, stderr)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
