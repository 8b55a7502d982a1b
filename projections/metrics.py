"""Metrics for Prometheus: the durable counters of the log, read at scrape time; a restart changes nothing.

Register a queue's collector with any registry: `REGISTRY.register(LedgerCollector(queue.durable_stats, ...))`.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ledgerq.eventlog.codec import Head
from ledgerq.eventlog.events import STATES
from ledgerq.projections.stats import QueueStats

__all__ = ["LedgerCollector"]


class LedgerCollector(Collector):
    """Jobs by queue and state, transitions by queue and kind, paused queues, and where the log ends.

    `stats` and `head` are called at each scrape; they must answer at once, with durable facts only.
    """

    def __init__(self, stats: Callable[[], Sequence[QueueStats]], head: Callable[[], Head]) -> None:
        self._stats = stats
        self._head = head

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        jobs = GaugeMetricFamily("ledgerq_jobs", "Jobs in each state now.", labels=["queue", "state"])
        paused = GaugeMetricFamily("ledgerq_queue_paused", "1 while the queue hands out nothing.", labels=["queue"])
        transitions = CounterMetricFamily(
            "ledgerq_transitions", "Transitions since the beginning of the log.", labels=["queue", "kind"]
        )
        for stats in self._stats():
            for state in STATES:
                jobs.add_metric([stats.queue, state], getattr(stats, state))
            paused.add_metric([stats.queue], int(stats.paused))
            for kind, count in stats.totals.items():
                transitions.add_metric([stats.queue, kind], count)
        yield from (jobs, paused, transitions)
        head = self._head()
        yield CounterMetricFamily("ledgerq_log_events", "Events in the log.", value=head.next_offset)
        yield GaugeMetricFamily("ledgerq_log_epoch", "The number of times the store was opened to write.", head.epoch)
        yield GaugeMetricFamily(
            "ledgerq_log_last_commit_timestamp_seconds", "When the last commit was made.", head.time_ms / 1000
        )
