"""The outcomes that a handler can raise, beside returning (done) or any other error (failed, try again)."""

import traceback
from typing import Final

from ledgerq.worker.options import seconds_ms

__all__ = ["Dead", "Retry", "error_text", "plain_text"]

_ERROR_LINES: Final = 12
_ERROR_CHARS: Final = 2000


class Dead(Exception):
    """Raised by a handler: this job can never succeed, make it a dead letter at once, with this text as its error."""


class Retry(Exception):
    """Raised by a handler: try again after `delay` seconds (None: after the queue's backoff)."""

    def __init__(self, delay: float | None = None, why: str = "the handler asked for a retry") -> None:
        super().__init__(why)
        if delay is not None:
            seconds_ms("delay", delay)
        self.delay = delay


def error_text(error: BaseException) -> str:
    """The last lines of the traceback, bounded to 2,000 characters: what an operator needs first."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(lines[-_ERROR_LINES:])[-_ERROR_CHARS:]


def plain_text(error: BaseException) -> str:
    """The text of an exception; of one whose text can't be made, its type."""
    try:
        return str(error)
    except Exception:
        return error_text(error)
