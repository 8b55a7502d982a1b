"""The part of a queue for what is committed together: values of keys, transactions, and effects of jobs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledgerq.projections.value_view import ValueView
from ledgerq.projections.values import KvPage, KvPast, KvValue
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.core import Core
from ledgerq.worker.engine.effect_staging import QueueSource, stage_effects
from ledgerq.worker.queue_reads import QueueReads

__all__ = ["QueueEffects", "Values"]


class Values:
    """The values of keys, as `queue.kv`; all that is read is durable. Jobs and transactions change them."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._view = ValueView(core.log)

    async def get(self, key: str) -> KvValue | None:
        """The value of a key and its version; None where it has none."""
        return await self._core.durably(self._view.get(key))

    async def keys(self, prefix: str = "", *, limit: int = 100, after: str | None = None) -> KvPage:
        """A page of the keys that begin with `prefix`, in order; give `page.next` as `after` for the next one."""
        return await self._core.durably(self._view.keys(prefix, limit=limit, after=after))

    async def at(self, key: str, offset: int) -> KvPast | None:
        """What a key had after the events below `offset` of the log; None where it had no value.

        Its `value` is None when it was overwritten or deleted since then: only the newest one of a key is kept.
        """
        return await self._core.durably(self._view.at(key, offset))


class QueueEffects(QueueReads):
    """The methods of a `Queue` for effects; see there."""

    def __init__(self, core: Core) -> None:
        super().__init__(core)
        self.kv = Values(core)
        """The values of keys."""
        self._effect_source = QueueSource(core, self)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Effects]:
        """Commit what the block enqueues, sets and deletes, all of it or none: `async with queue.transaction() as t`.

        `t.enqueue(task, ...)` or `t.enqueue("queue", payload)`, `t.kv.get`, `t.kv.set(key, value, expect=version)`,
        `t.kv.delete(key)`. It is durable when the block ends; nothing is committed when the block raises. Raises
        `EffectConflict` when a key has not the version that was expected, `DuplicateJobId`.
        """
        effects = self.effects()
        try:
            yield effects
        finally:
            effects.close("the transaction is over")
        await self.commit(effects)

    async def commit(self, effects: Effects) -> None:
        """Commit effects by themselves, as at the end of a transaction."""
        if effects:
            await stage_effects(self._core, effects)

    def effects(self) -> Effects:
        """New effects, to be given to `ack`: for those who settle claims themselves."""
        return Effects(self._effect_source)
