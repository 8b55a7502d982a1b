"""What a service does not carry yet: each call of it is refused by its name."""

from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.steps.steps import DoneStep

__all__ = ["Unsent"]

_NOT_SENT: Final = "can't be sent to a service yet: ask the process that has opened the store"


class Unsent:
    """The methods of a `Queue` that need the process that has the store open."""

    def effects(self) -> Effects:
        """Raise `InvalidArgument`: effects are not carried."""
        raise InvalidArgument(f"effects (job.enqueue, job.kv) {_NOT_SENT}, or enqueue with queue.enqueue")

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """Raise `InvalidArgument`: steps are not carried."""
        raise InvalidArgument(f"step {name!r} {_NOT_SENT}")

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """Raise `InvalidArgument`, as `read_step`."""
        raise InvalidArgument(f"step {name!r} {_NOT_SENT}")

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """Raise `InvalidArgument`: reports of progress are not carried."""
        raise InvalidArgument(f"a report of progress (job.progress) {_NOT_SENT}")
