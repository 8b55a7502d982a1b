"""The outcomes that a handler can raise, beside returning (done) or any other error (failed, try again)."""

import asyncio
import concurrent.futures
import traceback
from pathlib import Path
from typing import Any, Final

from ledgerq.eventlog.runtime import threads
from ledgerq.worker.options import seconds_ms

__all__ = [
    "ArgumentsDontFit",
    "Dead",
    "Elsewhere",
    "RateLimited",
    "ResultDoesntFit",
    "Retry",
    "Snooze",
    "StepLost",
    "TaskMissing",
    "error_text",
    "plain_text",
]

_ERROR_LINES: Final = 12
_ERROR_CHARS: Final = 2000
# What stands between a worker and the user's handler: the worker itself, and what runs its tasks and threads.
_CALLING: Final = (
    *(f"{Path(str(module.__file__)).parent}/" for module in (threads, asyncio, concurrent.futures)),
    f"{Path(__file__).parent}/",
    f"{Path(__file__).parents[1]}/tools/django/",
)
_TASKS: Final = f"{Path(__file__).parent}/tasks/"


class Dead(Exception):
    """Raised by a handler: this job can never succeed, make it a dead letter at once, with this text as its error.

    `keep`: the effects of this try are committed with the dead letter, instead of being dropped.
    """

    def __init__(self, *args: object, keep: bool = False) -> None:
        super().__init__(*args)
        self.keep = keep


class ArgumentsDontFit(Dead):
    """The arguments of a job are not those that its task takes: a dead letter at once, since no retry can help."""


class ResultDoesntFit(Dead):
    """A task returned what is not of its declared type, or no JSON: a dead letter at once, since its work is done."""


class StepLost(Dead):
    """The value of a step that is done is lost: a dead letter at once, since to do it again would do it twice."""


class Retry(Exception):
    """Raised by a handler: try again after `delay` seconds (None: after the queue's backoff)."""

    def __init__(self, delay: float | None = None, why: str = "the handler asked for a retry") -> None:
        super().__init__(why)
        if delay is not None:
            seconds_ms("delay", delay)
        self.delay = delay

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, *self.args)


class RateLimited(Exception):
    """Raised by a handler: what it calls takes no more for `retry_after` seconds (0.001 at least), as a 429 says.

    The job is given back, and the try does not count; no job of its queue is claimed until then.
    """

    def __init__(self, retry_after: float, why: str = "what the handler calls takes no more for now") -> None:
        super().__init__(why)
        seconds_ms("retry_after", retry_after)
        self.retry_after = max(retry_after, 0.001)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.retry_after, *self.args)


class Snooze(Exception):
    """Raised by a handler: not now, try again in `delay` seconds (0.001 at least).

    The try does not count; 1,000 in a row end it.
    """

    def __init__(self, delay: float, why: str = "the handler put the job off") -> None:
        super().__init__(why)
        seconds_ms("delay", delay)
        self.delay = max(delay, 0.001)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.delay, *self.args)


class Elsewhere(Exception):
    """The cause of an exception that a handler raised in another process: its traceback there, as text."""


class TaskMissing(Snooze):
    """The worker doesn't know the task of a job, or not with such arguments; another one may."""


def error_text(error: BaseException) -> str:
    """The traceback from the user's handler on, of it the last lines, bounded to 2,000 characters."""
    if isinstance(error.__cause__, Elsewhere):
        return str(error.__cause__)
    described = traceback.TracebackException.from_exception(error)
    _leave_out_calling(described)
    lines = "".join(described.format()).rstrip().splitlines()
    return "\n".join(lines[-_ERROR_LINES:])[-_ERROR_CHARS:]


def _leave_out_calling(error: traceback.TracebackException) -> None:
    """Leave out the frames that aren't the user's, of this exception and of those that led to it."""
    todo: list[traceback.TracebackException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None:
            while one.stack and one.stack[0].filename.startswith(_CALLING):
                del one.stack[0]
            # Between the middleware of tasks and what is within it.
            one.stack[:] = [frame for frame in one.stack if not frame.filename.startswith(_TASKS)]
            todo += [one.__cause__, one.__context__, *(one.exceptions or ())]


def plain_text(error: BaseException) -> str:
    """The text of an exception; of one whose text can't be made, its type."""
    try:
        return str(error)
    except Exception:
        return error_text(error)
