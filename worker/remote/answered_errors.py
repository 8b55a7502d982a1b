"""The errors that a service answers with."""

from typing import Final

from ledgerq.eventlog import errors
from ledgerq.worker.remote import service_errors
from ledgerq.worker.remote.wire import ErrorBody

__all__ = ["error_of"]

# Those that are made of a message alone.
_ERRORS: Final = {
    error.__name__: error
    for error in (
        errors.ClaimLost,
        errors.DuplicateJobId,
        errors.InvalidArgument,
        errors.InvalidQueueName,
        errors.InvalidState,
        errors.JobNotFound,
        service_errors.NotAllowed,
        errors.OutcomeUnknown,
        *(errors.PayloadMissing, errors.PayloadTooLarge),
        *(errors.ResultGone, errors.ResultTooLarge),
        errors.ScheduleNotFound,
        *(errors.StoreUnavailable, errors.UniqueKeyHeld),
    )
}


def error_of(body: ErrorBody) -> errors.LedgerError:
    """The error that a service answered with; one that is not known here is a `ServiceError` of its name."""
    if (known := _ERRORS.get(body.error)) is not None:
        return known(body.message)
    return service_errors.ServiceError(f"{body.error}: {body.message}", permanent=body.permanent)
