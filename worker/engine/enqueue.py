"""The enqueue calls of `Queue`: jobs are prepared and staged, and the calls return once they are durable.

`TracedEnqueuer` (tracing/traced_enqueue.py) does the same with a span around each call.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from ledgerq.eventlog.errors import DuplicateJobId, InvalidArgument, UniqueKeyHeld
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.large_payloads import Stream, is_stream
from ledgerq.worker.engine.new_job import prepare, prepare_many
from ledgerq.worker.options import NewJob, OnConflict

__all__ = ["Enqueuer"]


class Enqueuer:
    """The enqueuer of one queue object."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._log = core.log
        self._clock = core.clock
        self._entropy = core.entropy
        self._admission = core.admission
        self._dispatcher = core.dispatcher

    async def one(
        self,
        queue: str,
        payload: bytes | Stream,
        headers: Mapping[str, str] | None,
        *,
        on_conflict: OnConflict,
        debounce: float | None,
        unique_key: str | bytes | None,
        job_id: str | None,
        **terms: Any,
    ) -> EnqueueResult:
        """Enqueue one job, as `Queue.enqueue` does; `terms` are further arguments of `prepare`."""
        log = self._log
        log.check()
        self._core.check_name(queue)
        stored, may_be_there = None, False
        if type(payload) is not bytes and is_stream(payload):
            if on_conflict == "replace" or debounce is not None:
                raise InvalidArgument("a payload that is streamed can't replace another one: enqueue it as bytes")
            payload, stored = await self._core.large.store(payload, job_id)
        try:
            prepared = prepare(
                queue,
                cast(bytes, payload),
                options=self._core.options(queue),
                now_ms=self._clock.now_ms(),
                entropy=self._entropy,
                secret=self._log.secret,
                on_conflict=on_conflict,
                debounce=debounce,
                unique_key=unique_key,
                headers=headers,
                job_id=job_id,
                stored=stored,
                **terms,
            )
            if log.full:
                await log.until_not_full()
                log.check()
            may_be_there = True
            if unique_key is None and job_id is None:
                result = self._admission.stage(prepared)
            else:
                async with self._core.refusing():
                    result = (await self._admission.stage_all([prepared]))[0]
            may_be_there = result.created
            self._dispatcher.serve()
            await log.committed()
            return result
        except (DuplicateJobId, UniqueKeyHeld):
            may_be_there = False
            raise
        finally:
            if stored is not None:
                self._core.large.end(stored, is_wanted=may_be_there)

    async def many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> list[EnqueueResult]:
        """Enqueue several jobs, as `Queue.enqueue_many` does."""
        self._log.check()
        self._core.check_name(queue)
        options, now_ms = self._core.options(queue), self._clock.now_ms()
        batch = await prepare_many(
            queue, jobs, options=options, now_ms=now_ms, entropy=self._entropy, secret=self._log.secret
        )
        self._log.check()
        if self._log.full:
            await self._log.until_not_full()
            self._log.check()
        async with self._core.refusing():
            results = await self._admission.stage_all(batch)
        self._dispatcher.serve()
        await self._log.committed()
        return results
