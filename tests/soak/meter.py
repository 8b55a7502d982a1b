"""The soak's measurements of itself: rates, latencies, its process's resources; and the files of facts."""

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from slatedb.uniffi import AdminBuilder, ObjectStore

from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS
from ledgerq.tools.bench.measurement import percentile

__all__ = ["Facts", "Meter", "files_in_use", "held_by_process", "store_files"]

_MAX_LATENCIES: Final = 50_000
_KINDS: Final = {"wal": "wal", "compacted": "sorted", "manifest": "manifests", "compactions": "manifests"}


class Facts:
    """A file of facts (see oracle.py). One write for the facts of a call, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def report(self, lines: Iterable[str]) -> None:
        """Write them down, now."""
        text = "".join(f"{line}\n" for line in lines)
        if text and self._fd >= 0:
            os.write(self._fd, text.encode())

    def close(self) -> None:
        """Take no more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Meter:
    """Counts and latencies since the last sample."""

    def __init__(self) -> None:
        self.enqueued = 0
        self.settled = 0
        self.lost = 0
        self.held_back = 0
        self.backlog = 0
        self._enqueue_ms: list[float] = []
        self._claim_ms: list[float] = []
        self._since_s = time.monotonic()
        self._cpu_s = time.process_time()

    def enqueue_took(self, start_s: float) -> None:
        """Count an enqueueing call that began at this time of `time.perf_counter` and has returned."""
        _note(self._enqueue_ms, start_s)

    def claim_took(self, start_s: float) -> None:
        """Count a claiming call that had not to wait for a job."""
        _note(self._claim_ms, start_s)

    def sample(self) -> dict[str, Any]:
        """The measurements since the last sample, and the process's resources now."""
        now_s, cpu_s = time.monotonic(), time.process_time()
        span_s = max(now_s - self._since_s, 1e-6)
        found: dict[str, Any] = {
            "enqueued": self.enqueued,
            "settled": self.settled,
            "lost": self.lost,
            "held_back": self.held_back,
            "span_s": span_s,
            "cpu": (cpu_s - self._cpu_s) / span_s,
            "backlog": self.backlog,
            **_percentiles("enqueue", self._enqueue_ms),
            **_percentiles("claim", self._claim_ms),
            **held_by_process(),
        }
        self.enqueued = self.settled = self.lost = self.held_back = 0
        self._enqueue_ms, self._claim_ms = [], []
        self._since_s, self._cpu_s = now_s, cpu_s
        return found


def _note(latencies_ms: list[float], start_s: float) -> None:
    if len(latencies_ms) < _MAX_LATENCIES:
        latencies_ms.append((time.perf_counter() - start_s) * 1000)


def _percentiles(name: str, latencies_ms: list[float]) -> dict[str, float | None]:
    return {
        f"{name}_p{percent}_ms": percentile(latencies_ms, percent) if latencies_ms else None for percent in (50, 99)
    }


def held_by_process() -> dict[str, Any]:
    """Memory, open files, tasks and threads of this process; None where the system doesn't give them.

    `blocks` are the pieces of memory that Python's own allocator has given out: what Python code leaks shows there long
    before it shows in the memory of the process, which SlateDB's caches and the C library's heaps blur.
    """
    # Garbage that waits to be collected is no leak.
    gc.collect()
    rss_bytes: int | None = None
    fds: int | None = None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        rss_bytes = pages * os.sysconf("SC_PAGE_SIZE")
        fds = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - one is the listing itself
    except OSError:
        pass
    return {
        "rss_bytes": rss_bytes,
        "fds": fds,
        "blocks": sys.getallocatedblocks(),
        "tasks": len(asyncio.all_tasks()),
        "python_threads": threading.active_count(),
        "threads": threading.active_count() if rss_bytes is None else _threads(),
    }


def _threads() -> int:
    """All threads, also those of the store, which Python doesn't know."""
    return len(os.listdir("/proc/self/task"))  # noqa: PTH208


def store_files(folder: Path) -> tuple[dict[str, int], int]:
    """How many files of each kind a store's folder holds, and their bytes together."""
    counts = {"wal": 0, "sorted": 0, "manifests": 0, "other": 0}
    total_bytes = 0
    for place, _, names in os.walk(folder):
        kind = _KINDS.get(Path(place).name, "other")
        for name in names:
            try:
                total_bytes += os.stat(f"{place}/{name}").st_size  # noqa: PTH116 - thousands of them, at each sample
            except FileNotFoundError:
                continue
            counts[kind] += 1
    return counts, total_bytes


async def files_in_use(location: Location) -> tuple[int, int] | None:
    """How many sorted files the newest manifest names, and about how many bytes they have; None if there is none."""
    try:
        manifest = await AdminBuilder(location.database, ObjectStore.resolve(location.root)).build().read_manifest(None)
    except SLATE_ERRORS:
        return None
    if manifest is None:
        return None
    views = [*manifest.l0, *(view for run in manifest.compacted for view in run.sst_views)]
    return len(views), sum(view.estimated_size_bytes for view in views)
