"""Claims, and the FIFO of claim calls waiting for a job."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from ledgerq.eventlog.blobs import Blob, BlobName, checked, decode_blob
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.store import ReadStore
from ledgerq.eventlog.terms import decode_terms

__all__ = ["Claim", "ClaimName", "EnqueueResult", "Waiter", "ClaimWaiters"]


@dataclass(slots=True, eq=False)
class Claim:
    """A job in a worker's hands until it is settled or its lease ends.

    `offset` is that of the claimed event, which identifies the claim; `attempt` counts from 1;
    `lease_expires_ms` is in ms since the Unix epoch, as of the claim or its last renewal. `limited`: its queue has
    limits, so that a claim which is held for later keeps another job from being claimed.
    """

    queue: str
    id: bytes
    offset: int
    attempt: int
    max_attempts: int
    priority: int
    enqueued_ms: int
    lease_ms: int
    lease_expires_ms: int
    record: PayloadRecord
    terms: bytes | None = None
    limited: bool = False
    store: ReadStore | None = field(default=None, repr=False)

    @property
    def task(self) -> str | None:
        """The name of the task that the job is for, None when it is for none; raises `FormatTooNew` for newer terms."""
        return None if self.terms is None else decode_terms(self.terms).task or None

    @property
    def deadline_ms(self) -> int:
        """When a try has to be over, in ms since the Unix epoch; 0 for no such time."""
        return 0 if self.terms is None else decode_terms(self.terms).deadline_ms

    @property
    def job_id(self) -> str:
        """The ULID's text."""
        return job_id_text(self.id)

    @property
    def blob(self) -> Blob | None:
        """What the log has of a large payload; None for one that came with the claim."""
        value = b"" if self.terms is None else decode_terms(self.terms).blob
        return decode_blob(value) if value else None

    @property
    def payload(self) -> bytes:
        """The bytes as they were enqueued; raises `InvalidState` for a large payload."""
        if self.terms is not None and (blob := self.blob) is not None:
            raise InvalidState(
                f"the payload of job {self.job_id} has {blob.size_bytes} bytes: read it with open_payload()"
            )
        return self.record.payload

    async def open_payload(self) -> AsyncIterator[bytes]:
        """The payload in pieces, `async for piece in claim.open_payload()`: also one that is large.

        Raises `PayloadMissing` when a large one is lost, or at its end, when its bytes are not those that were given.
        """
        blob = self.blob
        if blob is None:
            yield self.record.payload
            return
        if self.store is None:
            raise InvalidArgument(
                "a large payload can't be sent by a service yet: run this worker in the process that opens the store"
            )
        async for piece in checked(self.store.blobs, BlobName(blob.id, self.id), blob, self.record.salt):
            yield piece

    @property
    def headers(self) -> dict[str, str]:
        """The headers as they were enqueued; empty when there were none."""
        return dict(self.record.headers or {})

    @property
    def lease_expires_at(self) -> datetime:
        """`lease_expires_ms` as a time in UTC."""
        return datetime.fromtimestamp(self.lease_expires_ms / 1000, UTC)


class ClaimName(NamedTuple):
    """A claim as its holder in another process names it: by its job and its offset. `queue` is the job's."""

    queue: str
    id: bytes
    offset: int
    record: PayloadRecord | None = None

    @property
    def job_id(self) -> str:
        """The ULID's text."""
        return job_id_text(self.id)


@dataclass(frozen=True, slots=True)
class EnqueueResult:
    """The result of `enqueue`: the job's id, and whether it is new (False: its unique key was held by this job).

    `replaced`: this job has what was enqueued now, in the place of what it had before.
    """

    id: bytes
    created: bool
    replaced: bool = False

    @property
    def job_id(self) -> str:
        """The ULID's text."""
        return job_id_text(self.id)


class Waiter:
    """A claim call that waits for jobs of one or several queues."""

    __slots__ = ("future", "kept", "lease_ms", "limit", "queues", "worker")

    def __init__(
        self, queues: Sequence[str], limit: int, lease_ms: int | None, worker: str | None, kept: bool = False
    ) -> None:
        self.queues = queues
        self.limit = limit
        self.lease_ms = lease_ms
        self.worker = worker
        self.kept = kept
        self.future: asyncio.Future[list[Claim]] = asyncio.get_running_loop().create_future()


class ClaimWaiters:
    """The FIFO of waiting claim calls of each queue."""

    def __init__(self) -> None:
        self._waiting: dict[str, OrderedDict[Waiter, None]] = {}

    def add(self, waiter: Waiter) -> None:
        """Add a call at the end of each of its queues' lines."""
        for queue in waiter.queues:
            self._waiting.setdefault(queue, OrderedDict())[waiter] = None

    def first(self, queue: str) -> Waiter | None:
        """The call that is served next in this queue."""
        line = self._waiting.get(queue)
        while line:
            waiter = next(iter(line))
            if not waiter.future.done():
                return waiter
            del line[waiter]
        return None

    def remove(self, waiter: Waiter) -> None:
        """Remove a call from all lines."""
        for queue in waiter.queues:
            line = self._waiting.get(queue)
            if line is not None:
                line.pop(waiter, None)
            if not line:
                self._waiting.pop(queue, None)

    def waiting(self, queue: str) -> list[Waiter]:
        """All calls that wait for this queue, in order."""
        return [waiter for waiter in self._waiting.get(queue, ()) if not waiter.future.done()]

    def counts(self) -> dict[str, int]:
        """The length of each queue's line, which may still hold calls that are done; from any thread."""
        return {queue: len(line) for queue, line in self._waiting.copy().items()}

    def everyone(self) -> list[Waiter]:
        """All waiting calls, each once."""
        return list(dict.fromkeys(w for line in self._waiting.values() for w in line if not w.future.done()))
