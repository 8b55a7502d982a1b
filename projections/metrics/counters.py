"""The durable counters as metrics, from the stats rows of all queues, for a bounded number of queues.

Each queue's samples are kept and made anew only when its row changed, so that a scrape costs what happened since the
last one. A queue's rank is the order of its first event in the log: it never changes, so the first `limit` queues keep
series of their own for ever, through restarts and in the exporter alike. The rest, and any queue whose name is
"other", is summed under queue="other", which therefore never goes back.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from prometheus_client.samples import Exemplar, Sample

from ledgerq.eventlog.codec import Head
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import STATES
from ledgerq.projections.histograms import ATTEMPT_BOUNDS, DURATION_BOUNDS_MS, Histogram
from ledgerq.projections.metrics.collector import Families, bucket_names, histogram_samples
from ledgerq.projections.stats import QueueCounters

__all__ = ["DEFAULT_LIMIT_QUEUES", "OTHER", "CountersSource"]

DEFAULT_LIMIT_QUEUES: Final = 100
OTHER: Final = "other"

_NAMES: Final = (
    "ledgerq_transitions_total",
    "ledgerq_attempts_total",
    "ledgerq_jobs",
    "ledgerq_queue_paused",
    "ledgerq_queues",
    "ledgerq_job_waiting_seconds",
    "ledgerq_job_running_seconds",
    "ledgerq_job_life_seconds",
    "ledgerq_job_attempts",
    "ledgerq_log_events_total",
    "ledgerq_log_epoch",
    "ledgerq_log_last_commit_timestamp_seconds",
)
# Making the samples of one queue takes about 0.15 ms.
_STEP_QUEUES: Final = 4
_SECONDS: Final = bucket_names(tuple(bound / 1000 for bound in DURATION_BOUNDS_MS))
_ATTEMPTS: Final = bucket_names(ATTEMPT_BOUNDS)
# In the order of `QueueCounters.histograms`: the metric, its buckets' names, and what its numbers are divided by.
_HISTOGRAMS: Final = (
    ("ledgerq_job_waiting_seconds", _SECONDS, 1000),
    ("ledgerq_job_running_seconds", _SECONDS, 1000),
    ("ledgerq_job_life_seconds", _SECONDS, 1000),
    ("ledgerq_job_attempts", _ATTEMPTS, 1),
)
_PER_QUEUE: Final = (*_NAMES[:4], *(name for name, _, _ in _HISTOGRAMS))
_NO_EXEMPLARS: Final[dict[str, QueueCounters]] = {}


class _Known(NamedTuple):
    """A queue's row as it was last seen, its counters, and, for one that is shown by itself, its samples by metric."""

    row: bytes
    counters: QueueCounters
    samples: dict[str, list[Sample]] | None


class CountersSource:
    """The source of the durable counters.

    `rows` gives each queue's stats row as of one durable commit, `head` the log's head; both are called at each scrape
    and answer at once. `live` has the counters that jobs are counted into, for exemplars (none: no exemplars).
    """

    names = _NAMES

    def __init__(
        self,
        rows: Callable[[], Mapping[str, bytes]],
        head: Callable[[], Head],
        *,
        live: Callable[[], Mapping[str, QueueCounters]] = lambda: _NO_EXEMPLARS,
        limit: int = DEFAULT_LIMIT_QUEUES,
    ) -> None:
        if type(limit) is not int or limit < 1:
            raise InvalidArgument(f"limit is a number of queues from 1 on, not {limit!r}")
        self._rows = rows
        self._head = head
        self._live = live
        self._limit = limit
        self._known: dict[str, _Known] = {}
        self._shown: dict[str, None] = {}
        self._rest: QueueCounters | None = None
        self._rest_paused = 0
        self._exemplars: dict[tuple[bytes, int, int], Exemplar] = {}
        self._lock = threading.Lock()

    def label_of(self, queue: str) -> str:
        """The label value under which a queue is shown, as of the last scrape."""
        return queue if queue in self._shown else OTHER

    def show(self, families: Families) -> None:
        """Add the samples as of the last durable commit."""
        with self._lock:
            rows, head = self._rows(), self._head()
            for queue in self._changed(rows):
                self._update(queue, rows[queue])
            for queue in self._shown:
                samples = self._known[queue].samples
                assert samples is not None
                for name in _PER_QUEUE:
                    families.extend(name, samples[name])
            if self._rest is not None:
                samples = _samples(OTHER, self._rest, self._rest_paused, {})
                for name in _PER_QUEUE:
                    families.extend(name, samples[name])
        families.add("ledgerq_queues", len(rows))
        families.add("ledgerq_log_events_total", head.next_offset)
        families.add("ledgerq_log_epoch", head.epoch)
        families.add("ledgerq_log_last_commit_timestamp_seconds", head.time_ms / 1000)

    def take_in(self) -> Iterator[None]:
        """Make the samples of changed queues, a few at each step, so that the next scrape has less to do."""
        rows = self._rows()
        with self._lock:
            changed = self._changed(rows)
        for at in range(0, len(changed), _STEP_QUEUES):
            with self._lock:
                for queue in changed[at : at + _STEP_QUEUES]:
                    self._update(queue, rows[queue])
            yield

    def _changed(self, rows: Mapping[str, bytes]) -> list[str]:
        """The queues whose rows are not those that were last seen; new ones are ranked: they come after all others."""
        new = {queue: QueueCounters.decode(rows[queue]) for queue in rows if queue not in self._known}
        for queue in sorted(new, key=lambda name: (new[name].first_offset, name)):
            if queue != OTHER and len(self._shown) < self._limit:
                self._shown[queue] = None
            elif self._rest is None:
                self._rest = QueueCounters()
            self._known[queue] = _Known(b"", QueueCounters(), None)  # no row is empty
        known = self._known
        return [queue for queue, row in rows.items() if known[queue].row is not row and known[queue].row != row]

    def _update(self, queue: str, row: bytes) -> None:
        before, counters = self._known[queue], QueueCounters.decode(row)
        if queue in self._shown:
            samples = _samples(queue, counters, int(counters.paused), self._exemplars_of(queue))
            self._known[queue] = _Known(row, counters, samples)
            return
        assert self._rest is not None
        _move(self._rest, before.counters, counters)
        self._rest_paused += counters.paused - before.counters.paused
        self._known[queue] = _Known(row, counters, None)

    def _exemplars_of(self, queue: str) -> dict[str, list[Exemplar | None]]:
        live = self._live().get(queue)
        if live is None:
            return {}
        if len(self._exemplars) > 100_000:
            self._exemplars.clear()
        pairs = zip(_HISTOGRAMS, live.histograms(), strict=True)
        return {
            name: [None if last is None else self._exemplar(last, unit) for last in histogram.last]
            for (name, _, unit), histogram in pairs
            if unit > 1
        }

    def _exemplar(self, last: tuple[bytes, int, int], unit: int) -> Exemplar:
        exemplar = self._exemplars.get(last)
        if exemplar is None:
            id, value, time_ms = last
            exemplar = Exemplar({"job_id": job_id_text(id)}, value / unit, time_ms / 1000)
            self._exemplars[last] = exemplar
        return exemplar


def _samples(
    queue: str, counters: QueueCounters, paused: int, exemplars: Mapping[str, list[Exemplar | None]]
) -> dict[str, list[Sample]]:
    """The samples of one queue, by metric."""
    totals = counters.view(queue).totals
    transitions = "ledgerq_transitions_total"
    found = {
        transitions: [Sample(transitions, {"queue": queue, "kind": kind}, n) for kind, n in totals.items()],
        "ledgerq_attempts_total": [
            Sample("ledgerq_attempts_total", {"queue": queue, "outcome": outcome}, n)
            for outcome, n in (
                ("acked", totals["acked"]),
                ("nacked", totals["nacked"] - totals["released"]),
                ("lease_expired", totals["lease_expired"]),
            )
        ],
        "ledgerq_jobs": [
            Sample("ledgerq_jobs", {"queue": queue, "state": state}, n)
            for state, n in zip(STATES, counters.now, strict=True)
        ],
        "ledgerq_queue_paused": [Sample("ledgerq_queue_paused", {"queue": queue}, paused)],
    }
    labels = {"queue": queue}
    for (name, les, unit), histogram in zip(_HISTOGRAMS, counters.histograms(), strict=True):
        lasts = exemplars.get(name) or [None] * len(les)
        # A bucket that is empty still, as far as it is durable, shows no exemplar; that of another one may be a job
        # whose commit is on its way.
        buckets = [
            (le, count, last if count else None) for le, count, last in zip(les, histogram.counts, lasts, strict=True)
        ]
        total = histogram.sum if unit == 1 else histogram.sum / unit
        found[name] = histogram_samples(name, labels, buckets, total)
    return found


def _move(total: QueueCounters, before: QueueCounters, after: QueueCounters) -> None:
    """Replace `before` by `after` in the sum `total`."""
    _add_lists(total.now, before.now, after.now)
    total.totals += [0] * (len(after.totals) - len(total.totals))
    _add_lists(total.totals, before.totals, after.totals)
    both: zip[tuple[Histogram, Histogram, Histogram]] = zip(
        total.histograms(), before.histograms(), after.histograms(), strict=True
    )
    for into, old, new in both:
        into.sum += new.sum - old.sum
        _add_lists(into.counts, old.counts, new.counts)


def _add_lists(into: list[int], before: list[int], after: list[int]) -> None:
    for at, count in enumerate(after):
        into[at] += count - (before[at] if at < len(before) else 0)
