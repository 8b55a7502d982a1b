"""The panels of the Grafana dashboard, row by row: their queries, and how they are shown.

Expressions use the dashboard's variables: `$job`, `$instance` and `$queue` are regular expressions. dashboard.py makes
a panel into JSON; what the metrics mean is added to each panel's description from the catalogue.
"""

from typing import Final, Literal, NamedTuple

from ledgerq.tools.monitoring.rules import (
    MAX_AUDIT_AGE_S,
    MAX_COMMIT_S,
    MAX_FAILED_SHARE,
    MAX_HANDLERS_FAILED_SHARE,
    MAX_PENDING_AGE_S,
)

__all__ = ["ROWS", "Panel", "PanelType", "Row", "Target"]

PanelType = Literal["stat", "timeseries", "stacked", "heatmap", "state-timeline"]
PER_SECOND: Final = "suffix: /s"


class Target(NamedTuple):
    """One query; `legend` names its series."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """One panel, so many `columns` of 24 wide. `steps`: which colour from which value on; below, the first."""

    title: str
    type: PanelType
    unit: str
    columns: int
    about: str
    targets: tuple[Target, ...]
    steps: tuple[tuple[float, str], ...] = ()


class Row(NamedTuple):
    """Panels under one heading, all of one height (in units of Grafana's grid)."""

    title: str
    height: int
    panels: tuple[Panel, ...]


_AT: Final = 'job=~"$job",instance=~"$instance"'
_Q: Final = f'{_AT},queue=~"$queue"'


def _sum(by: str, metric: str, where: str = _Q, *, rate: bool = True) -> str:
    grouping = f" by ({by}) " if by else ""
    series = f"{metric}{{{where}}}"
    return f"sum{grouping}({f'rate({series}[$__rate_interval])' if rate else series})"


def _kind(kind: str, by: str = "") -> str:
    matcher = f'kind=~"{kind}"' if "|" in kind else f'kind="{kind}"'
    return _sum(by, "ledgerq_transitions_total", f"{_Q},{matcher}")


def _jobs(state: str, by: str = "") -> str:
    return _sum(by, "ledgerq_jobs", f'{_Q},state="{state}"', rate=False)


def _quantiles(metric: str, where: str = _Q, by: str = "") -> tuple[Target, ...]:
    """Median, 90 and 99 of 100 over everything that is chosen; with `by`, 99 of 100 for each."""
    if by:
        expr = f"histogram_quantile(0.99, {_sum(f'le, {by}', f'{metric}_bucket', where)})"
        return (Target(expr, f"{{{{{by}}}}}"),)
    summed = _sum("le", f"{metric}_bucket", where)
    return tuple(Target(f"histogram_quantile({q}, {summed})", f"p{round(100 * q)}") for q in (0.5, 0.9, 0.99))


def _heatmap(metric: str) -> tuple[Target, ...]:
    return (Target(f"sum by (le) (increase({metric}_bucket{{{_Q}}}[$__rate_interval]))", "{{le}}"),)


def _one(expr: str, legend: str = "") -> tuple[Target, ...]:
    return (Target(expr, legend),)


def _ago(metric: str) -> str:
    # A sample has the time at which its scrape began, so what happened during it would be ahead of that.
    return f"clamp_min(time() - min({metric}{{{_AT}}}), 0)"


_BY_QUEUE: Final = "{{queue}}"
_TRIES: Final = "ledgerq_attempts_total"
_NOT_ACKED: Final = f'{_Q},outcome!="acked"'
_AGE_STEPS: Final = ((0, "green"), (MAX_PENDING_AGE_S / 3, "yellow"), (MAX_PENDING_AGE_S, "red"))
_FAILED_STEPS: Final = ((0, "green"), (MAX_HANDLERS_FAILED_SHARE, "yellow"), (MAX_FAILED_SHARE, "red"))

_NOW: Final = Row("Now", 4, (
    Panel("Pending", "stat", "short", 3, "Jobs that could be claimed now.", _one(_jobs("pending"))),
    Panel("Oldest pending", "stat", "s", 3, "How long the longest waiting of them has waited.",
          _one(f"max(ledgerq_oldest_pending_age_seconds{{{_Q}}})"), _AGE_STEPS),
    Panel("Done a second", "stat", PER_SECOND, 3, "Jobs acked.", _one(_kind("acked"))),
    Panel("Failed tries", "stat", "percentunit", 3, "The share of tries that ended without an ack.",
          _one(f"{_sum('', _TRIES, _NOT_ACKED)} / {_sum('', _TRIES)}"), _FAILED_STEPS),
    Panel("Dead letters", "stat", "short", 3, "Jobs that are not tried again unless they are requeued.",
          _one(_jobs("dead")), ((0, "green"), (1, "red"))),
    Panel("Writer", "stat", "bool_on_off", 3, "On while every chosen process can commit.",
          _one(f"min(ledgerq_writer_up{{{_AT}}})"), ((0, "red"), (1, "green"))),
    Panel("Last commit", "stat", "s", 3, "How long ago; of several stores, of the one that rests longest.",
          _one(_ago("ledgerq_log_last_commit_timestamp_seconds"))),
    Panel("Last audit", "stat", "s", 3, "How long ago it was recorded; of several stores, the oldest.",
          _one(_ago("ledgerq_audit_timestamp_seconds")),
          ((0, "green"), (MAX_AUDIT_AGE_S, "red"))),
))  # fmt: skip

_TRAFFIC: Final = Row("Traffic", 8, (
    Panel("Transitions by kind", "timeseries", PER_SECOND, 12, "Everything that happens to jobs.",
          _one(_sum("kind", "ledgerq_transitions_total"), "{{kind}}")),
    Panel("Coming in, going out", "timeseries", PER_SECOND, 12,
          "Where the first is above the second for long, the backlog grows.",
          (Target(_kind("enqueued|requeued"), "in: enqueued, requeued"),
           Target(_kind("acked|dead|cancelled"), "out: acked, dead, cancelled"))),
    Panel("Enqueued by queue", "timeseries", PER_SECOND, 8, "New jobs.", _one(_kind("enqueued", "queue"), _BY_QUEUE)),
    Panel("Done by queue", "timeseries", PER_SECOND, 8, "Jobs acked.", _one(_kind("acked", "queue"), _BY_QUEUE)),
    Panel("Cancelled, requeued, released, swept", "timeseries", PER_SECOND, 8,
          "What operators and maintenance do, and claims that were given back unused.",
          _one(_sum("kind", "ledgerq_transitions_total",
                    f'{_Q},kind=~"cancel_requested|cancelled|requeued|released|swept"'), "{{kind}}")),
))  # fmt: skip

_BACKLOG: Final = Row("Backlog", 8, (
    Panel("Jobs by state", "stacked", "short", 8, "Unfinished jobs.",
          _one(f'sum by (state) (ledgerq_jobs{{{_Q},state=~"scheduled|pending|claimed"}})', "{{state}}")),
    Panel("Pending by queue", "timeseries", "short", 8, "Jobs that could be claimed.",
          _one(_jobs("pending", "queue"), _BY_QUEUE)),
    Panel("Oldest pending by queue", "timeseries", "s", 8, "Age of the longest waiting pending job.",
          _one(f"max by (queue) (ledgerq_oldest_pending_age_seconds{{{_Q}}})", _BY_QUEUE), _AGE_STEPS),
    Panel("Time to work off", "timeseries", "s", 8,
          "Pending jobs over the rate of claims: how long it would take if nothing more came.",
          _one(f"{_jobs('pending', 'queue')} / {_kind('claimed', 'queue')}", _BY_QUEUE)),
    Panel("Paused queues", "state-timeline", "bool", 8, "Nothing is handed out while a queue is paused.",
          _one(f"max by (queue) (ledgerq_queue_paused{{{_Q}}})", _BY_QUEUE), ((0, "green"), (1, "orange"))),
    Panel("Queues held back", "state-timeline", "bool", 8, "Claims are refused by limits or a hold.",
          _one(f"max by (queue) (ledgerq_queue_held_back{{{_Q}}})", _BY_QUEUE), ((0, "green"), (1, "orange"))),
    Panel("Claimed, and how many may be", "timeseries", "short", 16, "Of queues with such a limit.",
          (Target(f"{_jobs('claimed', 'queue')} and on (queue) ledgerq_queue_max_running{{{_Q}}}", "{{queue}} claimed"),
           Target(f"max by (queue) (ledgerq_queue_max_running{{{_Q}}})", "{{queue}} limit"))),
    Panel("Next due job", "timeseries", "s", 8, "Time until the next scheduled job or retry is due, of all queues.",
          _one(f"min(ledgerq_next_due_seconds{{{_AT}}})", "next due"), ((-60, "red"), (0, "green"))),
))  # fmt: skip

_LATENCY: Final = Row("Latency", 8, (
    Panel("Waiting", "heatmap", "s", 8, "From due to claimed, one for each claim.",
          _heatmap("ledgerq_job_waiting_seconds")),
    Panel("Running", "heatmap", "s", 8, "From claimed to settled.", _heatmap("ledgerq_job_running_seconds")),
    Panel("Whole life", "heatmap", "s", 8, "From enqueued to acked, retries and delays included.",
          _heatmap("ledgerq_job_life_seconds")),
    Panel("Waiting, quantiles", "timeseries", "s", 6, "From due to claimed.",
          _quantiles("ledgerq_job_waiting_seconds")),
    Panel("Running, quantiles", "timeseries", "s", 6, "From claimed to settled.",
          _quantiles("ledgerq_job_running_seconds")),
    Panel("Whole life by queue, p99", "timeseries", "s", 6, "What those who enqueue notice.",
          _quantiles("ledgerq_job_life_seconds", by="queue")),
    Panel("Tries per done job", "timeseries", "short", 6, "The average, one being the best.",
          _one(f"{_sum('queue', 'ledgerq_job_attempts_sum')} / {_sum('queue', 'ledgerq_job_attempts_count')}",
               _BY_QUEUE)),
))  # fmt: skip

_ENDED: Final = "ledgerq_worker_handler_seconds_count"

_FAILURES: Final = Row("Failures", 8, (
    Panel("Failed tries by outcome", "timeseries", PER_SECOND, 8, "Tries that ended without an ack.",
          _one(_sum("outcome", _TRIES, _NOT_ACKED), "{{outcome}}")),
    Panel("Share of tries that failed", "timeseries", "percentunit", 8, "Of all tries that ended.",
          _one(f"{_sum('queue', _TRIES, _NOT_ACKED)} / {_sum('queue', _TRIES)}", _BY_QUEUE), _FAILED_STEPS),
    Panel("Handlers that failed", "timeseries", PER_SECOND, 8, "By what came of them.",
          _one(_sum("outcome", _ENDED, f'{_Q},outcome!="done"'), "{{outcome}}")),
    Panel("Dead letters by queue", "timeseries", "short", 8, "Jobs that are dead now.",
          _one(_jobs("dead", "queue"), _BY_QUEUE), ((0, "green"), (1, "red"))),
    Panel("Expired leases by queue", "timeseries", PER_SECOND, 8, "Claims whose workers vanished or hang.",
          _one(_kind("lease_expired", "queue"), _BY_QUEUE)),
    Panel("Claims lost, maintenance failed", "timeseries", PER_SECOND, 8, "Both are to be flat at zero.",
          (Target(_sum("", "ledgerq_worker_claims_lost_total", _AT), "claims lost"),
           Target(_sum("", "ledgerq_maintenance_failures_total", _AT), "maintenance failures"))),
))  # fmt: skip

_WORKERS: Final = Row("Workers", 8, (
    Panel("Handlers running", "timeseries", "short", 8, "How many, and how many may.",
          (Target(_sum("queue", "ledgerq_worker_handlers_running", rate=False), _BY_QUEUE),
           Target(_sum("", "ledgerq_worker_handlers_limit", _AT, rate=False), "limit"))),
    Panel("Handlers by queue, p99", "timeseries", "s", 8, "How long handlers run.",
          _quantiles("ledgerq_worker_handler_seconds", by="queue")),
    Panel("Handlers ended by outcome", "timeseries", PER_SECOND, 8, "What came of them.",
          _one(_sum("outcome", _ENDED), "{{outcome}}")),
    Panel("Claims held and waited for", "timeseries", "short", 8,
          "Claims of the process, those its workers hold, and calls that wait for one.",
          (Target(_sum("", "ledgerq_claims_held", _AT, rate=False), "held"),
           Target(_sum("", "ledgerq_worker_claims_held", _AT, rate=False), "held by workers"),
           Target(_sum("", "ledgerq_claim_waiters", rate=False), "waiters"))),
    Panel("Ready window", "timeseries", "short", 8, "Pending jobs in memory.",
          _one(_sum("queue", "ledgerq_ready_window_jobs", rate=False), _BY_QUEUE)),
    Panel("Lease renewals", "timeseries", PER_SECOND, 8, "By workers, for handlers that run long.",
          _one(_sum("", "ledgerq_worker_lease_renewals_total", _AT), "renewals")),
))  # fmt: skip


def _ratio(metric: str) -> str:
    return f"{_sum('', f'{metric}_sum', _AT)} / {_sum('', f'{metric}_count', _AT)}"


def _rate(metric: str, legend: str, by: str = "") -> Target:
    return Target(_sum(by, metric, _AT), legend)


_SLATE: Final = "ledgerq_slatedb"

_LOG: Final = Row("Log and store", 7, (
    Panel("Commits", "timeseries", PER_SECOND, 6, "Each is one atomic, durable write.",
          (_rate("ledgerq_commit_events_count", "commits"),)),
    Panel("Commit phases, p99", "timeseries", "s", 6, "Which part of a commit takes how long.",
          _quantiles("ledgerq_commit_seconds", _AT, by="phase"), ((0, "green"), (MAX_COMMIT_S, "red"))),
    Panel("Events in a commit", "timeseries", "short", 6, "The average.",
          _one(_ratio("ledgerq_commit_events"), "events")),
    Panel("Bytes of a commit", "timeseries", "bytes", 6, "The average, of record batch and payloads.",
          _one(_ratio("ledgerq_commit_bytes"), "bytes")),
    Panel("Growth of the log", "timeseries", "Bps", 6, "Record batches; payloads are deleted with their jobs.",
          (_rate("ledgerq_log_written_bytes_total", "log"),)),
    Panel("Events", "timeseries", PER_SECOND, 6, "Of jobs, queues and the log.",
          (_rate("ledgerq_log_events_total", "events"),)),
    Panel("Not proven by an audit", "timeseries", "short", 6, "Events since the last recorded audit.",
          _one(f"max(ledgerq_log_events_total{{{_AT}}} - ledgerq_audit_offset{{{_AT}}})", "events")),
    Panel("Differences, projections behind", "timeseries", "short", 6, "All of them are to be zero.",
          (Target(f"sum(ledgerq_audit_differences{{{_AT}}})", "differences found"),
           Target(f"max by (projection) (ledgerq_projection_lag_events{{{_AT}}})", "{{projection}} behind"))),
    Panel("Written", "timeseries", "Bps", 6, "What the disk or the bucket has to take.",
          (_rate(f"{_SLATE}_wal_flushed_bytes_total", "write-ahead log"),
           _rate(f"{_SLATE}_l0_flushed_bytes_total", "sorted files"),
           _rate(f"{_SLATE}_compacted_bytes_total", "compaction"))),
    Panel("Sorted files and runs", "timeseries", "short", 6, "What compaction has before it.",
          (Target(f"sum({_SLATE}_l0_ssts{{{_AT}}})", "sorted files"),
           Target(f"sum({_SLATE}_sorted_runs{{{_AT}}})", "sorted runs"))),
    Panel("Memory before sorted files", "timeseries", "bytes", 6, "Written, and not in a sorted file yet.",
          _one(f"sum({_SLATE}_memory_bytes{{{_AT}}})", "memory")),
    Panel("Writes that waited", "timeseries", PER_SECOND, 6, "For flushes, or for compaction.",
          (_rate(f"{_SLATE}_backpressure_total", "for flushes"),
           _rate(f"{_SLATE}_l0_stalls_total", "for compaction ({{type}})", "type"))),
    Panel("Object store requests", "timeseries", PER_SECOND, 6, "To the bucket or the file system.",
          (_rate(f"{_SLATE}_object_store_requests_total", "{{op}}", "op"),)),
    Panel("Object store requests, p99", "timeseries", "s", 6, "How long they took.",
          _quantiles(f"{_SLATE}_object_store_request_seconds", _AT, by="op")),
    Panel("Calls into SlateDB, rows", "timeseries", PER_SECOND, 6, "Calls by name, and rows written.",
          (_rate(f"{_SLATE}_requests_total", "{{op}}", "op"), _rate(f"{_SLATE}_write_ops_total", "rows written"))),
    Panel("Block cache", "timeseries", PER_SECOND, 6, "Looks into it, by result.",
          (_rate(f"{_SLATE}_cache_accesses_total", "{{result}}", "result"),)),
))  # fmt: skip

ROWS: Final = (_NOW, _TRAFFIC, _BACKLOG, _LATENCY, _FAILURES, _WORKERS, _LOG)
"""The dashboard from top to bottom."""
