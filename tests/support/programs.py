"""The command line as a program of its own that serves metrics: started, scraped, stopped, killed."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.web import Answer, ask

__all__ = ["LIMIT_S", "ROOT", "Program", "program"]

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0
POLL_S = 0.005
SERVES = re.compile(r"^ledgerq: metrics .*http://[^ ]*:(\d+)/metrics\n", re.MULTILINE)


class Program(NamedTuple):
    """A running program that has printed its address. Its output goes to a file: a full pipe would stop it."""

    process: asyncio.subprocess.Process
    port: int
    stderr: Path

    async def ask(self, path: str = "/metrics", **fields: str) -> Answer:
        """Make one request to it."""
        return await ask(self.port, path, **fields)

    async def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; gives the exit code, and the stderr since it served."""
        self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> tuple[int, str]:
        """Wait until it has ended by itself; gives the same."""
        async with asyncio.timeout(LIMIT_S):
            code = await self.process.wait()
        text = self.stderr.read_text()
        found = SERVES.search(text)
        assert found is not None
        return code, text[found.end() :]


@asynccontextmanager
async def program(*argv: str, folder: Path) -> AsyncIterator[Program]:
    """`ledgerq` with these arguments in `folder`, once it serves; it is killed in the end, if it still runs."""
    stderr = folder / "stderr"
    with stderr.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "ledgerq.tools.cli", *argv),
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=said,
        )
    try:
        async with asyncio.timeout(LIMIT_S):
            while (found := SERVES.search(stderr.read_text())) is None and process.returncode is None:
                await asyncio.sleep(POLL_S)
        assert found is not None, stderr.read_text()
        yield Program(process, int(found[1]), stderr)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
