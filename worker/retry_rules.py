"""Rules of retries by exception: how often, and after how long, a try that raised one is tried again."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.options import seconds_ms

__all__ = ["RetryRule", "on", "rule_for"]

_MAX_ATTEMPTS: Final = 1_000_000


class RetryRule(NamedTuple):
    """A rule made by `on`; what is None is as the job and its queue have it."""

    errors: tuple[type[BaseException], ...]
    attempts: int | None = None
    base: float | None = None
    cap: float | None = None
    dead: bool = False


def on(
    *errors: type[BaseException],
    attempts: int | None = None,
    base: float | None = None,
    cap: float | None = None,
    dead: bool = False,
) -> RetryRule:
    """The rule for these exceptions, and those derived from them: `retry=[on(ConnectionError, attempts=10)]`.

    `attempts`: how many tries the job has in all when its last one raised this (None: its `max_attempts`). `base` and
    `cap`: of the backoff, in seconds (None: the queue's). `dead`: no retry. A time-out is a `TimeoutError`.
    """
    if not errors or not all(isinstance(error, type) and issubclass(error, BaseException) for error in errors):
        raise InvalidArgument(f"on takes classes of exceptions, as in on(ConnectionError, attempts=10), not {errors!r}")
    if attempts is not None and (type(attempts) is not int or not 1 <= attempts <= _MAX_ATTEMPTS):
        raise InvalidArgument(f"attempts is a whole number from 1 to {_MAX_ATTEMPTS}, not {attempts!r}")
    for name, seconds in (("base", base), ("cap", cap)):
        if seconds is not None:
            seconds_ms(name, seconds)
    if base is not None and cap is not None and base > cap:
        raise InvalidArgument(f"base={base!r} is more than cap={cap!r}, so no retry would wait for it")
    if type(dead) is not bool or (dead and not attempts is base is cap is None):
        raise InvalidArgument("dead=True means no retry: give it alone, without attempts, base and cap")
    return RetryRule(errors, attempts, base, cap, dead)


def rule_for(error: BaseException, rules: Iterable[RetryRule]) -> RetryRule | None:
    """The first rule that is for this exception."""
    return next((rule for rule in rules if isinstance(error, rule.errors)), None)
