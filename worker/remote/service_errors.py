"""The errors of a service's client."""

from ledgerq.eventlog.errors import LedgerError, StoreUnavailable

__all__ = ["NotAllowed", "ServiceError", "ServiceUnavailable"]


class NotAllowed(LedgerError):
    """The service refuses: without a token that it knows, or with one whose scopes or queues don't include this."""


class ServiceError(LedgerError):
    """A service answered with an error that this ledgerq doesn't know, or with something that is no answer."""

    def __init__(self, message: str, *, permanent: bool = True) -> None:
        super().__init__(message)
        self.permanent = permanent  # type: ignore[misc]


class ServiceUnavailable(StoreUnavailable):
    """No address of the service could be reached in time, or none is the writer; the message has what each answered."""
