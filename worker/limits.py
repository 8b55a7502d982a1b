"""The limits of a queue as a program's options and its operators give them, and the events of them."""

from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import LimitsSet
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.rates import parse_rate

__all__ = ["new_limits", "queue_limits", "same_limits"]

# The actor of events that a queue decides by itself.
_OWN_ACTOR: Final = "ledgerq"
_MAX_RUNNING: Final = 1_000_000


def queue_limits(queue: str, options: QueueOptions) -> LimitsSet:
    """The limits of the queue in a program's options."""
    count, period_ms, burst = (0, 0, 0) if options.rate is None else parse_rate(options.rate, options.burst)
    return LimitsSet(queue, options.max_running or 0, count, period_ms, burst, "code", _OWN_ACTOR, "")


def same_limits(setting: LimitsSet | None, wanted: LimitsSet) -> bool:
    """Whether a queue that has these limits needs no event to have the wanted ones."""
    return _numbers(wanted) == ((0, 0, 0, 0) if setting is None else _numbers(setting))


def _numbers(limits: LimitsSet) -> tuple[int, ...]:
    return limits.max_running, limits.count, limits.period_ms, limits.burst


def new_limits(
    queue: str, *, max_running: int | None, rate: str | None, burst: int | None, actor: str, reason: str
) -> LimitsSet:
    """An operator's limits, checked; raises `InvalidArgument`."""
    if max_running is not None:
        is_number = isinstance(max_running, int) and not isinstance(max_running, bool)
        if not is_number or not 1 <= max_running <= _MAX_RUNNING:
            raise InvalidArgument(f"max_running is a whole number from 1 to {_MAX_RUNNING:,}, not {max_running!r}")
    if rate is None and burst is not None:
        raise InvalidArgument("burst is that of a rate: give both")
    try:
        count, period_ms, most = (0, 0, 0) if rate is None else parse_rate(rate, burst)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    return LimitsSet(queue, max_running or 0, count, period_ms, most, "operator", actor, reason)
