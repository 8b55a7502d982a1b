"""Command lines run in this process, and ledgers for them to read."""

import asyncio
import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.stores import open_store
from ledgerq.tools.cli.app import run
from ledgerq.worker.queue import Queue

__all__ = ["BASE_MS", "Cli", "Ledger", "Ran", "change_rows", "live_queue", "make_ledger"]

BASE_MS = 1_700_000_000_000


class Ran(NamedTuple):
    """The result of a command line."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """The JSON objects on stdout, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def message(self) -> str:
        """The one line on stderr."""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.rstrip("\n")


class Cli:
    """The runner, called with a command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *argv: object, stdin: bytes = b"", program: str = "ledgerq") -> Ran:
        self._capsys.readouterr()
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run([str(argument) for argument in argv], program=program)
        return Ran(code, *self._capsys.readouterr())

    def ok(self, *argv: object, **more: Any) -> Ran:
        """Run a command line that must succeed."""
        ran = self(*argv, **more)
        assert ran.code == 0, ran
        return ran

    def fails(self, code: int, *argv: object, **more: Any) -> str:
        """Run one that must fail with this code, one line on stderr and nothing on stdout; gives the line."""
        ran = self(*argv, **more)
        assert (ran.code, ran.out) == (code, ""), ran
        return ran.message


class Ledger(NamedTuple):
    """A store on files, and the jobs in it."""

    url: str
    done: str
    dead: str
    pending: str
    scheduled: str


async def make_ledger(folder: Path) -> Ledger:
    """A closed store of 2023 with one job in each of four states (queue mail), and a paused queue."""
    clock = ManualClock(BASE_MS)
    async with Queue.open(str(folder), clock=clock, entropy=SeededEntropy(1)) as queue:
        done = await queue.enqueue("mail", b"text", headers={"kind": "letter"})
        dead = await queue.enqueue("mail", b"\xff\x00")
        clock.advance(seconds=1)
        (first,) = await queue.claim("mail", worker="w1")
        await queue.ack(first)
        (second,) = await queue.claim("mail")
        await queue.nack(second, "Traceback:\n  \x1b[31mboom", dead=True)
        clock.advance(seconds=1)
        pending = await queue.enqueue("mail", b"later", priority=7)
        scheduled = await queue.enqueue("mail", b"", delay=60, unique_key="key", max_attempts=9)
        await queue.pause("other", actor="ann", reason="a holiday")
    return Ledger(str(folder), done.job_id, dead.job_id, pending.job_id, scheduled.job_id)


async def change_rows(url: str, changes: dict[bytes, bytes | None]) -> None:
    """Damage a store: set rows, or remove them."""
    store = await open_store(url, clock=SystemClock(), create=False)
    batch = store.batch()
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    await store.write(batch)
    await store.close()


@contextmanager
def live_queue(url: str) -> Iterator[tuple["asyncio.Runner", Queue]]:
    """A queue in this process that stays open, and the runner of its loop, which stands still in between."""
    with asyncio.Runner() as runner:

        async def opened() -> Queue:
            return await Queue.open(url)

        queue = runner.run(opened())
        try:
            yield runner, queue
        finally:
            runner.run(queue.close())
