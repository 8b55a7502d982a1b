"""Histograms that are part of the fold: how many numbers fell into each of some fixed ranges, and their sum.

They stand in a queue's stats row, so they are durable, audited and rebuilt like every counter. The numbers come from
facts only: commit times and due times in ms, attempts. The bounds are part of the format: changing one is a new format.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, NamedTuple

__all__ = ["ATTEMPT_BOUNDS", "DURATION_BOUNDS_MS", "MEASURES", "Exemplar", "Histogram", "HistogramView"]

# A bucket holds what is at most its bound and above the one before it; the last bucket, without a bound, the rest.
DURATION_BOUNDS_MS: Final = (
    *(5, 10, 25, 50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 30_000),
    *(60_000, 300_000, 900_000),
    *(3_600_000, 21_600_000, 86_400_000),
)
ATTEMPT_BOUNDS: Final = (1, 2, 3, 4, 5, 10, 20)

# The bucket of a number up to this one is looked up in a table, which is quicker than a search: most numbers are small.
_MAX_IN_TABLE: Final = 1000

# What is measured for each queue. The order is part of the format: append only.
MEASURES: Final = ("waiting", "running", "life", "attempts")


class Exemplar(NamedTuple):
    """The job that fell into a bucket last: its id, the number, and the commit time in ms. In memory only."""

    id: bytes
    value: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class HistogramView:
    """A histogram as users see it: `counts` are those of the single buckets, one more than there are bounds."""

    bounds: Sequence[int]
    counts: tuple[int, ...]
    sum: int

    @property
    def count(self) -> int:
        """The number of measurements."""
        return sum(self.counts)


class Histogram:
    """A histogram that is being counted."""

    __slots__ = ("_buckets", "bounds", "counts", "last", "sum")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self._buckets = _buckets(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0
        self.last: list[tuple[bytes, int, int] | None] = [None] * (len(bounds) + 1)

    def count(self, value: int) -> None:
        """Count one number, not below 0, without an exemplar."""
        self.counts[self._buckets[value] if value <= _MAX_IN_TABLE else bisect_left(self.bounds, value)] += 1
        self.sum += value

    def add(self, value: int, id: bytes, time_ms: int) -> None:
        """Count one number of a job; one below 0 (a commit opened before the job was due) counts as 0."""
        if value > 0:
            at = self._buckets[value] if value <= _MAX_IN_TABLE else bisect_left(self.bounds, value)
            self.sum += value
        else:
            at = value = 0
        self.counts[at] += 1
        self.last[at] = (id, value, time_ms)

    def include(self, other: "Histogram") -> None:
        """Add the counts of other measurements, without their exemplars."""
        self.sum += other.sum
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]

    def encode(self) -> list[int]:
        """The histogram's part of a stats row: the sum, then the count of each bucket."""
        return [self.sum, *self.counts]

    @classmethod
    def decode(cls, bounds: tuple[int, ...], row: Sequence[int]) -> "Histogram":
        """Read what `encode` wrote; raises `ValueError` or `TypeError` when the row is malformed."""
        histogram = cls(bounds)
        if len(row) != len(bounds) + 2 or not all(type(number) is int for number in row):
            raise ValueError("a histogram has the wrong shape")
        histogram.sum, *histogram.counts = row
        return histogram

    def exemplars(self) -> list[Exemplar | None]:
        """The last job of each bucket, as far as this process counted one."""
        return [None if last is None else Exemplar(*last) for last in self.last]

    def view(self) -> HistogramView:
        """The counts as they are now."""
        return HistogramView(self.bounds, tuple(self.counts), self.sum)


@cache
def _buckets(bounds: tuple[int, ...]) -> bytes:
    return bytes(bisect_left(bounds, value) for value in range(_MAX_IN_TABLE + 1))


def new_histograms() -> list[Histogram]:
    """One empty histogram for each of `MEASURES`."""
    return [Histogram(ATTEMPT_BOUNDS if measure == "attempts" else DURATION_BOUNDS_MS) for measure in MEASURES]
