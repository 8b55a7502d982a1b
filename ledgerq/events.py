"""The events of the log, for projections and readers: `isinstance(record.event, ledgerq.events.Acked)`."""

from ledgerq.eventlog.events import *  # noqa: F403
from ledgerq.eventlog.events import __all__ as __all__
