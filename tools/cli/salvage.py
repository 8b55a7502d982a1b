"""`rebuild-projections URL --into NEW --salvage`: a new store from what can still be read of a damaged one.

Exit code 0 when everything promised was recovered, 4 when something was lost, which the report names.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.console.opening import NOT_IN_USE, opened_store, refuse_memory, without_stderr
from ledgerq.tools.console.output import Output, local_time, plural, progress

if TYPE_CHECKING:
    from ledgerq.eventlog.locations import Location
    from ledgerq.projections.payloads import LostPayload
    from ledgerq.projections.rebuild import RebuildReport
    from ledgerq.projections.repair.salvage import SalvageReport

__all__ = ["LOST", "lost_beside", "lost_payload_json", "lost_payload_lines", "salvage_into"]

LOST: Final = 4
_MAX_LINES: Final = 20


async def salvage_into(url: str, into: str, actor: str, reason: str, output: Output) -> int:
    """Salvage the store at `url` into a new one, report, and return the exit code."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.eventlog.recovery.damaged_store import damaged_store
    from ledgerq.projections.repair.salvage import salvage
    from ledgerq.worker.engine.decisions import operator

    actor, reason = operator(actor, reason)
    refuse_memory(url)
    refuse_memory(into)
    source = parse_location(url)
    _refuse_inside(source, parse_location(into))
    with progress("copying the objects", "objects") as copying, progress("reading the files", "files") as show:
        async with (
            damaged_store(source, progress=copying, quietly=without_stderr) as damaged,
            opened_store(into, NOT_IN_USE, create=True) as target,
        ):
            report = await salvage(damaged, target, clock=SystemClock(), actor=actor, reason=reason, progress=show)
    if output.as_json:
        output.json(_json(report, into))
    else:
        output.facts([*_facts(report, into)])
    return 0 if report.is_whole else LOST


def _refuse_inside(source: "Location", target: "Location") -> None:
    """Refuse a new store among the damaged files, where nothing may be written."""
    if source.scheme == target.scheme and source.root == target.root:
        old, new = Path("/", source.database), Path("/", target.database)
        if source.is_file:
            old, new = old.resolve(), new.resolve()
        if new == old or old in new.parents or new in old.parents:
            raise InvalidArgument(f"{target.original} lies where the damaged store is: give a location of its own")


# ---------------------------------------------------------------------- the report


def _facts(report: "SalvageReport", into: str) -> Iterator[tuple[str, str]]:
    verified, end = report.rebuilt.verified, report.end
    manifest = "no manifest can be read" if report.manifest is None else f"manifest {report.manifest} is the newest"
    yield "read", f"{report.files} {'file' if report.files == 1 else 'files'} of rows; {manifest}"
    if report.faults:
        yield "wrong", _lines([f"{fault.path}: {what}" for fault in report.faults for what in fault.problems])
    at = f" of {local_time(verified.head.time_ms)}"
    yield "log", f"{verified.events} events in {verified.batches} commits, proven up to offset {end - 1}{at}"
    yield "promised", _promise(report)
    if report.why_ended:
        yield "ended", report.why_ended
    if report.stretches:
        found = [f"offsets {s.start} to {s.stop - 1} in {s.batches} commits" for s in report.stretches]
        yield (
            "left out",
            _lines([f"found behind the gap, so the state after them is not known: {what}" for what in found]),
        )
    if report.other_batches:
        yield "left out", f"{report.other_batches} commits that don't belong to this history (cut or altered once)"
    kept = ", ".join(f"{queue} {count}" for queue, count in report.kept.items())
    yield "jobs", f"{report.rebuilt.jobs} kept" + f": {kept}" * bool(kept)
    if report.lost_jobs:
        yield (
            "lost",
            _lines([f"job {j.job_id} of queue {j.queue}, enqueued at offset {j.offset}" for j in report.lost_jobs]),
        )
    if report.rebuilt.lost:
        yield "payloads", _lines([*lost_payload_lines(report.rebuilt.lost, len(report.rebuilt.lost))])
    yield from lost_beside(report.rebuilt)
    yield "result", f"{into} {_result(report)}"


def _promise(report: "SalvageReport") -> str:
    promised = report.promised
    if promised is None:
        return "neither anchor nor head can be read, so where the log ended is not known"
    who = "by the anchor" if promised == report.anchor else "by a head that was found"
    if report.is_reached:
        held = "and they are all there"
    elif report.end < promised.next_offset or report.is_end_known:
        held = f"from offset {report.end} on they are lost"
    else:
        held = "and what can't be read may have held more"
    return f"{who}, {promised.next_offset} events were durable, {held}"


def _result(report: "SalvageReport") -> str:
    if report.is_whole:
        return "holds everything that was promised"
    lost = []
    if not report.is_reached:
        last = max(s.stop for s in report.stretches) if report.stretches else 0
        stop = max(last, 0 if report.promised is None else report.promised.next_offset)
        lost.append(f"offsets {report.end} to {stop - 1}" if stop > report.end else "perhaps the log's end")
    if report.rebuilt.lost:
        lost.append(f"the payloads of {len(report.rebuilt.lost)} jobs")
    if report.rebuilt.lost_texts:
        lost.append(plural(len(report.rebuilt.lost_texts), "text"))
    if report.rebuilt.lost_keys:
        lost.append(f"the values of {plural(len(report.rebuilt.lost_keys), 'key')}")
    if report.rebuilt.is_secret_new:
        lost.append("the secret")
    return f"holds all that can be proven; lost: {', '.join(lost)}"


def _lines(lines: Sequence[str]) -> str:
    more = f"... and {len(lines) - _MAX_LINES} more, which --json names" if len(lines) > _MAX_LINES else ""
    return "\n".join([*lines[:_MAX_LINES], *([more] if more else [])])


def lost_payload_lines(lost: "Sequence[LostPayload]", limit: int = _MAX_LINES) -> Iterator[str]:
    """A line for each of the first `limit` jobs whose payload is lost."""
    for job, why in lost[:limit]:
        what = "now a dead letter" if job.state not in ("done", "dead", "cancelled") else f"{job.state} as before"
        yield f"job {job.job_id} of queue {job.queue}, offset {job.offset}, {what}: {why}"
    if len(lost) > limit:
        yield f"... and {len(lost) - limit} more, which --json names"


def lost_beside(report: "RebuildReport") -> Iterator[tuple[str, str]]:
    """Lines about the texts and the values that are lost, and about a new secret."""
    if report.lost_texts:
        yield (
            "texts",
            f"lost those of the events at {', '.join(map(str, report.lost_texts[:_MAX_LINES]))}"
            + (f" and {len(report.lost_texts) - _MAX_LINES} more" if len(report.lost_texts) > _MAX_LINES else ""),
        )
    if report.lost_keys:
        names = ", ".join(map(repr, report.lost_keys[:_MAX_LINES]))
        more = f" and {len(report.lost_keys) - _MAX_LINES} more" if len(report.lost_keys) > _MAX_LINES else ""
        yield "values", f"lost those of the keys {names}{more}, which are deleted now"
    if report.is_secret_new:
        yield "secret", "it was missing, and is a new one: unique keys of unfinished jobs are not recognised"


def lost_payload_json(lost: "LostPayload") -> dict[str, Any]:
    """A job whose payload is lost, as JSON."""
    job = lost.job
    return {
        "job_id": job.job_id,
        "queue": job.queue,
        "offset": job.offset,
        "state_before": job.state,
        "dead_letter": lost.is_dead_letter,
        "why": lost.why,
    }


def _json(report: "SalvageReport", into: str) -> dict[str, Any]:
    head = report.rebuilt.verified.head
    anchor, promised = (None if a is None else a.next_offset for a in (report.anchor, report.promised))
    return {
        "location": into,
        "source": report.location,
        "whole": report.is_whole,
        "files": report.files,
        "manifest": report.manifest,
        "faults": [{"path": fault.path, "problems": list(fault.problems)} for fault in report.faults],
        "events": report.rebuilt.verified.events,
        "batches": report.rebuilt.verified.batches,
        "head": {"offset": head.next_offset, "digest": head.digest.hex()},
        "anchor": anchor,
        "promised": promised,
        "promised_is_there": report.is_reached,
        "end_is_known": report.is_end_known,
        "ended": report.why_ended or None,
        "beyond_a_gap": [{"start": s.start, "stop": s.stop, "batches": s.batches} for s in report.stretches],
        "other_batches": report.other_batches,
        "jobs": report.rebuilt.jobs,
        "jobs_by_queue": report.kept,
        "lost_jobs": [job._asdict() for job in report.lost_jobs],
        "lost_payloads": [lost_payload_json(lost) for lost in report.rebuilt.lost],
        "lost_texts": report.rebuilt.lost_texts,
        "lost_keys": report.rebuilt.lost_keys,
        "secret_is_new": report.rebuilt.is_secret_new,
    }
