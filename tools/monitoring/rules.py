"""The recording and alerting rules for Prometheus, as a table, and their files below monitoring/files/rules/.

Recording rules keep every label that a scrape gave: the same store may be watched through its worker and through an
exporter, and summing over both would count everything twice. Alerts of what both tell of a store fire once for it
(`_once`): their series differ in `job` and `instance` only, since the configuration gives both the label `store`.
`generate.py` writes the files.
"""

from collections.abc import Iterator, Sequence
from json import dumps
from typing import Final, Literal, NamedTuple

__all__ = ["ALERTS", "MAX_FAILED_SHARE", "MAX_HANDLERS_FAILED_SHARE", "MAX_PENDING_AGE_S", "RECORDS", "Alert"]
__all__ += ["DOCUMENTATION_URL", "MAX_AUDIT_AGE_S", "MAX_COMMIT_S", "RecordingRule", "alerts_file", "records_file"]

# Where the pages of docs/ are published; the same address stands in pyproject.toml and mkdocs.yml.
DOCUMENTATION_URL: Final = "https://ledgerq.readthedocs.io/"

MAX_PENDING_AGE_S: Final = 900
MAX_FAILED_SHARE: Final = 0.5
MAX_HANDLERS_FAILED_SHARE: Final = 0.2
MAX_COMMIT_S: Final = 1
MAX_AUDIT_AGE_S: Final = 86_400

Severity = Literal["critical", "warning", "info"]


class RecordingRule(NamedTuple):
    """A recording rule, computed once for all queries: level, metric and operations are in its name."""

    name: str
    expr: str


class Alert(NamedTuple):
    """An alerting rule: a condition that held for `wait`. Summary and description are templates."""

    name: str
    severity: Severity
    wait: str
    expr: str
    summary: str
    description: str

    @property
    def runbook_url(self) -> str:
        """The address of the page with what to do."""
        return f"{DOCUMENTATION_URL}operate/alerts/#{self.name.lower()}"


def _quantile(measure: str, name: str, quantile: float) -> RecordingRule:
    expr = f"histogram_quantile({quantile}, rate({measure}_bucket[5m]))"
    return RecordingRule(f"{name}:{measure}:p{round(100 * quantile)}_5m", expr)


def _kind(kind: str, window: str, function: str = "rate") -> str:
    return f'{function}(ledgerq_transitions_total{{kind="{kind}"}}[{window}])'


def _once(expr: str) -> str:
    """A fact about a store, from all processes that report it: one series for all of them."""
    return "\n".join(["max without (job, instance) (", *(f"  {line}" for line in expr.splitlines()), ")"])


_PENDING: Final = 'ledgerq_jobs{state="pending"}'
# "other" sums many queues, of which a single one may be paused.
_PAUSED: Final = 'ledgerq_queue_paused{queue!="other"} == 1'
_HANDLERS: Final = "ledgerq_worker_handler_seconds_count"

RECORDS: Final = (
    RecordingRule("queue_kind:ledgerq_transitions:rate5m", "rate(ledgerq_transitions_total[5m])"),
    RecordingRule("queue:ledgerq_attempts:rate5m", "sum without (outcome) (rate(ledgerq_attempts_total[5m]))"),
    RecordingRule(
        "queue:ledgerq_attempts_failed:ratio_rate5m",
        'sum without (outcome) (rate(ledgerq_attempts_total{outcome!="acked"}[5m]))\n'
        "/ sum without (outcome) (rate(ledgerq_attempts_total[5m]))",
    ),
    RecordingRule(
        "queue:ledgerq_worker_handlers_failed:ratio_rate5m",
        f'sum without (outcome) (rate({_HANDLERS}{{outcome=~"retry|dead|timeout|unknown"}}[5m]))\n'
        f'/ sum without (outcome) (rate({_HANDLERS}{{outcome!="released"}}[5m]))',
    ),
    # How long the backlog would last if nothing more came: +Inf while nothing is claimed.
    RecordingRule("queue:ledgerq_backlog:seconds", f"{_PENDING} / ignoring (state, kind) {_kind('claimed', '5m')}"),
    *(
        _quantile(f"ledgerq_job_{measure}_seconds", "queue", quantile)
        for measure in ("waiting", "running", "life")
        for quantile in (0.5, 0.99)
    ),
    _quantile("ledgerq_commit_seconds", "phase", 0.99),
)

_BACKLOG: Final = (
    Alert(
        "LedgerqBacklogStuck", "critical", "5m",
        # Where a writer is gone, ranges still have what it said: the first line leaves that to another alert.
        _once(
            f"{_PENDING}\n"
            f"and min_over_time({_PENDING}[10m]) > 0\n"
            f"and ignoring (state, kind) {_kind('claimed', '10m', 'increase')} == 0\n"
            f"unless ignoring (state) {_PAUSED}"
        ),
        "Nothing is claimed from queue {{ $labels.queue }} while {{ $value }} jobs are pending",
        "Jobs have been pending for more than 10 minutes, the queue is not paused, and not one was claimed.",
    ),
    Alert(
        "LedgerqBacklogGrowing", "warning", "15m",
        _once(
            f"{_PENDING} > 100\n"
            f"and deriv({_PENDING}[30m]) > 0\n"
            f"and ignoring (state, kind) {_PENDING} > ignoring (state, kind) 600 * {_kind('claimed', '10m')}\n"
            f"unless ignoring (state) {_PAUSED}"
        ),
        "The backlog of queue {{ $labels.queue }} grows and does not drain: {{ $value }} jobs",
        "More than ten minutes of work are pending at the rate at which jobs are claimed, and it grew over half an "
        "hour.",
    ),
    Alert(
        "LedgerqOldestPendingTooOld", "warning", "5m",
        _once(f"ledgerq_oldest_pending_age_seconds > {MAX_PENDING_AGE_S}\nunless {_PAUSED}"),
        "A job of queue {{ $labels.queue }} has waited for {{ $value | humanizeDuration }}",
        "The longest waiting job that could be claimed has waited for more than 15 minutes.",
    ),
    Alert(
        "LedgerqQueuePaused", "info", "1h",
        _once(f"ledgerq_queue_paused > 0\nand ignoring (state) {_PENDING} > 0"),
        "Queue {{ $labels.queue }} has been paused for an hour while jobs wait",
        "A paused queue hands out nothing until it is resumed.",
    ),
    Alert(
        "LedgerqDueJobsLate", "critical", "2m",
        _once("ledgerq_next_due_seconds < -60"),
        "A job has been due for more than a minute and was not promoted",
        "Scheduled jobs and retries stay where they are: no writer runs maintenance on the store "
        "{{ $labels.store }}.",
    ),
)  # fmt: skip

_FAILURES: Final = (
    Alert(
        "LedgerqDeadLetters", "warning", "0m",
        _once(f"{_kind('dead', '15m', 'increase')} > 0"),
        "Jobs of queue {{ $labels.queue }} died: about {{ $value | humanize }} in 15 minutes",
        "Dead jobs are not tried again by themselves, and are deleted when their time is over (a week by default).",
    ),
    Alert(
        "LedgerqLeasesExpiring", "warning", "15m",
        _once(f"{_kind('lease_expired', '10m')}\n/ ignoring (kind) {_kind('claimed', '10m')} > 0.01"),
        "{{ $value | humanizePercentage }} of the claims of queue {{ $labels.queue }} end by an expired lease",
        "Workers vanish, hang, or block their event loop for longer than the lease: work is done twice.",
    ),
    Alert(
        "LedgerqRetriesStorming", "warning", "10m",
        _once(
            f"queue:ledgerq_attempts_failed:ratio_rate5m > {MAX_FAILED_SHARE}\nand queue:ledgerq_attempts:rate5m > 0.1"
        ),
        "{{ $value | humanizePercentage }} of the tries of queue {{ $labels.queue }} fail",
        "More tries fail than succeed, so most of the work is retries.",
    ),
    Alert(
        "LedgerqHandlersFailing", "warning", "10m",
        f"queue:ledgerq_worker_handlers_failed:ratio_rate5m > {MAX_HANDLERS_FAILED_SHARE}",
        "{{ $value | humanizePercentage }} of the handlers of queue {{ $labels.queue }} fail on {{ $labels.instance }}",
        "Handlers of this process raise, run into their time limit, or give jobs up as dead.",
    ),
    Alert(
        "LedgerqClaimsLost", "warning", "0m",
        "increase(ledgerq_worker_claims_lost_total[15m]) > 0",
        "Handlers on {{ $labels.instance }} ran for claims that were lost",
        "The lease ended, or another hand settled the job, while the handler ran: its result did not count.",
    ),
    Alert(
        "LedgerqWorkerSaturated", "info", "30m",
        "sum without (queue) (ledgerq_worker_handlers_running) >= ledgerq_worker_handlers_limit\n"
        "and on (job, instance) max by (job, instance) (ledgerq_oldest_pending_age_seconds) > 60",
        "All {{ $value }} handlers of {{ $labels.instance }} have been busy for half an hour while jobs wait",
        "The worker runs as many handlers as it may, and jobs have waited for more than a minute.",
    ),
)  # fmt: skip

_WRITER: Final = (
    Alert(
        "LedgerqWriterGone", "critical", "2m",
        "up == 0 and on (job, instance) last_over_time(ledgerq_writer_up[6h])\n"
        "or on (job)\n"
        "max by (job) (last_over_time(ledgerq_writer_up[6h])) unless on (job) max by (job) (ledgerq_writer_up)",
        "The process that writes a store is gone: {{ $labels.job }} {{ $labels.instance }}",
        "It served metrics within the last six hours and can't be reached, or is not even looked for any more. Nothing "
        "is enqueued, claimed or retried without it.",
    ),
    Alert(
        "LedgerqWriterFenced", "critical", "1m",
        'ledgerq_writer_failed{error="Fenced"} == 1',
        "Another process opened the store of {{ $labels.instance }}, which still runs",
        "A fenced writer can't commit anything any more, and its workers have stopped.",
    ),
    Alert(
        "LedgerqWriterFailed", "critical", "0m",
        'ledgerq_writer_failed{error!="Fenced"} == 1',
        "The writer on {{ $labels.instance }} failed: {{ $labels.error }}",
        "It takes nothing more until the process opens the queue again.",
    ),
    Alert(
        "LedgerqWritersRestarting", "warning", "0m",
        _once("max_over_time(ledgerq_log_epoch[30m]) - min_over_time(ledgerq_log_epoch[30m]) > 3"),
        "The store {{ $labels.store }} was opened {{ $value }} times in half an hour",
        "Its writer restarts again and again, or several processes take the store from each other.",
    ),
    Alert(
        "LedgerqCommitsSlow", "warning", "10m",
        f'phase:ledgerq_commit_seconds:p99_5m{{phase!="wait"}} > {MAX_COMMIT_S}',
        "One in a hundred commits on {{ $labels.instance }} takes {{ $value | humanizeDuration }} in its phase "
        "{{ $labels.phase }}",
        "Every caller waits for its commit to be durable.",
    ),
    Alert(
        "LedgerqMaintenanceFailing", "warning", "5m",
        "increase(ledgerq_maintenance_failures_total[10m]) > 3",
        "Maintenance on {{ $labels.instance }} fails again and again",
        "Leases, due jobs and sweeps are late while it fails; each step is tried again.",
    ),
    Alert(
        "LedgerqWritesStalled", "warning", "10m",
        "sum without (type) (rate(ledgerq_slatedb_l0_stalls_total[5m])) > 0\n"
        "or rate(ledgerq_slatedb_backpressure_total[5m]) > 0",
        "Writes on {{ $labels.instance }} wait for flushes or compaction",
        "The disk, the bucket or the CPU is slower than the load.",
    ),
)  # fmt: skip

_PROOF: Final = (
    Alert(
        "LedgerqProjectionDrift", "critical", "0m",
        _once("ledgerq_audit_differences > 0"),
        "The last audit of the store {{ $labels.store }} found {{ $value }} rows that differ from the log",
        "Indexes or counters differ from the log: jobs may be missing from claims, or be counted wrong.",
    ),
    Alert(
        "LedgerqLogDamaged", "critical", "0m",
        _once("ledgerq_audit_log_intact == 0"),
        "The last audit of the store {{ $labels.store }} could not verify the log",
        "Record batches were changed, removed or cut off, or the store is an older copy of itself.",
    ),
    Alert(
        "LedgerqProjectionBehind", "warning", "10m",
        _once("ledgerq_projection_lag_events > 0"),
        "Projection {{ $labels.projection }} is {{ $value }} events behind the log",
        "It raised an error, and is left out of commits since.",
    ),
    # Where audits run daily, one that takes some minutes must not fire this.
    Alert(
        "LedgerqNoAudit", "warning", "1h",
        # 0 means never: a store that is a minute old has a day, too.
        _once(
            f"time() - (ledgerq_audit_timestamp_seconds != 0) > {MAX_AUDIT_AGE_S}\n"
            "or time() - (ledgerq_audit_timestamp_seconds == 0 and ledgerq_audit_timestamp_seconds offset 1d == 0) > 0"
        ),
        "No audit of the store {{ $labels.store }} was recorded for more than a day",
        "No audit has proven lately that log, indexes and counters agree.",
    ),
    Alert(
        "LedgerqExporterStale", "warning", "5m",
        "time() - ledgerq_read_timestamp_seconds > 60\n"
        "or\n"
        "up == 0 and on (job, instance) last_over_time(ledgerq_read_timestamp_seconds[6h])\n"
        "unless on (job, instance) last_over_time(ledgerq_writer_up[6h])",
        "What {{ $labels.instance }} reports of its store is old",
        "The store could not be read for more than a minute, or the exporter itself can't be reached.",
    ),
)  # fmt: skip

ALERTS: Final = (*_BACKLOG, *_FAILURES, *_WRITER, *_PROOF)


def records_file() -> str:
    """The recording rules as YAML."""
    return _file("ledgerq-records", (_record(record) for record in RECORDS))


def alerts_file() -> str:
    """The alerting rules as YAML; some of them stand on the recording rules."""
    return _file("ledgerq-alerts", (_alert(alert) for alert in ALERTS))


def _file(group: str, rules: Iterator[Sequence[str]]) -> str:
    lines = ["# Made by `python -m ledgerq.tools.monitoring.generate`.", "groups:", f"  - name: {group}", "    rules:"]
    for first, *more in rules:
        lines += [f"      - {first}", *(f"        {line}" for line in more)]
    return "\n".join(lines) + "\n"


def _expr(expr: str) -> list[str]:
    return ["expr: |-", *(f"  {line}" for line in expr.splitlines())]


def _record(record: RecordingRule) -> list[str]:
    return [f"record: {record.name}", *_expr(record.expr)]


def _alert(alert: Alert) -> list[str]:
    # A JSON string is a YAML string.
    texts = {"summary": alert.summary, "description": alert.description, "runbook_url": alert.runbook_url}
    return [
        f"alert: {alert.name}",
        *_expr(alert.expr),
        f"for: {alert.wait}",
        "labels:",
        f"  severity: {alert.severity}",
        "annotations:",
        *(f"  {name}: {dumps(text)}" for name, text in texts.items()),
    ]
