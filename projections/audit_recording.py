"""The record of an audit beside the store: for metrics and alerts, and for the next audit to start from."""

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LogCorrupt, LogRolledBack
from ledgerq.eventlog.recorded_audit import AuditStart, RecordedAudit, write_recorded_audit
from ledgerq.projections.audit import AuditReport

__all__ = ["record_failure", "record_report"]


async def record_report(url: str, clock: Clock, report: AuditReport, *, deep: bool) -> None:
    """Write what an audit proved and found beside the store; raises `StoreUnavailable` when it can't be written."""
    head, now_ms, start = report.verified.head, clock.now_ms(), None
    is_present = report.format_version == keys.FORMAT_VERSION
    if report.clean and is_present and report.counters is not None and head.next_offset:
        last = None if report.since is None else report.since.start
        full_ms = now_ms if last is None else last.full_ms
        start = AuditStart(head, report.counters, full_ms, report.schedules, report.limits)
    recorded = RecordedAudit(now_ms, head.next_offset, report.problem_count, not report.unreadable, deep, start)
    await write_recorded_audit(url, recorded)


async def record_failure(url: str, clock: Clock, error: LogCorrupt | LogRolledBack, *, deep: bool) -> None:
    """Record that the log itself is damaged or rolled back; raises like `record_report`."""
    proven = error.offset if isinstance(error, LogCorrupt) else error.first_offset
    await write_recorded_audit(url, RecordedAudit(clock.now_ms(), proven, 0, False, deep))
