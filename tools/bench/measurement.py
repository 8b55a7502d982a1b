"""The benchmark's measurements and what they need: sizes, locations of stores, targets, results.

The measurements themselves are in the modules that bench.py names; it runs them.
"""

import shutil
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.queue import Queue

__all__ = ["FULL", "MEMORY", "QUEUE", "QUICK", "Bench", "Measurement", "Sizes", "Target", "percentile"]

QUEUE: Final = "mail"
MEMORY: Final = "memory:///"
_MS_PER_S: Final = 1000


@dataclass(frozen=True, slots=True)
class Sizes:
    """The amounts of work. The baseline gets less where it is slower, so that both run for a similar time."""

    callers: int = 100
    many_callers: int = 400
    payload_bytes: int = 100
    jobs: int = 40_000
    baseline_jobs: int = 4_000
    bulk_calls: int = 100
    baseline_bulk_calls: int = 20
    jobs_per_call: int = 1_000
    probe_jobs: int = 1_000
    latency_s: float = 10.0
    latency_jobs_per_s: int = 100
    latency_workers: int = 10
    log_jobs: int = 110_000
    open_jobs: int = 1_000_000
    audit_done_jobs: int = 40_000
    drain_jobs: int = 100_000
    memory_jobs: int = 200_000
    s3_jobs: int = 6_000
    s3_worker_jobs: int = 20_000
    s3_baseline_jobs: int = 1_000
    s3_delay_ms: int = 20
    paced_s: float = 6.0
    cost_jobs: int = 500
    cost_pairs: int = 80
    cost_processes: int = 3


FULL: Final = Sizes()
QUICK: Final = Sizes(
    callers=20,
    many_callers=40,
    jobs=1_000,
    baseline_jobs=200,
    bulk_calls=4,
    baseline_bulk_calls=2,
    jobs_per_call=200,
    probe_jobs=100,
    latency_s=0.5,
    log_jobs=1_000,
    open_jobs=2_000,
    audit_done_jobs=200,
    drain_jobs=1_000,
    memory_jobs=2_000,
    s3_jobs=200,
    s3_worker_jobs=400,
    s3_baseline_jobs=100,
    paced_s=0.5,
    cost_jobs=200,
    cost_pairs=2,
    cost_processes=1,
)
# A measurement begins no further run when it has taken so long.
_LIMIT_S: Final = 90.0


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a measurement: its own median, or the median of its ratios to the baseline."""

    of: Literal["value", "ratio"]
    at_least: float | None = None
    at_most: float | None = None

    @property
    def text(self) -> str:
        """The target as text for people: "at least 12x"."""
        times = "x" if self.of == "ratio" else ""
        if self.at_least is not None:
            return f"at least {self.at_least:,.10g}{times}"
        return f"at most {self.at_most:,.10g}{times}"

    def reached_by(self, number: float) -> bool:
        """Whether `number` reaches the target."""
        if self.at_least is not None and number < self.at_least:
            return False
        return self.at_most is None or number <= self.at_most


@dataclass(slots=True)
class Measurement:
    """A measurement of one or more runs. `baseline` has one number for each of ours, taken right after it."""

    name: str
    title: str
    unit: str
    better: Literal["higher", "lower"] = "higher"
    target: Target | None = None
    baseline_is: str | None = None
    runs: list[float] = field(default_factory=list)
    baseline: list[float] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """The median of our runs."""
        return statistics.median(self.runs)

    @property
    def ratios(self) -> list[float]:
        """How many times better than the baseline, run by run; above 1 is better whatever the unit."""
        pairs = zip(self.runs, self.baseline, strict=True) if self.baseline else ()
        return [ours / theirs if self.better == "higher" else theirs / ours for ours, theirs in pairs]

    @property
    def ratio(self) -> float | None:
        """The median of the ratios, None without a baseline."""
        return statistics.median(self.ratios) if self.baseline else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached, None without one."""
        if self.target is None:
            return None
        number = self.median if self.target.of == "value" else self.ratio
        return number is not None and self.target.reached_by(number)

    def document(self) -> dict[str, Any]:
        """The measurement as a JSON document."""
        target = None
        if self.target is not None:
            target = {**asdict(self.target), "text": self.target.text, "reached": self.reached}
        return {
            "name": self.name,
            "title": self.title,
            "unit": self.unit,
            "better": self.better,
            "runs": self.runs,
            "median": self.median,
            "baseline_is": self.baseline_is,
            "baseline_runs": self.baseline,
            "baseline_median": statistics.median(self.baseline) if self.baseline else None,
            "ratios": self.ratios,
            "ratio_median": self.ratio,
            "target": target,
            "details": self.details,
        }


@dataclass
class Bench:
    """One call of the program: sizes, options, and where its stores are made."""

    root: str
    sizes: Sizes
    runs: int
    fsync: bool
    commit_interval_ms: float | None
    say: Callable[[str], None]
    flush_interval_ms: int = 0
    # Of an object store: the number of PUT requests so far.
    count_puts: Callable[[], Awaitable[int]] | None = None
    _stores: int = 0

    @property
    def payload(self) -> bytes:
        """The payload of each job."""
        return b"x" * self.sizes.payload_bytes

    @property
    def store_options(self) -> StoreOptions:
        """The options with which ledgerq opens its stores here: the defaults, but for fsync."""
        return StoreOptions(fsync=self.fsync)

    @contextmanager
    def new_store(self, name: str) -> Iterator[str]:
        """The URL of a store of its own, removed at the end if it is a folder of this machine."""
        self._stores += 1
        url = MEMORY if self.root == MEMORY else f"{self.root}/{self._stores:03d}-{name}"
        try:
            yield url
        finally:
            location = parse_location(url)
            if location.is_file:
                shutil.rmtree(location.folder, ignore_errors=True)

    def queue(self, url: str, *, fsync: bool | None = None) -> Opening[Queue]:
        """ledgerq's queue in the store at `url`; `fsync` as asked for unless given here."""
        options = self.store_options if fsync is None else StoreOptions(fsync=fsync)
        return Queue.open(url, store_options=options, commit_interval_ms=self.commit_interval_ms)

    def turns(self) -> Iterator[int]:
        """The numbers of the runs of one measurement: fewer than asked for when they take too long."""
        end_s = time.monotonic() + _LIMIT_S
        for number in range(self.runs):
            if number and time.monotonic() > end_s:
                return
            yield number


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` percent of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]
