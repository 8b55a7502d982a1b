"""The report of `ledgerq audit`, as text and as JSON."""

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog.runtime.commands import rebuild_command, salvage_command
from ledgerq.tools.console.output import Output, local_time, plural

if TYPE_CHECKING:
    from ledgerq.eventlog.recorded_audit import RecordedAudit
    from ledgerq.projections.audit import AuditReport, Difference

__all__ = ["audit_json", "audit_text", "belongs"]

_MAX_VALUE_CHARS: Final = 160
_MAX_FILES: Final = 20
_NOT_SEEN: Final = [
    "the log before",
    "rows of other jobs",
    "payloads",
    "hints",
    "projections of users",
    "the blocks of the files",
]


def audit_json(found: "AuditReport", differences: "list[Difference]", count: int, deep: bool) -> dict[str, Any]:
    """The report as JSON, with these of its differences, of which there are `count`."""
    head = found.verified.head
    rows = [
        {
            "range": row.range_name,
            "key": row.key,
            "raw_key": row.raw_key.hex(),
            "expected": row.expected,
            "found": row.found,
        }
        for row in differences
    ]
    return {
        "location": found.location,
        "clean": not (count or found.damaged_files or found.unreadable),
        "batches": found.verified.batches,
        "events": found.verified.events,
        "head": {"offset": head.next_offset, "digest": head.digest.hex(), "epoch": head.epoch, "time_ms": head.time_ms},
        "anchor": None if found.anchor is None else {"offset": found.anchor.next_offset, "epoch": found.anchor.epoch},
        "format": found.format_version,
        "jobs": found.jobs,
        "payloads": found.payloads if deep else None,
        "lost_payloads": found.lost_payloads,
        "unreadable_from": head.next_offset if found.unreadable else None,
        "unreadable": found.unreadable or None,
        "damaged_files": [{"path": fault.path, "problems": list(fault.problems)} for fault in found.damaged_files],
        "since": None if found.since is None else _since_json(found.since),
        "difference_count": count,
        "differences": rows,
    }


def _since_json(since: "RecordedAudit") -> dict[str, Any]:
    full_ms = None if since.start is None else since.start.full_ms
    return {"offset": since.offset, "time_ms": since.time_ms, "full_audit_time_ms": full_ms, "not_looked_at": _NOT_SEEN}


def audit_text(found: "AuditReport", differences: "list[Difference]", count: int, deep: bool, output: Output) -> None:
    """The report as text for people."""
    from ledgerq.eventlog.keys import FORMAT_VERSION

    if found.since is not None:
        _since_text(found, found.since, output)
        _rest(found, differences, count, output)
        return
    verified = found.verified
    at = f" of {local_time(verified.head.time_ms)}" if verified.events else ""
    if found.unreadable:
        end = verified.head.next_offset
        output.line(
            f"log     {verified.events} events in {verified.batches} commits, proven to {end}, unreadable from {end}"
        )
        output.line(f"why     {found.unreadable}")
    else:
        output.line(f"log     {verified.events} events in {verified.batches} commits, proven up to the head{at}")
    output.line(f"digest  {verified.head.digest.hex()}")
    if found.anchor is None:
        output.line("anchor  none")
    else:
        held = "" if found.unreadable else ", and the log holds them"
        output.line(f"anchor  {found.anchor.next_offset} events{held}")
    if not found.unreadable:
        output.line(f"jobs    {found.jobs} compared with their index rows" + (f"; {found.payloads} payloads" * deep))
    if found.lost_payloads:
        output.line(f"lost    the payloads of {found.lost_payloads} dead letters, as recorded in the log")
    if found.format_version < FORMAT_VERSION:
        output.line(f"format  {found.format_version}: rebuild-projections brings it to format {FORMAT_VERSION}")
    _rest(found, differences, count, output)


def _since_text(found: "AuditReport", since: "RecordedAudit", output: Output) -> None:
    verified, full_ms = found.verified, 0 if since.start is None else since.start.full_ms
    new, batches = plural(verified.events - since.offset, "event"), plural(verified.batches, "commit")
    output.line(f"since   the audit of {local_time(since.time_ms)}, which ended at offset {since.offset}")
    output.line(f"log     {new} in {batches} since, proven up to the head, and to follow from what that audit proved")
    output.line(f"digest  {verified.head.digest.hex()}")
    anchor = "none" if found.anchor is None else f"{found.anchor.next_offset} events, and the log holds them"
    output.line(f"anchor  {anchor}")
    output.line(f"jobs    {found.jobs} with an event since compared with their index rows; all counters")
    output.line(f"unseen  {', '.join(_NOT_SEEN)}: the last audit of everything is of {local_time(full_ms)}")


def _rest(found: "AuditReport", differences: "list[Difference]", count: int, output: Output) -> None:
    for fault in found.damaged_files[:_MAX_FILES]:
        output.line(f"damage  {fault.path}: {'; '.join(fault.problems[:_MAX_FILES])}")
    if differences:
        rows = [[row.range_name, row.key, _value(row.expected), _value(row.found)] for row in differences]
        output.table(("range", "key", "expected", "found"), rows)
    if len(differences) < count:
        output.line(f"... and {count - len(differences)} more")
    output.line(f"result  {_result(found, differences, count)}")


def _result(found: "AuditReport", differences: "list[Difference]", count: int) -> str:
    what = "1 difference" if count == 1 else f"{count} differences"
    files = "1 damaged file" if len(found.damaged_files) == 1 else f"{len(found.damaged_files)} damaged files"
    salvage, mend = salvage_command(found.location), rebuild_command(found.location)
    if found.unreadable:
        return f"the log can't be read to its end: save what is there with {salvage}"
    if found.damaged_files:
        return f"{files}, {what}: save all that is there with {salvage}"
    lost = _past_mending(differences)
    if count and count == sum(number for number, _ in lost):
        return f"{what}: {'; '.join(text for _, text in lost)}"
    if count and lost:
        return f"{what}: mend with {mend}, except for {'; '.join(text for _, text in lost)}"
    if count:
        return f"{what}: mend with {mend}"
    if found.since is not None:
        return "clean since then: what was looked at is what follows from the log"
    return "clean: the indexes are what follows from the log"


def _past_mending(differences: "list[Difference]") -> list[tuple[int, str]]:
    """How many of these no rebuild can mend, by their kind, and what they mean."""
    ranges = Counter(row.range_name for row in differences)
    said = {
        "payload": "gone or damaged: a worker makes a dead letter of such a job, and a finished one is swept with its "
        "record",
        "blob": "gone or damaged, of a large payload: a handler that reads it fails, and a copy makes a dead letter",
        "text": "gone, damaged or of no event, which costs nothing else",
        "secret": "digested with another secret than the store's, so they are not recognised: put the secret back "
        "from a copy of the store",
    }
    names = {"secret": "unique key"}
    return [
        (ranges[name], f"{plural(ranges[name], names.get(name, name))} {text}")
        for name, text in said.items()
        if ranges[name]
    ]


def _value(text: str | None) -> str:
    if text is None:
        return "no such row"
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."


def belongs(range_name: str, only: str) -> bool:
    """Whether a difference in this range concerns the projection `only`."""
    if range_name == "meta":
        return True
    if range_name.startswith("projection "):
        return range_name == f"projection {only}"
    from ledgerq.projections.runner import JOBS, STATS

    return only == (STATS if range_name == STATS else JOBS)
