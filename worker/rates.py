"""Rates of claims as people write them: "600/min", "10/s", "5000/h", "100/10s"."""

import re
from typing import Final, NamedTuple

from ledgerq.projections.limits import MAX_COUNT, MAX_PERIOD_MS

__all__ = ["Rate", "parse_rate"]

_RATE: Final = re.compile(r"(\d{1,7})/(\d{0,5})(s|min|h|day)", re.ASCII)
_UNIT_MS: Final = {"s": 1000, "min": 60_000, "h": 3_600_000, "day": 86_400_000}
# Claims that a rate lets through together, so that they share a commit.
_BURST_MS: Final = 50


class Rate(NamedTuple):
    """So many claims in each period; `burst` of them may come at once."""

    claims: int
    period_ms: int
    burst: int


def parse_rate(text: str, burst: int | None = None) -> Rate:
    """The rate in such a text; `burst` None: what comes in 50 ms, at least 1. Raises `ValueError`."""
    match = _RATE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'a rate is a text like "600/min", "10/s" or "100/10s" (s, min, h, day), not {text!r}')
    count, period_ms = int(match[1]), int(match[2] or 1) * _UNIT_MS[match[3]]
    if not (1 <= count <= MAX_COUNT and 1 <= period_ms <= MAX_PERIOD_MS):
        raise ValueError(f"a rate has 1 to {MAX_COUNT:,} claims in a period of up to a day, not {text!r}")
    burst = max(1, count * _BURST_MS // period_ms) if burst is None else burst
    if isinstance(burst, bool) or not isinstance(burst, int) or not 1 <= burst <= MAX_COUNT:
        raise ValueError(f"burst is a whole number from 1 to {MAX_COUNT:,}, not {burst!r}")
    return Rate(count, period_ms, burst)
