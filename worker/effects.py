"""Effects: jobs and values that are committed with the end of a job, or by a transaction, all of them or none.

They are gathered here, in memory. engine/effect_staging.py stages them.
"""

import asyncio
import concurrent.futures
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import EffectsTooLarge, InvalidArgument, InvalidState
from ledgerq.eventlog.keys import value_key
from ledgerq.eventlog.runtime.event_loop import loop_or_none
from ledgerq.eventlog.side_records import MAX_VALUE_BYTES
from ledgerq.projections.values import KvValue
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.engine.new_job import Prepared

if TYPE_CHECKING:
    from ledgerq.worker.tasks.handle import Handle
    from ledgerq.worker.tasks.task import Definition, Task

__all__ = ["MAX_EFFECTS", "MAX_EFFECT_BYTES", "Change", "EffectSource", "Effects", "StagedJob", "StagedValues"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

MAX_EFFECTS: Final = 1000
MAX_EFFECT_BYTES: Final = 8 * 1024 * 1024


class Change(NamedTuple):
    """A key that is set to what `sealed` holds (salt and value), or deleted (None), if it has the version `expect`."""

    key: str
    sealed: bytes | None
    digest: bytes
    expect: int | None


class StagedJob(NamedTuple):
    """A job to be enqueued, its handle, and the definition of its task, if it was given by one."""

    prepared: Prepared
    handle: "Handle[Any]"
    definition: "Definition | None"


class EffectSource(Protocol):
    """What effects take from their queue. Its functions are called on its event loop."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that owns the queue."""

    def prepare(self, queue: str, job: Mapping[str, Any]) -> Prepared:
        """Check a job, given by what `NewJob` has, and give it its id."""

    def handle(self, job_id: str, definition: "Definition | None") -> "Handle[Any]":
        """The handle of a job."""

    def seal(self, value: bytes) -> bytes:
        """A value with a random salt."""

    async def value(self, key: str) -> KvValue | None:
        """The value of a key, which is durable."""


class Effects:
    """The effects of one job or transaction: `enqueue` and `kv` add some, which nobody sees before they are committed.

    Up to 1,000, of 8 MiB in all. A plain function may call these in its thread.
    """

    def __init__(self, source: EffectSource) -> None:
        """Not called by users: see `JobContext`, `Queue.transaction`, and `Queue.effects`."""
        self.jobs: list[StagedJob] = []
        self.changes: dict[str, Change] = {}
        self.kv = StagedValues(self, source)
        """The values of keys: read now, changed with the commit."""
        self._source = source
        self.size_bytes = 0
        """The bytes that they keep in memory."""
        self.is_staged = False
        """Whether they are in a commit: their jobs have ids, and would be there twice."""
        self._over = ""

    def __bool__(self) -> bool:
        return bool(self.jobs or self.changes)

    @overload
    def enqueue(self, task: "Task[P, R]", /, *args: P.args, **kwargs: P.kwargs) -> "Handle[R]": ...
    @overload
    def enqueue(self, queue: str, payload: bytes, /, **options: Any) -> "Handle[bytes | None]": ...
    def enqueue(self, what: "Task[..., Any] | str", /, *args: Any, **kwargs: Any) -> "Handle[Any]":
        """Enqueue a job with the commit: by a task and its arguments, or by a queue's name, a payload and options.

        The options are those of `Queue.enqueue`; a task has them by `task.options(...)`. The handle has the job's id at
        once. Where an unfinished job (not the one that ends) has its unique key by then, nothing is added, and the
        handle is that job's from then on; where its own id is taken, nothing is committed (`DuplicateJobId`).
        """
        definition: Definition | None = None
        if isinstance(what, str):
            if len(args) != 1:
                raise InvalidArgument('by a queue\'s name it is enqueue("mail", b"payload", delay=60)')
            queue, job = what, dict(kwargs, payload=args[0])
        elif (definition := getattr(what, "definition", None)) is None:
            raise InvalidArgument(f"enqueue takes a task or a queue's name, not {what!r}")
        else:
            queue, job = what.queue, dict(what.new_job(args, kwargs))

        def add() -> "Handle[Any]":
            self.check()
            source = self._source
            prepared = source.prepare(queue, job)
            self.grow(len(prepared.sealed))
            handle = source.handle(job_id_text(prepared.event.id), definition)
            self.jobs.append(StagedJob(prepared, handle, definition))
            return handle

        return self.on_loop(add)

    def on_loop(self, call: Callable[[], T]) -> T:
        """Call this on the event loop that owns the queue, and wait for it where that is another thread's."""
        loop = self._source.loop
        if loop_or_none() is loop:
            return call()
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)

        loop.call_soon_threadsafe(run)
        return future.result()

    def check(self) -> None:
        """Raise `InvalidState` when these are no longer gathered."""
        if self._over:
            raise InvalidState(f"{self._over}: nothing can be added to its effects")

    def grow(self, size_bytes: int, *, replaced_bytes: int = 0) -> None:
        """Count one more of so many bytes, in the place of one of `replaced_bytes`; raises `EffectsTooLarge`."""
        if len(self.jobs) + len(self.changes) >= MAX_EFFECTS:
            raise EffectsTooLarge(
                f"there are {MAX_EFFECTS:,} effects already, which is the most for one commit: enqueue a job that adds "
                "the others"
            )
        total_bytes = self.size_bytes + size_bytes - replaced_bytes
        if total_bytes > MAX_EFFECT_BYTES:
            raise EffectsTooLarge(
                f"the effects would have {total_bytes} bytes, more than {MAX_EFFECT_BYTES}: store large "
                "ones elsewhere, and enqueue or set a reference"
            )
        self.size_bytes = total_bytes

    def close(self, why: str) -> None:
        """Let nothing be added any more, for this reason; the first one counts."""
        self._over = self._over or why

    def committed(self, results: list[EnqueueResult]) -> None:
        """Let the handles be those of the jobs that are there now."""
        for (_, handle, _), result in zip(self.jobs, results, strict=True):
            handle.created, handle.replaced = result.created, result.replaced
            handle.job_id = result.job_id


class StagedValues:
    """The values of keys: reads are of what is committed, changes come with the commit of the effects."""

    def __init__(self, effects: Effects, source: EffectSource) -> None:
        self._effects = effects
        self._source = source

    async def get(self, key: str) -> KvValue | None:
        """The value of a key and its version; None where it has none. What this job has set itself is not seen yet."""
        return await self._source.value(key)

    def get_sync(self, key: str) -> KvValue | None:
        """The same for a plain function, which runs in a thread."""
        if loop_or_none() is not None:
            raise InvalidState("get_sync would block the event loop: use `await job.kv.get(key)` here")
        return asyncio.run_coroutine_threadsafe(self.get(key), self._source.loop).result()

    def set(self, key: str, value: bytes, *, expect: int | None = None) -> None:
        """Set a key with the commit: 1 to 1,024 bytes of text without NUL, to up to 64 KiB of bytes.

        `expect`: only if it has this version by then, 0 for no value (None: whatever it has); else `EffectConflict`,
        and no effect is committed. A later change of the same key counts instead, with the first one's `expect` if it
        has none.
        """
        if type(value) is not bytes:
            raise InvalidArgument(
                f"the value of key {key!r} is bytes, not {type(value).__name__}: encode it, or set_json"
            )
        if len(value) > MAX_VALUE_BYTES:
            raise EffectsTooLarge(
                f"the value of key {key!r} has {len(value)} bytes, more than {MAX_VALUE_BYTES}: store it elsewhere and "
                "set a reference"
            )
        self._change(key, value, expect)

    def set_json(self, key: str, value: Any, *, expect: int | None = None) -> None:
        """Set a key to a value as JSON, as `KvValue.json()` gives it."""
        try:
            encoded = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"the value of key {key!r} can't be JSON: {error}") from error
        self.set(key, encoded, expect=expect)

    def delete(self, key: str, *, expect: int | None = None) -> None:
        """Delete a key with the commit; `expect` as for `set`. One that has no value by then stays as it is."""
        self._change(key, None, expect)

    def _change(self, key: str, value: bytes | None, expect: int | None) -> None:
        value_key(key)
        if expect is not None and (type(expect) is not int or expect < 0):
            raise InvalidArgument(f"expect is the version of a value that was read, or 0 for none, not {expect!r}")
        effects = self._effects

        def add() -> None:
            effects.check()
            before = effects.changes.pop(key, None)
            sealed = None if value is None else self._source.seal(value)
            replaced_bytes = 0 if before is None else _size_of(key, before.sealed)
            try:
                effects.grow(_size_of(key, sealed), replaced_bytes=replaced_bytes)
            except EffectsTooLarge:
                if before is not None:
                    effects.changes[key] = before
                raise
            kept = before.expect if before is not None and expect is None else expect
            effects.changes[key] = Change(key, sealed, b"" if sealed is None else digest_of(sealed), kept)

        effects.on_loop(add)


def _size_of(key: str, sealed: bytes | None) -> int:
    return len(key) + len(sealed or b"")
