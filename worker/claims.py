"""Claims, and the FIFO of claim calls waiting for a job."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.terms import decode_terms

__all__ = ["Claim", "ClaimName", "EnqueueResult", "Waiter", "ClaimWaiters"]


@dataclass(slots=True, eq=False)
class Claim:
    """A job in a worker's hands until it is settled or its lease ends.

    `offset` is that of the claimed event, which identifies the claim; `attempt` counts from 1;
    `lease_expires_ms` is in ms since the Unix epoch, as of the claim or its last renewal.
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
    def payload(self) -> bytes:
        """The bytes as they were enqueued."""
        return self.record.payload

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
