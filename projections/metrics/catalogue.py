"""The catalogue of metrics: each one's name, type, labels, source, and what to do about it.

The collector builds its families from this table, and the table in docs/ is made of it, so the three can't differ.
Names and units follow Prometheus's and OpenMetrics' rules: base units, `_total` for counters, `_info` for facts.
"""

from typing import Final, Literal, NamedTuple

__all__ = ["CATALOGUE", "Group", "MetricSpec", "MetricType", "Origin", "markdown"]

MetricType = Literal["counter", "gauge", "histogram", "info"]
Group = Literal["Traffic", "Backlog", "Latency", "Workers", "Writer", "Log and projections", "Audit", "Store"]
"""The groups of metrics, in the order of the table."""

Origin = Literal["log", "store", "writer", "worker"]
"""The processes that have a metric: for `log` and `store` the queue's and the exporter's (from durable counters, or a
bounded read of the indexes), `writer` only the process that has the queue open, `worker` only the process that runs
handlers.
"""


class MetricSpec(NamedTuple):
    """One metric. `name` is that of its samples (a histogram's without `_bucket`); `advice` is what to do about it."""

    name: str
    type: MetricType
    labels: tuple[str, ...]
    unit: str
    group: Group
    origin: Origin
    meaning: str
    advice: str

    @property
    def help(self) -> str:
        """The help text: what it means, and what to do."""
        return f"{self.meaning} {self.advice}".rstrip()

    @property
    def family(self) -> str:
        """The family's name in OpenMetrics: a counter's has no `_total`, an info's no `_info`."""
        return self.name.removesuffix("_total").removesuffix("_info")


_TABLE: Final[tuple[MetricSpec, ...]] = (
    # ------------------------------------------------------------------ traffic
    MetricSpec(
        "ledgerq_transitions_total", "counter", ("queue", "kind"), "", "Traffic", "log",
        "Transitions of jobs since the beginning of the log.",
        "Compare the rates of enqueued and acked: a lasting gap grows the backlog. A rise of lease_expired or dead: "
        "read the errors with `ledgerq jobs URL QUEUE --state dead`.",
    ),
    MetricSpec(
        "ledgerq_attempts_total", "counter", ("queue", "outcome"), "", "Traffic", "log",
        "Tries that ended (acked, nacked, lease_expired) since the beginning of the log; claims given back unused "
        "don't count.",
        "When the share of those not acked rises, look at the handlers, or at what they depend on.",
    ),
    # ------------------------------------------------------------------ backlog
    MetricSpec(
        "ledgerq_jobs", "gauge", ("queue", "state"), "", "Backlog", "log",
        "Jobs in each state now.",
        "Pending that grows and does not drain: add workers or concurrency. Dead above 0: read why, mend it, requeue.",
    ),
    MetricSpec(
        "ledgerq_oldest_pending_age_seconds", "gauge", ("queue",), "seconds", "Backlog", "store",
        "How long the longest waiting pending job has been claimable (0: none is pending), of the first 8 jobs of each "
        "of the first 8 priorities in use.",
        "Above what the queue promises: add workers, see whether it is paused, or whether more urgent jobs starve it.",
    ),
    MetricSpec(
        "ledgerq_next_due_seconds", "gauge", (), "seconds", "Backlog", "store",
        "Seconds until the next scheduled job of any queue is due; absent when none is scheduled.",
        "Below 0 for more than a moment: no writer runs maintenance; start one, or look at its log.",
    ),
    MetricSpec(
        "ledgerq_queue_paused", "gauge", ("queue",), "", "Backlog", "log",
        "1 while the queue hands out nothing.",
        "Paused for longer than meant: see who and why with `ledgerq log URL`, then `ledgerq resume`.",
    ),
    MetricSpec(
        "ledgerq_queues", "gauge", (), "", "Backlog", "log",
        "Queues that ever had an event.",
        "Above the collector's limit the youngest are summed under queue=\"other\": raise the limit, or use fewer.",
    ),
    # ------------------------------------------------------------------ latency
    MetricSpec(
        "ledgerq_job_waiting_seconds", "histogram", ("queue",), "seconds", "Latency", "log",
        "From when a job was due or became claimable until it was claimed, one for each claim.",
        "When its upper quantiles rise while handlers are quick, workers are too few.",
    ),
    MetricSpec(
        "ledgerq_job_running_seconds", "histogram", ("queue",), "seconds", "Latency", "log",
        "From a claim until its worker acked or nacked it; claims given back unused and expired leases don't count.",
        "When it nears the lease, raise the lease or split the work. It includes the wait for a free slot in the "
        "worker: compare with ledgerq_worker_handler_seconds.",
    ),
    MetricSpec(
        "ledgerq_job_life_seconds", "histogram", ("queue",), "seconds", "Latency", "log",
        "From enqueued until acked, with every delay and retry, one for each job done.",
        "This is what those who enqueue notice: set the objective here, and look for the cause in waiting and running.",
    ),
    MetricSpec(
        "ledgerq_job_attempts", "histogram", ("queue",), "", "Latency", "log",
        "Tries that a job needed until it was acked, one for each job done.",
        "More than one for many: find the passing error that the retries hide.",
    ),
    # ------------------------------------------------------------------ workers
    MetricSpec(
        "ledgerq_worker_handlers_running", "gauge", ("queue",), "", "Workers", "worker",
        "Handlers that run now.",
        "At the limit while jobs are pending: raise the concurrency, or start more workers.",
    ),
    MetricSpec(
        "ledgerq_worker_handlers_limit", "gauge", (), "", "Workers", "worker",
        "Handlers that may run at a time in this process.",
        "What ledgerq_worker_handlers_running is measured by.",
    ),
    MetricSpec(
        "ledgerq_worker_claims_held", "gauge", (), "", "Workers", "worker",
        "Claims that the worker holds: running, fetched ahead, and ended with their outcomes on the way to the log.",
        "Far above the running handlers while other workers idle: lower prefetch.",
    ),
    MetricSpec(
        "ledgerq_worker_handler_seconds", "histogram", ("queue", "outcome"), "seconds", "Workers", "worker",
        "How long handlers ran, by what came of it: done, retry, dead, timeout, cancelled, released, lost, unknown.",
        "Timeouts: raise the handler's timeout or mend what hangs. Lost: the lease is too short, or the loop is "
        "blocked.",
    ),
    MetricSpec(
        "ledgerq_worker_lease_renewals_total", "counter", (), "", "Workers", "worker",
        "Leases renewed by this process's workers.",
        "Flat while handlers run for longer than a third of the lease: the event loop is blocked.",
    ),
    MetricSpec(
        "ledgerq_worker_claims_lost_total", "counter", (), "", "Workers", "worker",
        "Claims that ended in another hand while their handler ran or before it was settled: its result did not count.",
        "Above 0: work is done twice. Raise the lease, or find what blocks the event loop.",
    ),
    # ------------------------------------------------------------------ writer
    MetricSpec(
        "ledgerq_writer_up", "gauge", (), "", "Writer", "writer",
        "1 while this process can commit, 0 after it failed.",
        "0: the process must open the queue again; see ledgerq_writer_failed for why.",
    ),
    MetricSpec(
        "ledgerq_writer_failed", "gauge", ("error",), "", "Writer", "writer",
        "1 with the name of the error that ended this writer; absent while it works.",
        "Fenced: another process opened the store, make sure that only one does. Others: see its log, then restart it.",
    ),
    MetricSpec(
        "ledgerq_ready_window_jobs", "gauge", ("queue",), "", "Writer", "writer",
        "Pending jobs kept in memory, ready to be claimed.",
        "0 while many are pending and claims wait: reading the store is slow; see the store's metrics.",
    ),
    MetricSpec(
        "ledgerq_claims_held", "gauge", (), "", "Writer", "writer",
        "Claims of this process whose leases run.",
        "Steady while nothing is acked: handlers hang.",
    ),
    MetricSpec(
        "ledgerq_claim_waiters", "gauge", ("queue",), "", "Writer", "writer",
        "Calls of claim that wait for a job of the queue; one that waits for several queues counts in each.",
        "Above 0 while jobs are pending: the queue is paused, or its window is not filled.",
    ),
    MetricSpec(
        "ledgerq_queue_max_running", "gauge", ("queue",), "", "Writer", "writer",
        "How many jobs of the queue may be claimed at a time; absent for a queue without such a limit.",
        "Compare with ledgerq_jobs{state=\"claimed\"}: equal for long while jobs are pending, the limit is what holds.",
    ),
    MetricSpec(
        "ledgerq_queue_held_back", "gauge", ("queue",), "", "Writer", "writer",
        "1 when the last claim of the queue was refused by its limits or a hold; absent for a queue that has none.",
        "For longer than meant: see `ledgerq limits URL`, and `ledgerq hold URL QUEUE --release`.",
    ),
    MetricSpec(
        "ledgerq_commit_seconds", "histogram", ("phase",), "seconds", "Writer", "writer",
        "How long each part of a commit took: wait (open, gathering callers), fill (rows made, holds the event loop), "
        "write (SlateDB takes the batch), flush (its write-ahead log is written), sync (fsync and anchor).",
        "Slow sync: the disk. Slow flush: the bucket. Slow fill: calls too large. Slow wait alone is the interval.",
    ),
    MetricSpec(
        "ledgerq_commit_events", "histogram", (), "", "Writer", "writer",
        "Events in each commit of this process.",
        "Near 1 under load: callers wait for each other; let more of them run at once, or use the bulk calls.",
    ),
    MetricSpec(
        "ledgerq_commit_bytes", "histogram", (), "bytes", "Writer", "writer",
        "Bytes of each commit of this process: its record batch and its payloads.",
        "Megabytes: payloads are large; keep them elsewhere and enqueue a reference.",
    ),
    MetricSpec(
        "ledgerq_maintenance_failures_total", "counter", (), "", "Writer", "writer",
        "Maintenance steps (leases, due jobs, sweeps) that failed and were tried again.",
        "Rising: the store answers badly; the log names the error.",
    ),
    MetricSpec(
        "ledgerq_build_info", "info", ("version",), "", "Writer", "writer",
        "The version of ledgerq in this process.",
        "Two versions on one store: finish the rollout.",
    ),
    # ------------------------------------------------------------------ log and projections
    MetricSpec(
        "ledgerq_log_events_total", "counter", (), "", "Log and projections", "log",
        "Events in the log: the offset of its head.",
        "What the counters add up to; it only grows.",
    ),
    MetricSpec(
        "ledgerq_log_epoch", "gauge", (), "", "Log and projections", "log",
        "The number of times the store was opened to write.",
        "Rising again and again: writers restart, or fence each other.",
    ),
    MetricSpec(
        "ledgerq_log_last_commit_timestamp_seconds", "gauge", (), "seconds", "Log and projections", "log",
        "When the last commit was made.",
        "Old while jobs are pending: no writer works, or nothing claims.",
    ),
    MetricSpec(
        "ledgerq_log_written_bytes_total", "counter", (), "bytes", "Log and projections", "writer",
        "Bytes of record batches that this process appended to the log.",
        "Its rate is how fast the log grows: it is never shortened, so plan the space.",
    ),
    MetricSpec(
        "ledgerq_projection_lag_events", "gauge", ("projection",), "", "Log and projections", "store",
        "Events by which a projection is behind the log's head; jobs and stats never are.",
        "Above 0 for long: it raised, see the log; mend it, then `rebuild-projections --only NAME`.",
    ),
    MetricSpec(
        "ledgerq_read_timestamp_seconds", "gauge", (), "seconds", "Log and projections", "store",
        "When what is read from the store for these metrics was last read.",
        "Older than a few scrapes: the store does not answer, and ages and audit are as of then.",
    ),
    # ------------------------------------------------------------------ audit
    MetricSpec(
        "ledgerq_audit_timestamp_seconds", "gauge", (), "seconds", "Audit", "store",
        "When the last recorded audit ended, 0 when none was ever recorded.",
        "Older than a day: run `ledgerq audit URL --record` from a timer.",
    ),
    MetricSpec(
        "ledgerq_audit_offset", "gauge", (), "", "Audit", "store",
        "Up to which offset the last recorded audit proved the log.",
        "Its distance from ledgerq_log_events_total is what is not proven yet.",
    ),
    MetricSpec(
        "ledgerq_audit_differences", "gauge", (), "", "Audit", "store",
        "Rows that the last recorded audit found to differ from the log.",
        "Above 0: run `ledgerq audit URL` to see which, then `rebuild-projections URL`.",
    ),
    MetricSpec(
        "ledgerq_audit_log_intact", "gauge", (), "", "Audit", "store",
        "1 when the last recorded audit could verify the log, 0 when the log was damaged or rolled back.",
        "0: stop the writer, keep a copy, run `ledgerq audit URL`: it names the first offset that is not proven.",
    ),
    # ------------------------------------------------------------------ the store
    MetricSpec(
        "ledgerq_slatedb_requests_total", "counter", ("op",), "", "Store", "writer",
        "Calls into SlateDB: get, scan, flush.",
        "Many gets for each job: the ready window is too small for the backlog.",
    ),
    MetricSpec(
        "ledgerq_slatedb_write_ops_total", "counter", (), "", "Store", "writer",
        "Rows put and deleted.",
        "Its rate over that of transitions is what a transition writes.",
    ),
    MetricSpec(
        "ledgerq_slatedb_backpressure_total", "counter", (), "", "Store", "writer",
        "Writes that had to wait because too much was not flushed yet.",
        "Rising: the disk or the bucket is slower than the load; raise max_unflushed_bytes only for bursts.",
    ),
    MetricSpec(
        "ledgerq_slatedb_l0_stalls_total", "counter", ("type",), "", "Store", "writer",
        "Writes that had to wait because compaction was behind.",
        "Rising: give the process more CPU, or the store a faster disk.",
    ),
    MetricSpec(
        "ledgerq_slatedb_l0_ssts", "gauge", (), "", "Store", "writer",
        "Sorted files that wait for compaction.",
        "Near 16 writes stall: compaction is behind.",
    ),
    MetricSpec(
        "ledgerq_slatedb_sorted_runs", "gauge", (), "", "Store", "writer",
        "Sorted runs that a read may have to look into.",
        "Growing without end: compaction does not run.",
    ),
    MetricSpec(
        "ledgerq_slatedb_memory_bytes", "gauge", (), "bytes", "Store", "writer",
        "What SlateDB holds in memory before it is in sorted files.",
        "Near max_unflushed_bytes plus twice l0_sst_bytes: flushing is slow.",
    ),
    MetricSpec(
        "ledgerq_slatedb_wal_flushed_bytes_total", "counter", (), "bytes", "Store", "writer",
        "Bytes written to the write-ahead log.",
        "With the two below it, what the disk or the bucket has to take.",
    ),
    MetricSpec(
        "ledgerq_slatedb_l0_flushed_bytes_total", "counter", (), "bytes", "Store", "writer",
        "Bytes moved from memory to sorted files.",
        "Far above the rate of the write-ahead log: flushes are forced too often.",
    ),
    MetricSpec(
        "ledgerq_slatedb_compacted_bytes_total", "counter", (), "bytes", "Store", "writer",
        "Bytes that compaction wrote.",
        "Its rate over that of flushes is the write amplification.",
    ),
    MetricSpec(
        "ledgerq_slatedb_last_compaction_timestamp_seconds", "gauge", (), "seconds", "Store", "writer",
        "When compaction last finished, 0 when it has not in this process.",
        "Old while ledgerq_slatedb_l0_ssts grows: the compactor hangs; restart the process.",
    ),
    MetricSpec(
        "ledgerq_slatedb_cache_accesses_total", "counter", ("entry_kind", "result"), "", "Store", "writer",
        "Looks into the block cache, by what was looked for.",
        "Many misses of data blocks: raise cache_bytes.",
    ),
    MetricSpec(
        "ledgerq_slatedb_object_store_requests_total", "counter", ("component", "op"), "", "Store", "writer",
        "Requests to the bucket or the file system: what a bucket bills.",
        "Many puts: raise commit_interval_ms.",
    ),
    MetricSpec(
        "ledgerq_slatedb_object_store_request_seconds", "histogram", ("op",), "seconds", "Store", "writer",
        "How long reads and writes of objects or files took, by op.",
        "Rising with commit flush: the bucket is slow, not ledgerq.",
    ),
)  # fmt: skip

CATALOGUE: Final[dict[str, MetricSpec]] = {spec.name: spec for spec in _TABLE}
"""All metrics by name, in the order in which they are shown."""


def markdown() -> str:
    """The catalogue as a table in Markdown."""
    lines = ["| metric | type | labels | from | what it means, and what to do |", "|---|---|---|---|---|"]
    for spec in CATALOGUE.values():
        labels = ", ".join(f"`{label}`" for label in spec.labels)
        lines.append(f"| `{spec.name}` | {spec.type} | {labels} | {spec.origin} | {spec.help} |")
    return "\n".join(lines) + "\n"
