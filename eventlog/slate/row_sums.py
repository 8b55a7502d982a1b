"""The sum of a set of rows: the same for the same rows in any order, and for no others that anyone could find.

So rows need not be brought together to be compared: whoever has some of them adds theirs up. The compiled module
`_rows` makes the sums (see _sums.c, which names the sources); where it was not built there are none.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

try:
    from ledgerq.eventlog.slate import _rows  # type: ignore[attr-defined]
except ImportError:
    _rows = None

__all__ = ["SECRET_BYTES", "RowSum", "can_sum", "sum_of", "total"]

SECRET_BYTES: Final = 16
_LANE: Final = 2**64


class RowSum(NamedTuple):
    """How many rows, and the sums of the two halves of their keyed hashes, each modulo 2^64."""

    rows: int = 0
    low: int = 0
    high: int = 0


def can_sum() -> bool:
    """Whether the compiled module is there and knows how."""
    return hasattr(_rows, "sum_rows")


def sum_of(rows: dict[bytes, bytes], secret: bytes) -> RowSum:
    """The sum of these rows; `secret` are 16 random bytes, the same for all sums that are compared with each other."""
    return RowSum(*_rows.sum_rows(rows, secret))


def total(sums: Iterable[RowSum]) -> RowSum:
    """The sum of all rows together."""
    rows = low = high = 0
    for some in sums:
        rows, low, high = rows + some.rows, low + some.low, high + some.high
    return RowSum(rows, low % _LANE, high % _LANE)
