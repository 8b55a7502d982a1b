"""The enqueuer with a span around each call; see spans.py. `Queue.open(tracer_provider=...)` makes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.trace import TracerProvider

from ledgerq.eventlog.errors import PayloadTooLarge
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.enqueue import Enqueuer
from ledgerq.worker.engine.large_payloads import Stream
from ledgerq.worker.engine.new_job import is_list
from ledgerq.worker.options import NewJob
from ledgerq.worker.tracing.spans import Sender

__all__ = ["TracedEnqueuer"]


class TracedEnqueuer(Enqueuer):
    """The traced enqueuer, a class of its own, so that a queue that isn't traced pays nothing."""

    def __init__(self, core: Core, tracer_provider: TracerProvider) -> None:
        super().__init__(core)
        self._sender = Sender(tracer_provider)

    async def one(
        self, queue: str, payload: bytes | Stream, headers: Mapping[str, str] | None, **options: Any
    ) -> EnqueueResult:
        """Enqueue one job, as `Queue.enqueue` does, with a span."""
        sending = self._sender.one(queue, payload, headers)
        if sending is None:
            return await super().one(queue, payload, headers, **options)
        carrying = self._sender.carry(headers, sending.carrier) if sending.carrier else headers
        try:
            try:
                result = await super().one(queue, payload, carrying, **options)
            except PayloadTooLarge:
                if carrying is headers:
                    raise
                # Refused before anything was written. It is the job that counts.
                sending.without_context()
                result = await super().one(queue, payload, headers, **options)
        except BaseException as error:
            sending.end(error)
            raise
        sending.end(result=result)
        return result

    async def many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> list[EnqueueResult]:
        """See `Queue.enqueue_many`."""
        # What is no list is refused as it stands: with the context it would be made one.
        sending = self._sender.many(queue, jobs) if is_list(jobs) else None
        if sending is None:
            return await super().many(queue, jobs)
        try:
            carrying = await self._sender.carry_all(jobs, sending.carrier) if sending.carrier else jobs
            try:
                results = await super().many(queue, carrying)
            except PayloadTooLarge:
                if carrying is jobs:
                    raise
                sending.without_context()
                results = await super().many(queue, jobs)
        except BaseException as error:
            sending.end(error)
            raise
        sending.end()
        return results
