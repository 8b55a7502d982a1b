"""Defects to plant in the limits of claims, as those of defects.py are."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from msgspec.structs import replace

from ledgerq.projections.limits import Limits
from ledgerq.worker.engine import kept_limits, limiting, writer_state

__all__ = ["LIMIT_DEFECTS"]

Patch = pytest.MonkeyPatch


def limit_off_by_one_after_restart(patch: Patch) -> None:
    """A writer that takes over counts one of the claims that it finds as over."""
    real = writer_state.WriterState.running
    patch.setattr(
        writer_state.WriterState, "running", lambda self, queue: max(0, real(self, queue) - (self.log.epoch > 1))
    )


def rate_begins_anew_at_a_takeover(patch: Patch) -> None:
    """A writer that takes over knows nothing of what was used of a rate."""
    real = kept_limits.KeptLimits.read

    async def read(self: Any, store: Any) -> None:
        await real(self, store)
        for queue, one in self.by_queue.items():
            self.by_queue[queue] = replace(one, used=0)

    patch.setattr(kept_limits.KeptLimits, "read", read)


def rate_lets_one_more_through(patch: Patch) -> None:
    """A rate allows one claim more than its burst."""
    real = Limits.tokens
    patch.setattr(Limits, "tokens", lambda self, rate, time_ms: real(self, rate, time_ms) + 1)


def wake_up_by_time_lost(patch: Patch) -> None:
    """A claim that waits for a rate or the end of a hold has no timer."""
    patch.setattr(limiting.Limiting, "wake_later", lambda self, queue: None)


def wake_up_by_settlement_lost(patch: Patch) -> None:
    """The end of a claim lets no other one through."""
    patch.setattr(limiting.Limiting, "settled", lambda self, queue: None)


def held_queues_hand_out(patch: Patch) -> None:
    """A hold holds nothing."""
    real = limiting.Limiting._room
    patch.setattr(limiting.Limiting, "_room", lambda self, limits: real(self, replace(limits, held_until_ms=0)))


def limits_of_options_not_recorded(patch: Patch) -> None:
    """The limits of a program's options never come into the log, so they don't hold."""
    patch.setattr(limiting.Limiting, "record", lambda self, queue: None)


def use_of_a_rate_not_written(patch: Patch) -> None:
    """A claim changes no row of limits."""

    def claimed(self: Any, queue: str, time_ms: int) -> None:
        limits = self.by_queue.get(queue)
        if limits is not None and limits.setting is not None and limits.setting.count:
            self.by_queue[queue] = limits.spent(limits.setting, time_ms)

    patch.setattr(kept_limits.KeptLimits, "claimed", claimed)


LIMIT_DEFECTS: Final[dict[str, Callable[[Patch], None]]] = {
    plant.__name__: plant
    for plant in (
        limit_off_by_one_after_restart,
        rate_begins_anew_at_a_takeover,
        rate_lets_one_more_through,
        wake_up_by_time_lost,
        wake_up_by_settlement_lost,
        held_queues_hand_out,
        limits_of_options_not_recorded,
        use_of_a_rate_not_written,
    )
}
