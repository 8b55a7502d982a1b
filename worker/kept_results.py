"""The results of handlers that return bytes."""

from typing import Any

from ledgerq.eventlog.errors import LedgerError
from ledgerq.worker.engine.settlement import check_result
from ledgerq.worker.outcomes import ResultDoesntFit

__all__ = ["kept_result"]


def kept_result(result: Any) -> bytes | None:
    """The result that a handler returned; raises `ResultDoesntFit` for what can't be kept."""
    try:
        check_result(result)
    except LedgerError as error:  # the next try would return as much
        raise ResultDoesntFit(f"the handler's result can't be kept: {error}") from error
    return result  # type: ignore[no-any-return]
