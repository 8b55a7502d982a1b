"""What the library says through `logging`: the names of its loggers, the attributes of its records, and a bound.

Every record has `ledgerq_event`, a name that stays the same when the words of the message change. One that concerns
a job has `ledgerq_job_id`, `ledgerq_queue`, `ledgerq_attempt` and `ledgerq_offset`, too: the offset is that of the
claimed event, so `ledgerq log` finds the claim by it. The prefix keeps them apart from the attributes of `logging`
itself and of other libraries. No record holds a payload or the value of a header; what a handler's own exception says
is the handler's.
"""

import logging
from typing import Final, Literal

from ledgerq.eventlog.entropy import job_id_text

__all__ = ["Area", "Seldom", "about", "about_job", "logger"]

Area = Literal["worker", "queue", "projections", "store"]
"""Below `ledgerq`: handlers and their worker; claims that end by themselves; users' projections; the store's upkeep."""

_BURST: Final = 5
_PERIOD_MS: Final = 60_000


def logger(area: Area) -> logging.Logger:
    """The logger of one part of the library."""
    return logging.getLogger(f"ledgerq.{area}")


def about(event: str, **more: object) -> dict[str, object]:
    """The attributes of a record that concerns no single job, for `extra=`."""
    return {"ledgerq_event": event} | {f"ledgerq_{name}": value for name, value in more.items()}


def about_job(event: str, job_id: bytes, queue: str, attempt: int, offset: int, **more: object) -> dict[str, object]:
    """The attributes of a record that concerns a job, for `extra=`; `offset` is that of its claimed event."""
    text = job_id_text(job_id)
    return about(event, job_id=text, queue=queue, attempt=attempt, offset=offset, **more)


class Seldom:
    """A bound for a message that could come again and again: at most `burst` of them in each period."""

    def __init__(self, burst: int = _BURST, period_ms: int = _PERIOD_MS) -> None:
        self.left_out = 0
        self._burst = burst
        self._period_ms = period_ms
        self._since_ms = 0
        self._said = 0

    def may(self, now_ms: int) -> bool:
        """Whether the message is to be written now; one that isn't is counted in `left_out`."""
        # A clock that went back begins a new period, too: it must not silence anything until it has caught up.
        if not self._since_ms <= now_ms < self._since_ms + self._period_ms:
            self._since_ms, self._said = now_ms, 0
        if self._said >= self._burst:
            self.left_out += 1
            return False
        self._said += 1
        return True

    def take_left_out(self) -> str:
        """Words for those that were not written since the last time this was asked; empty when there are none."""
        left_out, self.left_out = self.left_out, 0
        return f" ({left_out} more like this were not logged)" if left_out else ""
