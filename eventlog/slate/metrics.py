"""The recorder of those of SlateDB's metrics that are of use: counted in Rust, read at a scrape.

SlateDB registers about 125 of them when it opens, and lifting them all into Python costs more than a millisecond. So
only the chosen ones are registered where they are read from, without their descriptions; the others are counted, too,
by a recorder that is never read. Registering goes through Python, counting does not.

Left out is `object_store.error_count`: it counts the misses of a healthy store, one for each file that is new.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from slatedb.uniffi import (
    Counter,
    DefaultMetricsRecorder,
    Gauge,
    Histogram,
    Metric,
    MetricLabel,
    MetricsRecorder,
    UpDownCounter,
)

__all__ = ["SlateHistogram", "SlateMetrics", "SlateReading"]

_PREFIX: Final = "slatedb."
# Its name in SlateDB -> (our name for it, the labels that are kept). What other labels tell apart is added up.
_CHOSEN: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "db.request_count": ("requests", ("op",)),
    "db.write_ops": ("write_ops", ()),
    "db.backpressure_count": ("backpressure", ()),
    "db.l0_stall_count": ("l0_stalls", ("type",)),
    "db.l0_sst_count": ("l0_ssts", ()),
    "db.sorted_run_count": ("sorted_runs", ()),
    "db.total_mem_size_bytes": ("memory_bytes", ()),
    "db.l0_flush_bytes": ("l0_flushed_bytes", ()),
    "wal.wal_flush_bytes": ("wal_flushed_bytes", ()),
    "compactor.bytes_compacted": ("compacted_bytes", ()),
    "compactor.last_compaction_timestamp_sec": ("last_compaction_timestamp_seconds", ()),
    "db_cache.access_count": ("cache_accesses", ("entry_kind", "result")),
    "object_store.request_count": ("object_store_requests", ("component", "op")),
    "object_store.request_duration_seconds": ("object_store_request_seconds", ("op",)),
}
# Of the many requests to an object store these are the ones that a ledger uses all the time.
_TIMED_APIS: Final = frozenset({"get", "get_range", "put", "delete"})


class SlateHistogram(NamedTuple):
    """A histogram: `counts` has one more item than `bounds`."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float


SlateReading = dict[tuple[str, tuple[str, ...]], float | SlateHistogram]
"""(our name, the values of the labels that are kept) -> the number, or the histogram."""


class SlateMetrics(MetricsRecorder):  # type: ignore[misc]
    """The recorder given to one database; `read` gives what was counted."""

    def __init__(self) -> None:
        self._read_from = DefaultMetricsRecorder()
        self._unread = DefaultMetricsRecorder()

    def register_counter(self, name: str, description: str | None, labels: list[MetricLabel]) -> Counter:
        """Called by SlateDB as it opens."""
        return self._for(name, labels).register_counter(name, None, labels)

    def register_gauge(self, name: str, description: str | None, labels: list[MetricLabel]) -> Gauge:
        """Called by SlateDB as it opens."""
        return self._for(name, labels).register_gauge(name, None, labels)

    def register_up_down_counter(self, name: str, description: str | None, labels: list[MetricLabel]) -> UpDownCounter:
        """Called by SlateDB as it opens."""
        return self._for(name, labels).register_up_down_counter(name, None, labels)

    def register_histogram(
        self, name: str, description: str | None, labels: list[MetricLabel], boundaries: list[float]
    ) -> Histogram:
        """Called by SlateDB as it opens."""
        return self._for(name, labels).register_histogram(name, None, labels, boundaries)

    def _for(self, name: str, labels: list[MetricLabel]) -> DefaultMetricsRecorder:
        chosen = name.removeprefix(_PREFIX) in _CHOSEN
        if chosen and name.endswith("request_duration_seconds"):
            chosen = any(label.key == "api" and label.value in _TIMED_APIS for label in labels)
        return self._read_from if chosen else self._unread

    def read(self) -> SlateReading:
        """The numbers as of now; about a third of a millisecond, in any thread."""
        found: SlateReading = {}
        for metric in self._read_from.snapshot():
            name, kept = _CHOSEN[metric.name.removeprefix(_PREFIX)]
            labels = {label.key: label.value for label in metric.labels}
            key = (name, tuple(labels.get(label, "") for label in kept))
            found[key] = _sum(found.get(key), metric)
        return found


def _sum(so_far: float | SlateHistogram | None, metric: Metric) -> float | SlateHistogram:
    value = metric.value[0]
    if isinstance(value, int | float):
        assert not isinstance(so_far, SlateHistogram)
        return value + (so_far or 0)
    counts = [*value.bucket_counts]
    if isinstance(so_far, SlateHistogram):
        counts = [one + other for one, other in zip(counts, so_far.counts, strict=True)]
        return SlateHistogram(so_far.bounds, counts, so_far.sum + value.sum)
    return SlateHistogram(tuple(value.boundaries), counts, value.sum)
