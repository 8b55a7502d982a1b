"""The soak's report: a line for each sample and each restart, the verdicts at the end, and the tolerances.

What grows on purpose, and what is therefore not judged, or not before it can have come to rest:

- The log, which is kept for ever: `LOG_BYTES_PER_EVENT` are taken off the bytes in use.
- Files of the write-ahead log, one for each commit, until the garbage collection that follows a minute after they were
  last needed: thousands, rising and falling with a period of about a minute.
- Sorted files that a compaction has replaced: a checkpoint of SlateDB's compactor keeps each for 15 minutes. What is in
  use by the newest manifest is judged from the start.
- Memory while SlateDB's block cache (32 MiB), its memtables and the C library's heaps fill: they came to rest about 7
  minutes after the start. What Python itself holds is judged from the start.
- Threads: SlateDB's runtime has up to 512 for blocking calls, and ends one after 10 s without work.

Everything here is made from samples: dictionaries as meter.py measures them, with the time, the process, and the
files of the store added by the conductor.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tests.soak.drift import Drift, Tolerance, judge

__all__ = ["RESIDENT", "Sample", "judge_all", "restart_line", "sample_line", "totals"]

Sample = Mapping[str, Any]

RESIDENT: Final = "resident"
_MIB: Final = 1024 * 1024
# What the log legitimately adds to the store for each event, with what sorted files and their indexes need besides.
LOG_BYTES_PER_EVENT: Final = 60
_COLLECTED_AFTER_S: Final = 180.0
_CACHES_FULL_AFTER_S: Final = 420.0
_CHECKPOINTS_GONE_AFTER_S: Final = 1000.0


class _Series(NamedTuple):
    """A series that is judged; `everywhere`: in all processes, not only in the one that lives throughout."""

    name: str
    unit: str
    tolerance: Tolerance
    value: Callable[[Sample], float | None]
    everywhere: bool = False
    warm_up_s: float = 0.0


def _of(key: str, per: float = 1.0) -> Callable[[Sample], float | None]:
    def value(sample: Sample) -> float | None:
        found = sample.get(key)
        return None if found is None else float(found) / per

    return value


def _beside_log_mib(key: str) -> Callable[[Sample], float | None]:
    def value(sample: Sample) -> float | None:
        found = sample.get(key)
        return None if found is None else float(found - sample["offset"] * LOG_BYTES_PER_EVENT) / _MIB

    return value


_SERIES: Final = (
    _Series("memory (RSS)", "MiB", Tolerance(24, 0.10), _of("rss_bytes", _MIB), warm_up_s=_CACHES_FULL_AFTER_S),
    _Series("blocks allocated by Python", "thousand", Tolerance(20, 0.05), _of("blocks", 1000)),
    _Series("open files", "fds", Tolerance(8, 0.10), _of("fds")),
    _Series("tasks", "tasks", Tolerance(10, 0.10), _of("tasks")),
    _Series("Python's threads", "threads", Tolerance(8, 0.10), _of("python_threads")),
    _Series("all threads", "threads", Tolerance(512, 0.0), _of("threads")),
    _Series("sorted files in use", "files", Tolerance(16, 0.25), _of("used_files"), True),
    _Series("bytes in use beside the log", "MiB", Tolerance(16, 0.25), _beside_log_mib("used_bytes"), True),
    _Series("objects of the store", "files", Tolerance(200, 0.25), _of("objects"), True, _COLLECTED_AFTER_S),
    _Series("sorted files kept", "files", Tolerance(32, 0.25), _of("sorted"), True, _CHECKPOINTS_GONE_AFTER_S),
    _Series(
        "bytes kept beside the log",
        "MiB",
        Tolerance(64, 0.25),
        _beside_log_mib("store_bytes"),
        True,
        _CHECKPOINTS_GONE_AFTER_S,
    ),
    _Series("backlog", "jobs", Tolerance(100, 0.50), _of("backlog"), True),
    _Series("enqueueing, p50", "ms", Tolerance(5, 0.50), _of("enqueue_p50_ms"), True),
    _Series("enqueueing, p99", "ms", Tolerance(40, 1.0), _of("enqueue_p99_ms"), True),
    _Series("claiming, p50", "ms", Tolerance(5, 0.50), _of("claim_p50_ms"), True),
    _Series("claiming, p99", "ms", Tolerance(40, 1.0), _of("claim_p99_ms"), True),
)
_OPENING: Final = Tolerance(0.5, 1.0)


def judge_all(samples: Sequence[Sample], openings_s: Sequence[tuple[float, float]]) -> list[Drift]:
    """A verdict on each series of the samples, and on how long opening took: (time, seconds)."""
    found = []
    for one in _SERIES:
        values = [
            (sample["time_s"], value)
            for sample in samples
            if (one.everywhere or sample["process"] == RESIDENT) and (value := one.value(sample)) is not None
        ]
        if values:
            found.append(judge(one.name, one.unit, values, one.tolerance, warm_up_s=one.warm_up_s))
    return [*found, judge("time to open", "s", openings_s, _OPENING)]


def sample_line(sample: Sample) -> str:
    """A sample on one line."""
    span_s = sample["span_s"]
    parts = [
        f"{_clock(sample['time_s'])} {sample['process']}",
        f"enqueued {sample['enqueued'] / span_s:.0f}/s settled {sample['settled'] / span_s:.0f}/s",
        f"backlog {sample['backlog']}",
        f"enqueue p50 {_ms(sample['enqueue_p50_ms'])} p99 {_ms(sample['enqueue_p99_ms'])} ms",
        f"claim p50 {_ms(sample['claim_p50_ms'])} p99 {_ms(sample['claim_p99_ms'])} ms",
        f"cpu {sample['cpu']:.0%}",
        f"rss {_count(sample['rss_bytes'], _MIB)} MiB blocks {_count(sample['blocks'], 1000)}k",
        f"fds {_count(sample['fds'])} tasks {sample['tasks']} threads {sample['threads']}",
    ]
    if sample.get("store_bytes") is not None:
        parts.append(
            f"store {sample['objects']} objects ({sample['wal']} wal, {sample['sorted']} sorted) "
            f"{sample['store_bytes'] / _MIB:.1f} MiB"
        )
    if sample.get("used_bytes") is not None:
        parts.append(f"in use {sample['used_files']} sorted {sample['used_bytes'] / _MIB:.1f} MiB")
    return "  ".join(parts)


def restart_line(time_s: float, what: str, checked: Any) -> str:
    """A restart and its audit on one line."""
    verdict = f"{len(checked.wrong)} things wrong" if checked.wrong else "nothing wrong"
    return (
        f"{_clock(time_s)} {what}; audit of {checked.events:,} events and {checked.jobs:,} jobs, "
        f"{checked.facts:,} promises: {verdict} ({checked.seconds:.1f} s)"
    )


def totals(samples: Sequence[Sample]) -> str:
    """What was done altogether, on one line."""
    enqueued, settled = (sum(sample[key] for sample in samples) for key in ("enqueued", "settled"))
    busy_s = sum(sample["span_s"] for sample in samples)
    held_back = sum(sample["held_back"] for sample in samples)
    medians = {
        key: statistics.median([sample[key] for sample in samples if sample[key] is not None] or [0.0])
        for key in ("enqueue_p50_ms", "enqueue_p99_ms", "claim_p50_ms", "claim_p99_ms", "cpu")
    }
    return (
        f"sampled {busy_s:.0f} s of load: {enqueued:,} jobs enqueued, {settled:,} claims settled "
        f"({enqueued / max(busy_s, 1e-6):.0f}/s and {settled / max(busy_s, 1e-6):.0f}/s), "
        f"medians: enqueue p50 {_ms(medians['enqueue_p50_ms'])} p99 {_ms(medians['enqueue_p99_ms'])} ms, "
        f"claim p50 {_ms(medians['claim_p50_ms'])} p99 {_ms(medians['claim_p99_ms'])} ms, cpu {medians['cpu']:.0%}"
        + (f"; producers were held back {held_back} times" if held_back else "")
    )


def _clock(time_s: float) -> str:
    minutes, seconds = divmod(round(time_s), 60)
    return f"{minutes:3d}:{seconds:02d}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _count(value: float | None, per: int = 1) -> str:
    return "-" if value is None else f"{value / per:.0f}"
