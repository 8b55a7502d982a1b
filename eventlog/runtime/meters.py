"""Measures that a process keeps of its own work, durations and sizes since it began; lost with it, and no facts.

Facts are in the log, and what follows from them in the projections; here are only measures for monitors.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["CommitMeters", "CommitTimes", "Meter"]

_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0),
)
_EVENTS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
_BYTES: Final = (256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)


class Meter:
    """A histogram: how many numbers fell into each bucket (at most its bound, above the one before), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum: float = 0

    def add(self, value: float) -> None:
        """Count one number."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class CommitTimes(NamedTuple):
    """The seconds that a store took: to take a batch, to flush it, and, on a file system, to sync the files."""

    write_s: float
    flush_s: float
    sync_s: float | None


class CommitMeters:
    """Durations and sizes of one log's commits, by phase: see `ledgerq_commit_seconds` in the catalogue of metrics."""

    def __init__(self) -> None:
        self.wait, self.fill, self.write, self.flush, self.sync = (Meter(_SECONDS) for _ in range(5))
        self.events = Meter(_EVENTS)
        self.bytes = Meter(_BYTES)
        self.log_bytes = 0

    def phases(self) -> dict[str, Meter]:
        """The seconds by phase, in the order in which a commit goes through them."""
        return {"wait": self.wait, "fill": self.fill, "write": self.write, "flush": self.flush, "sync": self.sync}

    def add(
        self, *, events: int, log_bytes: int, payload_bytes: int, wait_s: float, fill_s: float, times: CommitTimes
    ) -> None:
        """Count a durable commit."""
        self.events.add(events)
        self.bytes.add(log_bytes + payload_bytes)
        self.log_bytes += log_bytes
        self.wait.add(wait_s)
        self.fill.add(fill_s)
        self.write.add(times.write_s)
        self.flush.add(times.flush_s)
        if times.sync_s is not None:
            self.sync.add(times.sync_s)
