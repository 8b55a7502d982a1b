"""The events of the log, for projections and readers: `isinstance(record.event, ledgerq.events.Acked)`.

The fields that hold a job's id as bytes are called `id`; `job_id` is its text, everywhere in ledgerq.
"""

from ledgerq.eventlog.events import *  # noqa: F403
from ledgerq.eventlog.events import __all__ as __all__
