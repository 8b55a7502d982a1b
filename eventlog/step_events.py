"""The events of what a job's tries do beside their end: the steps that are done. events.py has all others."""

from ledgerq.eventlog.facts import Fact, Id, Sealed

__all__ = ["StepDone"]


class StepDone(Fact, frozen=True):
    """A step of the claimed job is done: no later try does it again.

    `value`: the place of what it returned, beside the log until the job is gone; None for a step that returned None.
    """

    id: Id
    name: str
    value: Sealed | None
