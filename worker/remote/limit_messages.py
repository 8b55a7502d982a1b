"""The messages of limits and holds."""

from ledgerq.eventlog.events import LimitsSet
from ledgerq.eventlog.limit_events import LimitsOrigin
from ledgerq.projections.limits import Limits
from ledgerq.worker.remote import wire

__all__ = ["HoldBody", "LimitBody", "LimitsAnswer", "LimitsFields", "limits_fields", "limits_of"]


class LimitBody(wire.ReasonBody, kw_only=True):
    """All limits of a queue, as of `Queue.limit`; with none those of the service's options are in force again."""

    max_running: int | None = None
    rate: str | None = None
    burst: int | None = None


class HoldBody(wire.ReasonBody, kw_only=True):
    """For how long none of a queue's jobs is claimed."""

    seconds: float


class LimitsFields(wire.Message):
    """The limits of a queue and what is used of them; see `LimitsSet` and `Limits`."""

    queue: str
    max_running: int
    count: int
    period_ms: int
    burst: int
    origin: LimitsOrigin | None
    actor: str
    used: int
    unit: int
    held_until_ms: int


class LimitsAnswer(wire.Message):
    """The limits of queues, in order of their names."""

    limits: list[LimitsFields]


def limits_fields(limits: Limits) -> LimitsFields:
    """Limits as a message."""
    one = limits.setting
    numbers = (0, 0, 0, 0) if one is None else (one.max_running, one.count, one.period_ms, one.burst)
    origin, actor = (None, "") if one is None else (one.origin, one.actor)
    return LimitsFields(
        queue=limits.queue,
        max_running=numbers[0],
        count=numbers[1],
        period_ms=numbers[2],
        burst=numbers[3],
        origin=origin,
        actor=actor,
        used=limits.used,
        unit=limits.unit,
        held_until_ms=limits.held_until_ms,
    )


def limits_of(fields: LimitsFields) -> Limits:
    """The limits in a message; the reason for which they were set is not in it."""
    setting = None
    if fields.origin is not None:
        numbers = (fields.max_running, fields.count, fields.period_ms, fields.burst)
        setting = LimitsSet(fields.queue, *numbers, fields.origin, fields.actor, "")
    return Limits(fields.queue, setting, fields.used, fields.unit, fields.held_until_ms)
