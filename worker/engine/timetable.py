"""Timetables: the ticks of a cron expression in a time zone, or of a fixed interval, as ms since the Unix epoch.

Cron expressions are those of Debian's cron, also at the edges of summer time: a tick at a fixed hour that falls into
the gap comes right after it, and one in the hour that comes twice comes once; those with a star for the hour or the
minute follow the clock. See https://manpages.debian.org/cron(8), and the package cronsim.
"""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.options import MAX_TIME_MS

__all__ = ["MAX_MISSED", "due_ticks", "moment", "next_tick", "spec_of"]

MAX_MISSED: Final = 1000
_EVERY: Final = "every "
_SECOND_MS: Final = 1000
_MAX_SPEC_CHARS: Final = 255
# A tick is found in some 40 us; a few of them in one turn of the event loop.
_AT_ONCE: Final = 10


def spec_of(when: str | timedelta, zone: str) -> str:
    """What stands for a timetable in the log; raises `InvalidArgument` for one that has no tick, or no such zone."""
    if isinstance(when, timedelta):
        every_ms = round(when.total_seconds() * 1000)
        if not _SECOND_MS <= every_ms <= MAX_TIME_MS:
            raise InvalidArgument(f"every is a timedelta of a second or more, not {when!r}")
        return f"{_EVERY}{every_ms}"
    _zone(zone)
    if not isinstance(when, str) or len(when) > _MAX_SPEC_CHARS or len(when.split()) != 5:
        raise InvalidArgument(f"a cron expression has five fields, as in '30 2 * * 1-5', and {when!r} has not")
    spec = " ".join(when.split())
    try:
        next(_cron(spec, datetime(2000, 1, 1, tzinfo=UTC)))
    except StopIteration as error:
        raise InvalidArgument(f"the cron expression {when!r} is for no day that there is") from error
    return spec


def next_tick(spec: str, zone: str, after_ms: int) -> int:
    """The first tick after this time; 0 when there is none up to the year 9999, or within 50 years."""
    if spec.startswith(_EVERY):
        tick_ms = after_ms + int(spec.removeprefix(_EVERY))
        return tick_ms if tick_ms <= MAX_TIME_MS else 0
    try:
        return round(next(_cron(spec, moment(after_ms, zone))).timestamp()) * 1000
    except (StopIteration, OverflowError, ValueError):
        return 0


async def due_ticks(spec: str, zone: str, first_ms: int, now_ms: int) -> tuple[list[int], bool]:
    """The ticks from `first_ms`, which is one, to now; of more than 1,000 the last ones, and True."""
    found: list[int] = []
    for tick_ms in _backwards(spec, zone, first_ms, now_ms):
        if len(found) == MAX_MISSED:
            return found[::-1], True
        found.append(tick_ms)
        if len(found) % _AT_ONCE == 0:
            await asyncio.sleep(0)
    found.append(first_ms)
    return found[-2::-1] if len(found) > MAX_MISSED else found[::-1], len(found) > MAX_MISSED


def _backwards(spec: str, zone: str, first_ms: int, now_ms: int) -> Iterator[int]:
    """The ticks after `first_ms` up to now, the last one first."""
    if spec.startswith(_EVERY):
        every_ms = int(spec.removeprefix(_EVERY))
        yield from range(first_ms + (now_ms - first_ms) // every_ms * every_ms, first_ms, -every_ms)
        return
    for found in _cron(spec, moment(now_ms // 1000 * 1000 + 1000, zone), reverse=True):
        tick_ms = round(found.timestamp()) * 1000
        if tick_ms <= first_ms:
            return
        yield tick_ms


def _cron(spec: str, start: datetime, *, reverse: bool = False) -> CronSim:
    try:
        return CronSim(spec, start, reverse)
    except CronSimError as error:
        raise InvalidArgument(f"{spec!r} is no cron expression: {error}") from error


def moment(time_ms: int, zone: str) -> datetime:
    """A time as an aware `datetime` of this zone."""
    return datetime.fromtimestamp(time_ms / 1000, _zone(zone))


@lru_cache(1000)
def _zone(zone: str) -> ZoneInfo:
    try:
        return ZoneInfo(zone)
    except (ValueError, OSError, TypeError, LookupError) as error:
        raise InvalidArgument(f"there is no time zone {zone!r}: its name is one like 'Europe/Berlin'") from error
