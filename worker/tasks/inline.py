"""Tasks that run in the call of `enqueue`, without a queue: for tests."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.entropy import SystemEntropy
from ledgerq.eventlog.errors import EffectConflict, InvalidState, JobFailed
from ledgerq.eventlog.side_records import decode_result, encode_sealed
from ledgerq.projections.values import KvValue
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.core import DEFAULT_OPTIONS
from ledgerq.worker.engine.new_job import Prepared, prepare
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob
from ledgerq.worker.outcomes import Dead, plain_text
from ledgerq.worker.steps.steps import DoneStep
from ledgerq.worker.tasks.calling import Middleware, call_task
from ledgerq.worker.tasks.handle import Handle

if TYPE_CHECKING:
    from ledgerq.worker.tasks.task import Definition

__all__ = ["InlineHandle", "InlineRun"]

R_co = TypeVar("R_co", covariant=True)


class InlineHandle(Handle[R_co]):
    """The handle of a job that was run inline: its result, or what it raised, is there."""

    def __init__(self, job_id: str, value: R_co | None, error: Exception | None) -> None:
        self.job_id = job_id
        self.created = True
        self.set(value, error)

    def set(self, value: R_co | None, error: Exception | None) -> None:
        """Have this result, or what was raised."""
        self._value = value
        self._error = error

    def take(self, other: "InlineHandle[R_co]") -> None:
        """Have the result of another handle of this job."""
        self._value = other._value
        self._error = other._error

    async def result(self, timeout: float | None = None) -> R_co:  # noqa: ASYNC109
        """What the task returned; raises `JobFailed` from what it raised."""
        return self.result_sync()

    def result_sync(self, timeout: float | None = None) -> R_co:
        """The same."""
        if self._error is not None:
            raise JobFailed(self.job_id, type(self._error).__name__, plain_text(self._error)) from self._error
        return self._value  # type: ignore[return-value]


class InlineRun:
    """How tasks are run inline: within which middleware, with which `job.state`, and with which values of keys."""

    def __init__(self, middleware: Sequence[Middleware], state: Any, values: dict[str, bytes]) -> None:
        self._middleware = middleware
        self._state = state
        self._values = values
        self._versions: dict[str, int] = dict.fromkeys(values, 1)
        self._changes = 1
        self.loop: asyncio.AbstractEventLoop

    async def run(self, definition: "Definition", job: NewJob) -> InlineHandle[Any]:
        """Run the task of a job once, then what it has enqueued; arguments and results are turned into JSON and back.

        Its effects are dropped when it raises, unless that is a `Dead` with `keep`.
        """
        return await self._run(definition, prepare_inline(definition.queue, dict(job), definition.name))

    async def _run(self, definition: "Definition", prepared: Prepared) -> InlineHandle[Any]:
        self.loop = asyncio.get_running_loop()
        event, now_ms = prepared.event, SystemClock().now_ms()
        context = JobContext(
            Claim(
                event.queue,
                event.id,
                0,
                1,
                event.max_attempts,
                event.priority,
                now_ms,
                0,
                now_ms,
                prepared.record,
                event.terms,
            ),
            lambda function, detached=None: asyncio.to_thread(function),
            self,
        )
        context.state = self._state
        handle: InlineHandle[Any] = InlineHandle(context.job_id, None, None)
        try:
            result = await call_task(definition, self._middleware, context)
            handle.set(definition.signature.decode_result(result), None)
            await self._commit(context.staged)
        except Exception as error:
            handle.set(None, error)
            if isinstance(error, Dead) and error.keep:
                await self._commit(context.staged)
        return handle

    async def _commit(self, effects: Effects | None) -> None:
        if effects is None:
            return
        effects.close("the try is over")
        for key, change in effects.changes.items():
            if change.expect is not None and (found := self._versions.get(key, 0)) != change.expect:
                raise EffectConflict(f"key {key!r} has version {found}, {change.expect} was expected")
        for key, change in effects.changes.items():
            self._changes += 1
            if change.sealed is None:
                self._values.pop(key, None)
                self._versions.pop(key, None)
            else:
                self._values[key], self._versions[key] = decode_result(change.sealed), self._changes
        for prepared, handle, definition in effects.jobs:
            if definition is not None and isinstance(handle, InlineHandle):
                handle.take(await self._run(definition, prepared))

    # ------------------------------------------------------------------ what effects take

    def effects(self) -> Effects:
        """New effects."""
        return Effects(self)

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """No step: an inline job has one try."""
        return None

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """Nothing: no later try needs it."""

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """Nothing: nobody can ask for it."""

    def prepare(self, queue: str, job: Mapping[str, Any]) -> Prepared:
        """Check a job, and give it its id."""
        return prepare_inline(queue, job, None)

    def handle(self, job_id: str, definition: "Definition | None") -> Handle[Any]:
        """The handle of a job, which has no result before the one that enqueues it has ended."""
        foreign = InvalidState(f"job {job_id} is for no task, so it doesn't run inline")
        return InlineHandle(job_id, None, foreign if definition is None else None)

    def seal(self, value: bytes) -> bytes:
        """A value with a salt."""
        return encode_sealed(b"", value)

    async def value(self, key: str) -> KvValue | None:
        """The value of a key."""
        value = self._values.get(key)
        return None if value is None else KvValue(value, self._versions.setdefault(key, 1))


def prepare_inline(queue: str, job: Mapping[str, Any], task: str | None) -> Prepared:
    """A job that is run inline; `task` is that of its definition where the job names none."""
    given = dict(job)
    given["task"] = given.get("task") or task
    now_ms, payload = SystemClock().now_ms(), given.pop("payload")
    secret, entropy = b"", SystemEntropy()
    return prepare(queue, payload, options=DEFAULT_OPTIONS, now_ms=now_ms, entropy=entropy, secret=secret, **given)
