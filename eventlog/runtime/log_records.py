"""The library's use of `logging`: the names of its loggers, the attributes of its records, and a bound on repetition.

Every record has `ledgerq_event`, a name that stays the same when the words of the message change. One that concerns a
job has `ledgerq_job_id`, `ledgerq_queue`, `ledgerq_attempt` and `ledgerq_offset`, too: the offset is that of the
claimed event, so `ledgerq log` finds the claim by it. The prefix keeps them apart from the attributes of `logging`
itself and of other libraries. No record holds a payload or the value of a header; the text of a handler's own exception
is the handler's.

Each record is one line, whatever queues, workers and errors are called: what is no visible sign stands as an escape in
the message and in the attributes. The lines of a traceback are indented when its error has several.
"""

import logging
from collections.abc import Iterator
from traceback import format_exception
from typing import Any, Final, Literal

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.runtime.printable import printable

__all__ = ["Area", "LogThrottle", "about", "about_job", "logger"]

Area = Literal["worker", "job", "queue", "projections", "store"]
"""Below `ledgerq`: handlers and their worker; what these log; ended claims; users' projections; the store's upkeep."""

_BURST: Final = 5
_PERIOD_MS: Final = 60_000


def logger(area: Area) -> logging.Logger:
    """The logger of one part of the library; its records are made fit for one line."""
    found = logging.getLogger(f"ledgerq.{area}")
    found.addFilter(_escape)
    return found


def about(event: str, **more: object) -> dict[str, object]:
    """The attributes of a record that concerns no single job, for `extra=`."""
    return {"ledgerq_event": event} | {
        f"ledgerq_{name}": printable(value) if isinstance(value, str) else value for name, value in more.items()
    }


def about_job(event: str, id: bytes, queue: str, attempt: int, offset: int, **more: object) -> dict[str, object]:
    """The attributes of a record that concerns a job, for `extra=`; `offset` is that of its claimed event."""
    text = job_id_text(id)
    return about(event, job_id=text, queue=queue, attempt=attempt, offset=offset, **more)


class LogThrottle:
    """A bound for a message that could come again and again: at most `burst` of them in each period."""

    def __init__(self, burst: int = _BURST, period_ms: int = _PERIOD_MS) -> None:
        self.left_out = 0
        self._burst = burst
        self._period_ms = period_ms
        self._since_ms = 0
        self._said = 0

    def may(self, now_ms: int) -> bool:
        """Whether to write the message now; one that is not written is counted in `left_out`."""
        # A clock that went back begins a new period, too: it must not silence anything until it has caught up.
        if not self._since_ms <= now_ms < self._since_ms + self._period_ms:
            self._since_ms, self._said = now_ms, 0
        if self._said >= self._burst:
            self.left_out += 1
            return False
        self._said += 1
        return True

    def take_left_out(self) -> str:
        """A text that counts those not written since the last call; empty when there are none."""
        left_out, self.left_out = self.left_out, 0
        return f" ({left_out} more like this were not logged)" if left_out else ""


class _Escaped:
    """An argument of a message whose text is not fit for one line."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return printable(repr(self._value))


def _escape(record: logging.LogRecord) -> bool:
    """A logging filter that lets every record pass, with all escaped that could forge a line."""
    if isinstance(record.args, tuple):
        record.args = tuple(map(_escaped, record.args))
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and not record.exc_text and any(not _fits(one) for one in _chain(error)):
        # A formatter takes this in place of a traceback that it would make itself.
        lines = "".join(format_exception(error)).rstrip("\n").split("\n")
        record.exc_text = "\n".join(f"  {printable(line)}" for line in lines)
    return True


def _escaped(value: Any) -> Any:
    return value if isinstance(value, int | float) or _fits(value) else _Escaped(value)


def _fits(value: object) -> bool:
    try:
        notes = getattr(value, "__notes__", ())
        return all(text.isprintable() for text in (str(value), repr(value), *notes))
    except Exception:
        return False  # shown as whatever it is, if it can be


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error with all that a traceback shows of its causes."""
    waiting, seen = [error], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [other for other in (one.__cause__, one.__context__) if other is not None]
            waiting += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
