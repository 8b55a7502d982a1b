"""Logs with a published tree, all in memory: for the tests of publisher, receipts and verifier."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.eventlog.trust.notes import SigningKey
from ledgerq.eventlog.trust.places import CHECKPOINT
from ledgerq.eventlog.trust.publisher import Published, publish
from ledgerq.eventlog.trust.receipts import make_receipt
from tests.support.rig import Rig

__all__ = ["KEY", "ORIGIN", "Killed", "MemoryPlace", "job_offsets", "log_of", "publish_to", "receipt_of"]

ORIGIN = "example.com/jobs"
KEY = SigningKey.of(ORIGIN, bytes(range(32)))


class Killed(Exception):
    """The publisher ends here."""


class MemoryPlace:
    """A place in memory. `left` more writes succeed, then the publisher is killed: before one, or just after it."""

    name = "memory"

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = {} if files is None else files
        self.left: int | None = None
        self.after = False
        self.signed: list[bytes] = []

    def _meet(self, *, before: bool) -> None:
        if self.left == 0 and before != self.after:
            raise Killed
        if self.left is not None and not before:
            self.left -= 1

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Nothing: as on an object store."""
        yield

    async def get(self, name: str) -> bytes | None:
        """The file."""
        return self.files.get(name)

    async def create(self, name: str, content: bytes) -> bool:
        """Write one that is new."""
        self._meet(before=True)
        made = self.files.setdefault(name, content) is content
        self._meet(before=False)
        return made

    async def sync(self) -> None:
        """Nothing to do."""

    async def replace(self, name: str, content: bytes, over: bytes | None) -> bool:
        """Write one in the place of another."""
        self._meet(before=True)
        if self.files.get(name) != over:
            return False
        self.files[name] = content
        self.signed.append(content)
        self._meet(before=False)
        return True

    async def remove_folder(self, name: str) -> None:
        """Remove what is below it."""
        self._meet(before=True)
        for path in [path for path in self.files if path.startswith(f"{name}/")]:
            del self.files[path]
        self._meet(before=False)


def log_of(disk: MemoryDisk) -> LogReader:
    """A reader of the log on this disk."""
    return LogReader(MemoryReader(disk), clock=ManualClock())


async def publish_to(
    place: MemoryPlace, disk: MemoryDisk, key: SigningKey = KEY, signed: bytes | None = None
) -> Published:
    """Publish the log on this disk."""
    return await publish(log_of(disk), place, key, signed=signed)


async def job_offsets(rig: Rig, job_id: str) -> list[int]:
    """The offsets of a job's events."""
    return [record.offset for record in await rig.queue.history(job_id)]


async def receipt_of(rig: Rig, place: MemoryPlace, job_id: str) -> bytes:
    """The receipt of a job."""
    return await make_receipt(log_of(rig.disk), place, await job_offsets(rig, job_id))


def size_of(place: MemoryPlace) -> int:
    """The size in the checkpoint."""
    return int(place.files[CHECKPOINT].split(b"\n")[1])


def unpacked(value: bytes) -> Any:
    """A msgpack value, by another reader than the log's."""
    return msgpack.unpackb(value, use_list=False)
