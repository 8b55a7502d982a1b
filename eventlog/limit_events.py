"""The events of limits: how many jobs of a queue may be claimed, and for how long none is.

A claim itself has no further fact: from these events and the times of commits the fold knows how much of a rate is used
(projections/limits.py). events.py has all others.
"""

from typing import Final, Literal

from ledgerq.eventlog.facts import Count, Fact, Id, Text

__all__ = ["LIMIT_KINDS", "Held", "HoldReleased", "LimitEvent", "LimitsOrigin", "LimitsSet"]

LimitsOrigin = Literal["code", "operator"]
"""Whose limits these are: of the options that a program opened the queue with, or of an operator, which go before."""


class LimitsSet(Fact, frozen=True):
    """The limits of a queue's claims from here on, in the place of those before.

    `max_running`: how many of its jobs may be claimed at a time, 0 for any number. `count` claims in each `period_ms`,
    `burst` of them at once; `count` 0: at any rate. Of a program's own limits `actor` is "ledgerq".
    """

    queue: str
    max_running: Count
    count: Count
    period_ms: Count
    burst: Count
    origin: LimitsOrigin
    actor: str
    reason: Text


class Held(Fact, frozen=True):
    """No job of the queue is claimed before `until_ms`. `job`: whose handler asked for it, if one did."""

    queue: str
    until_ms: Count
    job: Id | None
    actor: str
    reason: Text


class HoldReleased(Fact, frozen=True):
    """The queue is held no more."""

    queue: str
    actor: str
    reason: Text


LimitEvent = LimitsSet | Held | HoldReleased

LIMIT_KINDS: Final[dict[int, type[Fact]]] = {64: LimitsSet, 65: Held, 66: HoldReleased}
"""The numbers of these kinds: part of the format, see codec.py."""
