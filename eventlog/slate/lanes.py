"""The choice of the lane: the fastest one that works with the installed binding."""

from functools import lru_cache

from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.slate.binding import Lane, PublicLane
from ledgerq.eventlog.slate.fast_binding import FastLane, check
from ledgerq.eventlog.slate.native_binding import NativeLane, is_built

__all__ = ["best_lane"]

_log = logger("store")


@lru_cache(maxsize=1)
def best_lane() -> Lane:
    """The native lane where it was built, else the fast one; a slower one, with a warning, when those don't fit."""
    for kind in (NativeLane, FastLane) if is_built() else (FastLane,):
        try:
            lane = kind()
            check(lane)
        except Exception as error:
            # The public parts remain, however the private ones differ.
            _log.warning(
                "the installed slatedb binding differs from the one ledgerq knows (%s): using slower calls than %s's",
                error,
                kind.__name__,
                extra=about("slow_lane"),
            )
        else:
            return lane
    return PublicLane()
