"""The follower of a store that another process writes: it reads the store again and again, as a collector."""

from typing import Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock, sleep_until
from ledgerq.eventlog.codec import EMPTY_HEAD, Head
from ledgerq.eventlog.errors import LedgerError, NotRebuilt, StoreUnavailable
from ledgerq.eventlog.events import STATES
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.store import ReadStore
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.index_keys import STATS
from ledgerq.projections.metrics.collector import LedgerCollector
from ledgerq.projections.metrics.counters import CountersSource
from ledgerq.projections.metrics.store_inspection import InspectionSource, StoreInspection
from ledgerq.projections.stats import QueueCounters
from ledgerq.worker.metrics.readiness import StoreProbe, one_line
from ledgerq.worker.options import seconds_ms

__all__ = ["Follower"]

_PENDING: Final = STATES.index("pending")
_MIN_INTERVAL_MS: Final = 100
# A view that follows its writer is made anew now and then: it may not notice that another copy of the store was put in
# its place.
_REOPEN_MS: Final = 5 * 60 * 1000
_SAME_COMMIT_TRIES: Final = 5
# What was not read for so many intervals, and for so long, counts as old even if nothing failed.
_OLD_INTERVALS: Final = 3
_OLD_MS: Final = 15_000


class Follower(Collector):
    """A collector of what was read last from a followed store. A failed read leaves it; `reason` is why."""

    def __init__(self, url: str, *, clock: Clock, interval_s: float) -> None:
        """Open nothing yet. Raises `InvalidArgument` for an interval below 0.1 s."""
        self._url = url
        self._clock = clock
        self._interval_ms = seconds_ms("interval", interval_s, least_ms=_MIN_INTERVAL_MS)
        self._log: LogReader | None = None
        self._opened_ms = 0
        self._probe: StoreProbe | None = None
        self._rows: dict[str, bytes] = {}
        self._head: Head = EMPTY_HEAD
        self._read_ms: int | None = None
        self._inspection = StoreInspection(clock)
        self._collector: LedgerCollector | None = None
        self.reason: str | None = f"{url} was not read yet"

    # ------------------------------------------------------------------ what is shown

    def collect(self) -> list[Metric]:
        """The metrics of what was read last; none before the first read."""
        return [] if self._collector is None else self._collector.collect()

    def describe(self) -> list[Metric]:
        """No families: they are not known before the first read."""
        return []

    async def reasons(self) -> list[str]:
        """The reasons why the metrics shown can't be relied on, one line each."""
        if self.reason is not None:
            return [self.reason]
        assert self._read_ms is not None
        age_ms = self._clock.now_ms() - self._read_ms
        if age_ms > max(_OLD_MS, _OLD_INTERVALS * self._interval_ms):
            return [f"{self._url} was last read {age_ms / 1000:.0f} s ago"]
        return []

    def _new_collector(self) -> tuple[StoreInspection, LedgerCollector]:
        inspection, counters = StoreInspection(self._clock), CountersSource(lambda: self._rows, lambda: self._head)
        inspection_source = InspectionSource(
            inspection,
            self._clock,
            pending=lambda: {queue: QueueCounters.decode(row).now[_PENDING] for queue, row in self._rows.items()},
            label_of=counters.label_of,
            end=lambda: self._head.next_offset,
        )
        return inspection, LedgerCollector(counters, inspection_source)

    # ------------------------------------------------------------------ reading

    async def pause(self) -> None:
        """Wait until the store is to be read again."""
        await sleep_until(self._clock, self._clock.now_ms() + self._interval_ms)

    async def try_refresh(self) -> None:
        """Read the store; an error becomes `reason`, which is None without one."""
        try:
            await self.refresh()
        except LedgerError:
            return
        except Exception as error:
            # Nothing that a damaged store can bring about may end a program that watches it.
            self.reason = f"{self._url} can't be read: {type(error).__name__}: {one_line(error)}"
            await self._let_go()

    async def refresh(self) -> None:
        """Read the store. Raises what keeps it from being read; it is opened again the next time."""
        try:
            log = await self._opened()
            head, rows = await self._read(log)
            if self._collector is None or head.next_offset < self._head.next_offset:
                # Another store than before: what was shown of the old one must not linger.
                self._inspection, self._collector = self._new_collector()
            await self._inspection.read(log.store, rows)
        except LedgerError as error:
            self.reason = one_line(error)
            await self._let_go()
            raise
        self._head, self._rows, self._read_ms = head, rows, self._clock.now_ms()
        self.reason = None

    async def close(self) -> None:
        """Close the store."""
        await self._let_go()

    async def _opened(self) -> LogReader:
        now_ms = self._clock.now_ms()
        if self._log is not None and not self._opened_ms <= now_ms < self._opened_ms + _REOPEN_MS:
            await self._let_go()
        if self._log is None:
            store = await open_reader(self._url, poll_interval_ms=max(1, self._interval_ms // 2))
            self._log, self._opened_ms = LogReader(store, clock=self._clock), now_ms
            self._probe = StoreProbe(store, valid_s=0.0)
            await self._log.require_format()
        else:
            # A view answers from memory for as long as nothing new comes, so make a request to the storage, too.
            assert self._probe is not None
            reason = await self._probe.reason()
            if reason is not None:
                raise StoreUnavailable(reason)
        return self._log

    async def _read(self, log: LogReader) -> tuple[Head, dict[str, bytes]]:
        """The head, and the counters of all queues, of one commit."""
        for _ in range(_SAME_COMMIT_TRIES):
            head = await log.head()
            if await log.store.get(keys.REBUILD_KEY) is not None:
                raise NotRebuilt(f"a rebuild of {self._url} is under way or was interrupted")
            rows = await _stats_rows(log.store)
            # The view moves on at intervals that are long compared with this reading.
            if await log.head() == head:
                return head, rows
        raise StoreUnavailable(f"{self._url} changes faster than it can be read")

    async def _let_go(self) -> None:
        log, self._log = self._log, None
        probe, self._probe = self._probe, None
        if probe is not None:
            probe.close()
        if log is not None:
            await log.store.close()


async def _stats_rows(store: ReadStore) -> dict[str, bytes]:
    """The stats row of each queue. Raises `ProjectionDrift` for one that a scrape couldn't show."""
    found: dict[str, bytes] = {}
    async for rows in store.scan(STATS, keys.after_prefix(STATS)):
        for key, value in rows:
            QueueCounters.decode(value)
            found[key[len(STATS) :].decode(errors="replace")] = value
    return found
