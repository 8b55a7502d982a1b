"""A process whose writes to a store are recorded: load until so many facts are reported, a rebuild, a copy.

    python -m tests.power_cut.load_child FOLDER ASK

The store is FOLDER/disk/store; what was promised goes to FOLDER/facts, and what begins or is done to FOLDER/marks, so
both are seen in the recording. ASK is JSON; what may be asked for is in `Ask`.
"""

import asyncio
import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, TypedDict

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.stores import open_store
from ledgerq.tools.cli.app import run
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.process.kill_child import Load, open_facts
from tests.process.kill_zygote import BRISK, damage_indexes

__all__ = ["Ask", "rebuild_command"]


class Ask(TypedDict, total=False):
    """`task`: load, damage, rebuild or copy. A load ends after `facts` with a kill, or is closed if it `closes`.

    `past`: how far its clock is behind, as libfaketime takes it.
    """

    task: str
    seed: int
    facts: int
    closes: bool
    is_brisk: bool
    past: str
    store: dict[str, Any]


class CountedLoad(Load):
    """Load that notices when enough was reported."""

    def __init__(self, queue: Queue, facts_fd: int, seed: int, facts: int) -> None:
        super().__init__(queue, facts_fd, seed)
        self.enough = asyncio.Event()
        self._left = facts

    def report(self, *facts: str) -> None:
        """Report, and count."""
        super().report(*facts)
        self._left -= len(facts)
        if self._left <= 0:
            self.enough.set()


def mark(folder: Path, text: str) -> None:
    """Note something in the recording."""
    fd = os.open(folder / "marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, text.encode() + b"\n")
    os.close(fd)


def rebuild_command(url: str, *more: str) -> tuple[int, str]:
    """`rebuild-projections` as people run it: its exit code and its stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = run(["rebuild-projections", url, *more, "--actor", "ann", "--reason", "a test"])
    return code, said.getvalue().strip()


async def load(folder: Path, url: str, ask: Ask) -> None:
    """Mixed load, then a kill or a close."""
    options = BRISK if ask.get("is_brisk") else QueueOptions(backoff_base_s=0.01, lease_s=60.0)
    store_options = StoreOptions(**ask["store"]) if "store" in ask else None
    mark(folder, "opening")
    queue = await Queue.open(url, default=options, ready_window=50, store_options=store_options)
    made = CountedLoad(queue, open_facts(folder), ask["seed"], ask["facts"])
    running = asyncio.create_task(made.run())
    enough = asyncio.create_task(made.enough.wait())
    await asyncio.wait({running, enough}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    if not ask.get("closes"):
        os.kill(os.getpid(), signal.SIGKILL)
    mark(folder, "closing")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await queue.close()
    mark(folder, "done")


async def damage(url: str, seed: int) -> None:
    """Harm the indexes."""
    store = await open_store(url, clock=SystemClock(), create=False)
    try:
        await damage_indexes(store, seed)
    finally:
        await store.close()


def main() -> None:
    """Do as asked."""
    folder, ask = Path(sys.argv[1]), json.loads(sys.argv[2])
    url = (folder / "disk" / "store").as_uri()
    if ask["task"] == "load":
        asyncio.run(load(folder, url, ask))
    elif ask["task"] == "damage":
        asyncio.run(damage(url, ask["seed"]))
    else:
        mark(folder, "rebuilding")
        more = ("--take-over",) if ask["task"] == "rebuild" else ("--into", (folder / "disk" / "new").as_uri())
        code, said = rebuild_command(url, *more)
        assert code == 0, said
        mark(folder, "done")


if __name__ == "__main__":
    main()
