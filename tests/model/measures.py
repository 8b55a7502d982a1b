"""The expected histograms of a queue, counted a second time from the durable events, without the code judged.

The bounds stand here again on purpose: they are part of the format, and a change of them has to be noticed.
"""

from typing import Final

__all__ = ["Measures"]

_DURATIONS_MS: Final = (
    *(5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000),
    *(60_000, 300_000, 900_000, 3_600_000, 21_600_000, 86_400_000),
)
_ATTEMPTS: Final = (1, 2, 3, 4, 5, 10, 20)


class Measures:
    """How long jobs of a queue waited, ran and lived, and how many attempts they took."""

    def __init__(self) -> None:
        self._waiting = [0] * (len(_DURATIONS_MS) + 2)
        self._running = [0] * (len(_DURATIONS_MS) + 2)
        self._life = [0] * (len(_DURATIONS_MS) + 2)
        self._attempts = [0] * (len(_ATTEMPTS) + 2)

    def claimed(self, waited_ms: int) -> None:
        """A job was claimed after this time."""
        _count(self._waiting, _DURATIONS_MS, waited_ms)

    def nacked(self, ran_ms: int) -> None:
        """A try failed after this time."""
        _count(self._running, _DURATIONS_MS, ran_ms)

    def acked(self, ran_ms: int, lived_ms: int, attempts: int) -> None:
        """A job is done."""
        _count(self._running, _DURATIONS_MS, ran_ms)
        _count(self._life, _DURATIONS_MS, lived_ms)
        _count(self._attempts, _ATTEMPTS, attempts)

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """As the stats row holds them: each its sum, then the count of each bucket."""
        return tuple(tuple(row) for row in (self._waiting, self._running, self._life, self._attempts))


def _count(row: list[int], bounds: tuple[int, ...], value: int) -> None:
    value = max(value, 0)
    row[0] += value
    row[1 + sum(value > bound for bound in bounds)] += 1
