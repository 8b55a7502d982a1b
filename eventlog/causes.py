"""Why did a write to a bucket fail? SlateDB tries again without a word; a few requests of our own say what is wrong.

Asked only after a failure, so it may find that all is well again: then nothing is added.
"""

from typing import Final

from ledgerq.eventlog.errors import ClockWentBack, Fenced, InvalidArgument, LedgerError, StoreUnavailable
from ledgerq.eventlog.objects import Objects

__all__ = ["CAUSE_LIMIT_S", "with_cause"]

CAUSE_LIMIT_S: Final = 5.0
_PROBE: Final = "preflight"
_CLEAR: Final = (Fenced, ClockWentBack, InvalidArgument)


async def with_cause(error: LedgerError, objects: Objects) -> LedgerError:
    """The same error; unless it is clear already, it says as well what keeps the bucket from being written now."""
    if isinstance(error, _CLEAR):
        return error
    try:
        await objects.has_any("manifest/")
        await objects.put(_PROBE, b"")
        await objects.delete(_PROBE)
    except StoreUnavailable as cause:
        error.args = (f"{error}. Asked again, it says: {cause}", *error.args[1:])
    return error
