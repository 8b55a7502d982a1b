"""The staging of effects: in one commit with the settlement of the job that they are of, or by themselves."""

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ledgerq.eventlog.errors import EffectConflict, InvalidArgument, InvalidState
from ledgerq.eventlog.events import KvDeleted, KvSet
from ledgerq.eventlog.side_records import SALT_BYTES, encode_sealed
from ledgerq.projections.value_view import ValueView
from ledgerq.projections.values import KvValue
from ledgerq.worker.claims import EnqueueResult
from ledgerq.worker.effects import Change, Effects
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.new_job import Prepared, prepare
from ledgerq.worker.tasks.handle import Handle

if TYPE_CHECKING:
    from ledgerq.worker.queue_reads import QueueReads
    from ledgerq.worker.tasks.task import Definition

__all__ = ["QueueSource", "stage_effects"]


class QueueSource:
    """What effects take from an open queue."""

    def __init__(self, core: Core, queue: "QueueReads") -> None:
        self.loop = asyncio.get_running_loop()
        self._core = core
        self._queue = queue
        self._values = ValueView(core.log)

    def prepare(self, queue: str, job: Mapping[str, Any]) -> Prepared:
        """Check a job, and give it its id."""
        core = self._core
        core.log.check()
        core.check_name(queue)
        given = dict(job)
        try:
            return prepare(
                queue,
                given.pop("payload"),
                options=core.options(queue),
                now_ms=core.clock.now_ms(),
                entropy=core.entropy,
                secret=core.log.secret,
                **given,
            )
        except TypeError as error:
            raise InvalidArgument(f"enqueue has no such option: {error}") from error

    def handle(self, job_id: str, definition: "Definition | None") -> Handle[Any]:
        """The handle of a job."""
        return Handle(self._queue, job_id, None if definition is None else definition.signature)

    def seal(self, value: bytes) -> bytes:
        """A value with a random salt."""
        return encode_sealed(self._core.entropy.take(SALT_BYTES), value)

    async def value(self, key: str) -> KvValue | None:
        """The value of a key, which is durable."""
        return await self._core.durably(self._values.get(key))


async def stage_effects(
    core: Core, effects: Effects, *, job: bytes | None = None, settle: Callable[[], bool] = lambda: True
) -> None:
    """Commit the effects with what `settle` stages; nothing when that raises, or a key is not as it was expected.

    `settle` says whether the effects go with it. `job`: the job that they are of. Raises `EffectConflict`,
    `DuplicateJobId`, `InvalidState` for effects that were committed before, and what `settle` raises.
    """
    log, is_kept = core.log, False
    effects.close("they were given to a commit")
    changes, jobs = [*effects.changes.values()], [staged.prepared for staged in effects.jobs]
    read = [change.key for change in changes if change.expect is not None or change.sealed is None]
    async with core.refusing(), core.writer_state.values.versions(log.store, read) as newest:
        # After that read, or many calls that read at the same time would come into one commit, however full it is.
        await log.until_not_full()

        def first() -> None:
            # From here on nothing is awaited: what was expected is so when it is changed.
            nonlocal is_kept
            log.check()
            for change in changes:
                if change.expect is not None and (found := newest(change.key)) != change.expect:
                    raise EffectConflict(_conflict(change, found))
            if effects.is_staged:
                raise InvalidState("these effects were committed already: make new ones for each job or transaction")
            is_kept = effects.is_staged = settle()
            if not is_kept:
                return
            for change in changes:
                if change.sealed is not None:
                    event = KvSet(change.key, len(change.sealed), change.digest, job)
                    core.writer_state.apply_value(event, change.sealed)
                elif newest(change.key):
                    core.writer_state.apply_value(KvDeleted(change.key, job))

        async with core.admission.looked_up(jobs, ending=job) as stage:

            def stage_kept(prepared: Prepared) -> EnqueueResult:
                return stage(prepared) if is_kept else EnqueueResult(prepared.event.id, False)

            results = await core.admission.together(jobs, stage_kept, first)
    core.dispatcher.serve()
    await log.committed()
    effects.committed(results)


def _conflict(change: Change, found: int) -> str:
    has = f"version {found}" if found else "no value"
    expected = f"version {change.expect}" if change.expect else "none"
    return f"key {change.key!r} has {has}, {expected} was expected: no effect was committed"
