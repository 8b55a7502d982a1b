"""The noting of published checkpoints in the log: what was signed, and when it was there, becomes a fact of the log.

A publisher only reads the store (eventlog/trust/publisher.py), so the writer looks at what was published now and then.
It notes a checkpoint whose signature is good and whose last leaf is a record batch of this very log, and none that is
new only by its own last note.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import sleep_until
from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.events import Checkpointed
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.worker.engine.core import Core
from ledgerq.worker.options import seconds_ms

if TYPE_CHECKING:
    from ledgerq.eventlog.trust.places import Place
    from ledgerq.eventlog.trust.verifier import Policy

__all__ = ["Checkpoints", "begin_noting"]

_LEAST_MS: Final = 1000
_log = logger("queue")


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """Where a queue finds the published checkpoints of its log, for its log to note them.

    `key` is the verifier key that `ledgerq keygen` printed. `place` is where the tree is published (None: `tlog` below
    the store); it is looked at every so many seconds. Needs the extra `ledgerq[trust]`.
    """

    key: str
    place: str | None = None
    every: float = 60.0


async def begin_noting(core: Core, wanted: Checkpoints) -> None:
    """Begin to note them, until the queue is closed; raises `InvalidArgument`, and closes it then."""
    try:
        task = asyncio.create_task(_noting(core, wanted), name="ledgerq-checkpoints")
    except BaseException:
        await core.close()
        raise

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    core.on_close.append(end)


def _noting(core: Core, wanted: Checkpoints) -> Coroutine[Any, Any, None]:
    try:
        from ledgerq.eventlog.trust.places import open_place
        from ledgerq.eventlog.trust.verifier import Refused, VerifierKey, policy_of
    except ModuleNotFoundError as error:
        raise InvalidArgument("checkpoints need cryptography: pip install 'ledgerq[trust]'") from error
    every_ms = seconds_ms("every", wanted.every, least_ms=_LEAST_MS)
    try:
        policy = policy_of(VerifierKey.parse(wanted.key))
    except Refused as error:
        raise InvalidArgument(f"checkpoints need the log's verifier key: {error}") from error
    return _Noting(core, open_place(core.log.store.location, wanted.place), policy).run(every_ms)


class _Noting:
    """The task that notes checkpoints."""

    def __init__(self, core: Core, place: "Place", policy: "Policy") -> None:
        self._core = core
        self._place = place
        self._policy = policy
        self._seen: bytes | None = None
        self._noted_at: int | None = None

    async def run(self, every_ms: int) -> None:
        """Look again and again; what goes wrong is logged, and nothing of the queue waits for it."""
        from ledgerq.eventlog.trust.verifier import Refused

        clock = self._core.clock
        while self._core.log.failure is None:
            try:
                await self._look()
            except (LedgerError, Refused) as error:
                what = "no published checkpoint was noted, trying again: %s"
                _log.warning(what, error, extra=about("checkpoint_unnoted"))
            await sleep_until(clock, clock.now_ms() + every_ms)

    async def _look(self) -> None:
        from ledgerq.eventlog.trust.places import CHECKPOINT
        from ledgerq.eventlog.trust.published import PublishedTree
        from ledgerq.eventlog.trust.verifier import Refused, open_checkpoint

        log = self._core.log
        note = await self._place.get(CHECKPOINT)
        if note is None or note == self._seen:
            return
        found = open_checkpoint(note, self._policy)
        last = await PublishedTree(self._place, found).entry(found.size - 1)
        value = await log.store.get(keys.log_key(last.base_offset))
        if value is None or digest_of(value) != last.digest or last.next_offset > log.durable_head.next_offset:
            raise Refused(f"the tree at {self._place.name} ends with a record batch that this log doesn't hold")
        self._seen = note
        if self._noted_at is not None and last.next_offset <= self._noted_at + 1:
            return
        await log.until_not_full()
        log.check()
        self._noted_at = self._core.writer_state.apply_other(
            Checkpointed(found.origin, self._policy.logs[0].key_id, found.size, last.next_offset, found.root)
        )
        await log.committed()
