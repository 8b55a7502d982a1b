"""Queues in a bucket, for tests: a load in this process, proving what is there, putting back an older copy of it."""

import asyncio
import os
from pathlib import Path
from typing import Any

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.worker.queue import Queue
from tests.process.kill_child import PRODUCERS, WORKERS, Load
from tests.process.kills import Facts, open_and_check

__all__ = ["Copy", "MixedLoad", "audit_deeply", "check_everything"]

_TRIES = 10
_POLL_S = 0.002


class MixedLoad:
    """The load of process/kill_child.py on a queue of this process; its facts go to the same kind of file."""

    def __init__(self, queue: Queue, facts: Facts, folder: Path, seed: int) -> None:
        """Begin at once."""
        self._facts = facts
        self._fd = os.open(folder / "facts", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        load = Load(queue, self._fd, seed)
        work = [*(load.produce() for _ in range(PRODUCERS)), *(load.work(f"worker-{i}") for i in range(WORKERS))]
        self._tasks = [asyncio.create_task(run) for run in [*work, load.operate()]]

    async def report(self, more_bytes: int, limit_s: float) -> None:
        """Wait until so many bytes more of facts are there; no process may have met an error until then."""
        wanted_bytes = self._facts.size_bytes + more_bytes
        async with asyncio.timeout(limit_s):
            while self._facts.size_bytes < wanted_bytes:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(_POLL_S)

    async def ends(self, limit_s: float) -> list[BaseException | None]:
        """How each of them ended, once all have by themselves."""
        async with asyncio.timeout(limit_s):
            ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._fd)
        return ends

    async def stop(self) -> None:
        """Leave each where it is: what it was waiting for may happen or not, and it is not reported."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        os.close(self._fd)


async def check_everything(url: str, facts: Facts) -> None:
    """Everything that was reported holds, the indexes are the fold, and the audit is clean."""
    facts.read()
    fold = await open_and_check(url, facts)
    assert (await audit_deeply(url)).jobs == len(fold.jobs)


async def audit_deeply(url: str) -> AuditReport:
    """Audit one commit of the store, payloads too; it must be clean.

    A view that moved on while it was being pinned says so, and is opened again.
    """
    for left in reversed(range(_TRIES)):
        reader = await open_reader(url, pinned=True)
        try:
            report = await audit(reader, clock=SystemClock(), deep=True)
        except StoreUnavailable:
            if not left:
                raise
            continue
        finally:
            await reader.close()
        assert report.clean, report.differences[:5]
        return report
    raise AssertionError


class Copy:
    """A copy of all objects under a prefix, as they were when it was made."""

    def __init__(self, bucket: str, prefix: str) -> None:
        # It comes with moto, without which these tests are skipped.
        import boto3

        self._client: Any = boto3.client("s3")
        self._bucket = bucket
        self._prefix = prefix
        self._kept = {name: self._read(name) for name in self._names()}

    def put_back(self, *, but: tuple[str, ...] = ()) -> None:
        """Make the prefix hold just what it held then; the objects named by `but` stay as they are now."""
        spared = {f"{self._prefix}/{name}" for name in but}
        for name in self._names():
            if name not in spared:
                self._client.delete_object(Bucket=self._bucket, Key=name)
        for name, (content, metadata) in self._kept.items():
            if name not in spared:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=content, Metadata=metadata)

    def read(self, name: str) -> bytes:
        """An object as it is now."""
        return self._read(f"{self._prefix}/{name}")[0]

    def _names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def _read(self, name: str) -> tuple[bytes, dict[str, str]]:
        found = self._client.get_object(Bucket=self._bucket, Key=name)
        return found["Body"].read(), found["Metadata"]
