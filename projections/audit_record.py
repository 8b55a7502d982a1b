"""Noting what an audit found where monitors see it (`ledgerq audit --record`): see eventlog/audit_note.py."""

from ledgerq.eventlog.audit_note import AuditNote, write_note
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import LogCorrupt, LogRolledBack
from ledgerq.projections.audit import AuditReport

__all__ = ["record_failure", "record_report"]


async def record_report(url: str, clock: Clock, report: AuditReport, *, deep: bool) -> None:
    """Note what an audit proved and what it found; raises `StoreUnavailable` when the note can't be written."""
    proven = report.verified.head.next_offset
    await write_note(url, AuditNote(clock.now_ms(), proven, report.problem_count, not report.unreadable, deep))


async def record_failure(url: str, clock: Clock, error: LogCorrupt | LogRolledBack, *, deep: bool) -> None:
    """Note an audit that found the log itself damaged or rolled back; raises like `record_report`."""
    proven = error.offset if isinstance(error, LogCorrupt) else error.first_offset
    await write_note(url, AuditNote(clock.now_ms(), proven, 0, False, deep))
