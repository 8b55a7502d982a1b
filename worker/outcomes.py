"""What a handler can say beside returning (done) or raising (failed, try again)."""

import traceback
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument

__all__ = ["Dead", "Retry", "error_text"]

_ERROR_LINES: Final = 12
_ERROR_CHARS: Final = 2000


class Dead(Exception):
    """Raised by a handler: this job can never succeed, make it a dead letter at once, with this text as its error."""


class Retry(Exception):
    """Raised by a handler: try again after `delay` seconds (None: after the queue's backoff)."""

    def __init__(self, delay: float | None = None, why: str = "the handler asked for a retry") -> None:
        super().__init__(why)
        if delay is not None and not delay >= 0:
            raise InvalidArgument(f"Retry takes a delay in seconds from 0 on, not {delay!r}")
        self.delay = delay


def error_text(error: BaseException) -> str:
    """The last lines of the traceback, bounded to 2,000 characters: what an operator needs first."""
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()
    return "\n".join(lines[-_ERROR_LINES:])[-_ERROR_CHARS:]
