"""The mapping of SlateDB's errors to our own tree: none of the binding's exceptions leaves `eventlog`."""

import re
from typing import Final

from slatedb.uniffi import CloseReason, Error, InternalError

from ledgerq.eventlog.errors import (
    ClockWentBack,
    Fenced,
    InvalidArgument,
    LedgerError,
    LogPoisoned,
    OutcomeUnknown,
    QueueClosed,
    StoreNotFound,
    StoreUnavailable,
)
from ledgerq.eventlog.runtime.commands import salvage_command
from ledgerq.eventlog.runtime.redaction import redact_urls

__all__ = ["NO_COMPACTIONS", "SLATE_ERRORS", "closed_error", "late_error", "salvage_it", "translate"]

# A Rust panic comes as InternalError, which is no subclass of Error.
SLATE_ERRORS: Final = (Error, InternalError)

_CLOCK: Final = re.compile(r"invalid clock tick.*last_tick=`(-?\d+)`, next_tick=`(-?\d+)`")
# Two processes that make one store at the same moment: the slower one finds the manifest that it was about to write.
_OUTRUN: Final = "version already exists"
_COMPACTIONS: Final = "invalid compaction"
_NOT_FOUND: Final = ("failed to find latest transactional object", "failed to find manifest")

NO_COMPACTIONS: Final = (
    "remove the folder compactions/ and gc/compactions.boundary: they hold what is to be done, nothing that was written"
)


def salvage_it(url: str) -> str:
    """The end of a message about damaged files: what to do about them."""
    return f"restore a copy, or save what is still there with: {salvage_command(url)}"


def translate(error: BaseException, url: str) -> LedgerError:
    """The error of our tree for one of `SLATE_ERRORS`, raised by the store at `url`."""
    # Some of its messages are several lines long.
    message = redact_urls(" ".join(str(getattr(error, "message", error)).split()))
    if isinstance(error, InternalError):
        return LogPoisoned(
            f"{url}: SlateDB failed inside ({message}); what it holds is unknown: open it again, and if that fails, "
            f"{salvage_it(url)}"
        )
    if isinstance(error, Error.Closed):
        return closed_error(error.reason, url, message)
    if (tick := _CLOCK.search(message)) is not None:
        return ClockWentBack(now_ms=int(tick[2]), last_ms=int(tick[1]))
    if any(text in message for text in _NOT_FOUND):
        return StoreNotFound(f"there is no store at {url}; check the URL, or open it for writing to create one")
    if _OUTRUN in message:
        return _fenced(url)
    if _COMPACTIONS in message:
        return LogPoisoned(
            f"{url}: the newest file in compactions/ does not go with the manifest ({message}); {NO_COMPACTIONS}; or "
            f"{salvage_it(url)}"
        )
    if isinstance(error, Error.Invalid):
        return InvalidArgument(f"{url}: {message}")
    if isinstance(error, Error.Unavailable):
        return StoreUnavailable(f"{url}: {message}")
    if isinstance(error, Error.Data):
        return LogPoisoned(f"{url}: the store's files are damaged or missing ({message}); {salvage_it(url)}")
    return LogPoisoned(
        f"{url}: {message}; what it holds is unknown: open it again, and if that fails, {salvage_it(url)}"
    )


def closed_error(reason: CloseReason, url: str, message: str = "") -> LedgerError:
    """The error for the reason of which a database handle is closed."""
    if reason == CloseReason.FENCED:
        return _fenced(url)
    if reason == CloseReason.CLEAN:
        return QueueClosed(f"{url} was closed; open it again")
    return LogPoisoned(f"{url}: SlateDB stopped ({reason.name} {message}); open it again to learn what it holds")


def late_error(url: str, what: str, limit_s: float, remedy: str = "") -> OutcomeUnknown:
    """The error for a write that was not confirmed within `limit_s` seconds; `remedy`: what to do, if known."""
    return OutcomeUnknown(
        f"{url}: {what} was not confirmed within {limit_s:g} s, so it may or may not be in the log; "
        f"{remedy or 'check that the store can be reached'}, then open it again to learn which"
    )


def _fenced(url: str) -> Fenced:
    return Fenced(
        f"another process opened {url} for writing, and this one was fenced: stop it, or open it again to take over"
    )
