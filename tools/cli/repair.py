"""The commands that prove and repair: audit, and rebuild-projections, which is also a program of its own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogCorrupt
from ledgerq.eventlog.runtime.commands import rebuild_command
from ledgerq.eventlog.runtime.heap import give_back_large_blocks
from ledgerq.tools.cli.audit_report import audit_json, audit_text, belongs
from ledgerq.tools.cli.limits import OfLimits, prove_limits
from ledgerq.tools.cli.salvage import lost_beside, lost_payload_json, lost_payload_lines, salvage_into
from ledgerq.tools.console.arguments import Actor, AsJson, Jobs, TakeOver, Url, Wait, import_object
from ledgerq.tools.console.opening import NOT_IN_USE, Access, execute, opened_store, reading, refuse_memory
from ledgerq.tools.console.output import Output, plural, progress

if TYPE_CHECKING:
    from ledgerq.eventlog.store import Anchor, Store
    from ledgerq.projections.rebuild import RebuildReport
    from ledgerq.projections.runner import Projection

__all__ = ["audit", "rebuild_projections"]

Projections = Annotated[
    list[str] | None,
    typer.Option("--projection", metavar="MODULE:NAME", help="A projection of your own to include; may be repeated."),
]


def audit(
    url: Url,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also read each live job's payload and compare it with its digest.")
    ] = False,
    anchor: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A copy of the store's `anchor` file kept elsewhere, to be held against it."),
    ] = None,
    projection: Projections = None,
    record: Annotated[
        bool,
        typer.Option("--record", help="Note the result beside the store's anchor, for metrics, alerts, --since-last."),
    ] = False,
    since_last: Annotated[
        bool,
        typer.Option("--since-last", help="Only what came since the last recorded audit, which must have been clean."),
    ] = False,
    jobs: Jobs = None,
    limits: OfLimits = False,
    as_json: AsJson = False,
) -> None:
    """Prove that log, indexes and counters are right.

    The log was not changed since it was written, and each index row and counter is what follows from it. Digests are no
    signatures: anyone who may write the store can change an event and recompute all that vouches for it. That is found
    with --anchor and a copy of the anchor, of after the event, kept where they can't write. This reads one commit of
    the store, beside its writer, and checks every block of its files (of objects in a bucket only with --deep). Exit
    code 1: something differs or can't be read, or the log is not what it was.

    With --since-last the chain is verified from the end of the last recorded audit on, and the rows of jobs that had an
    event since are compared, and all counters: nothing else is looked at, and the report says so.
    """
    if since_last and (deep or projection):
        raise InvalidArgument("--since-last looks at no payload and no projection of yours: leave out the other option")
    output = Output(as_json=as_json)
    if limits:
        prove_limits(url, output)
        return
    give_back_large_blocks()
    execute(_audit(url, deep, anchor, projection or [], None, output, record=record, since_last=since_last, jobs=jobs))


async def _audit(
    url: str,
    deep: bool,
    anchor_file: Path | None,
    projections: list[str],
    only: str | None,
    output: Output,
    *,
    may_be_old: bool = True,
    record: bool = False,
    since_last: bool = False,
    jobs: int | None = None,
) -> int:
    from ledgerq.eventlog.errors import LogRolledBack
    from ledgerq.eventlog.keys import FORMAT_VERSION
    from ledgerq.eventlog.recorded_audit import read_recorded_audit
    from ledgerq.projections.audit import audit as run_audit
    from ledgerq.projections.audit_recording import record_failure, record_report
    from ledgerq.projections.incremental_audit import audit_since

    anchor = None if anchor_file is None else _read_anchor(anchor_file)
    given = _projections(projections)
    if only is not None:
        _check_name(only, given)
    # Before the store is opened: then the view holds the commit that it names.
    last = await read_recorded_audit(url) if since_last else None
    async with reading(url, may_be_damaged=True) as reader:
        with progress("auditing", quiet=output.as_json) as report:
            store, clock = reader.store, reader.clock
            try:
                if since_last:
                    found = await audit_since(store, last, clock=clock, anchor=anchor, progress=report)
                else:
                    found = await run_audit(
                        store, clock=clock, deep=deep, anchor=anchor, projections=given, jobs=jobs, progress=report
                    )
            except (LogCorrupt, LogRolledBack) as error:
                if record:
                    await record_failure(url, reader.clock, error, deep=deep)
                raise
    differences = [row for row in found.differences if only is None or belongs(row.range_name, only)]
    # Those beyond the report's bound are of unknown ranges: they count, since something is wrong.
    count = len(differences) + found.difference_count - len(found.differences)
    try:
        if output.as_json:
            output.json(audit_json(found, differences, count, deep))
        else:
            audit_text(found, differences, count, deep, output)
    except BrokenPipeError:
        pass  # the reader has seen enough, and the exit code still counts
    if record:
        await record_report(url, reader.clock, found, deep=deep)
    is_clean = not (count or found.damaged_files or found.unreadable)
    return 0 if is_clean and (may_be_old or found.format_version == FORMAT_VERSION) else 1


def _read_anchor(file: Path) -> "Anchor":
    from ledgerq.eventlog.anchor import MAX_FILE_BYTES, newest_slot
    from ledgerq.eventlog.files.odd_files import read_small

    try:
        data = read_small(file, MAX_FILE_BYTES)
    except OSError as error:
        raise InvalidArgument(f"the anchor {str(file)!r} can't be read: {error.strerror}") from error
    newest = newest_slot(data)
    if newest is None:
        raise InvalidArgument(f"{str(file)!r} holds no anchor: give a copy of the file (or object) `anchor` of a store")
    return newest[1]


def _projections(names: list[str]) -> "list[Projection]":
    found: list[Projection] = []
    for name in names:
        made: Any = import_object(name)
        projection = made() if isinstance(made, type) else made
        if not all(hasattr(projection, part) for part in ("name", "restore", "apply")):
            raise InvalidArgument(f"{name} is no projection: it needs a name, restore and apply")
        found.append(projection)
    return found


def _check_name(only: str, given: "list[Projection]") -> None:
    from ledgerq.projections.runner import BUILT_IN

    names = (*BUILT_IN, *(projection.name for projection in given))
    if only not in names:
        raise InvalidArgument(
            f"there is no projection {only!r}: choose one of {', '.join(names)}, or name your own with --projection"
        )


def rebuild_projections(
    url: Url,
    actor: Actor,
    only: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this one: jobs, stats, or the name of your own.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: exit with 1 if there is something to rebuild.")
    ] = False,
    into: Annotated[
        str | None,
        typer.Option(metavar="NEW_URL", help="Write log, payloads and projections to a new store; URL is only read."),
    ] = None,
    until: Annotated[
        int | None,
        typer.Option(metavar="OFFSET", min=0, help="Keep only the log before this offset: for a log that is damaged."),
    ] = None,
    salvage: Annotated[
        bool,
        typer.Option(
            "--salvage", help="With --into: save what can still be read of a store that can't be opened, file by file."
        ),
    ] = False,
    projection: Projections = None,
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "rebuild-projections",
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    jobs: Jobs = None,
    as_json: AsJson = False,
) -> None:
    """Make indexes and counters what follows from the log.

    The log records that it was done. Nothing is written where nothing differs. Killed half way, run it again. A log
    that does not verify is refused, unless --until gives the offset at which it shall end. Without --check or --into
    this opens the store for writing, which would stop a writer at work: refused without --take-over.

    With --into NEW_URL --salvage nothing of the store at URL needs to be in order, and exit code 4 means that something
    promised was lost: the report names it.
    """
    output = Output(as_json=as_json)
    give_back_large_blocks()
    if salvage:
        if into is None or check or only is not None or projection or until is not None:
            raise InvalidArgument("--salvage saves the longest log that is proven: it goes with --into NEW_URL only")
        execute(salvage_into(url, into, actor, reason, output))
    elif check:
        if into is not None or until is not None:
            raise InvalidArgument("--check only looks: it goes with --only and --projection")
        execute(_audit(url, False, None, projection or [], only, output, may_be_old=False, jobs=jobs))
    elif into is not None:
        if only is not None or projection:
            raise InvalidArgument("--into writes a whole new store: it goes with --until only")
        execute(_rebuild_into(url, into, actor, reason, until, output))
    else:
        if only is not None and until is not None:
            raise InvalidArgument("--until cuts the log, so all projections change: leave out --only")
        access = Access(take_over, wait)
        execute(_rebuild(url, actor, reason, only, until, projection or [], access, output, jobs=jobs))


async def _rebuild(
    url: str,
    actor: str,
    reason: str,
    only: str | None,
    until: int | None,
    projections: list[str],
    access: Access,
    output: Output,
    *,
    jobs: int | None,
) -> None:
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.keys import REBUILD_KEY
    from ledgerq.projections.rebuild import rebuild
    from ledgerq.worker.engine.decisions import operator

    actor, reason = operator(actor, reason)
    given = _projections(projections)
    if only is not None:
        _check_name(only, given)
    async with opened_store(url, access) as store:
        if only is not None and await store.get(REBUILD_KEY) is not None:
            raise InvalidArgument(f"a rebuild of {url} was interrupted, so all must be rebuilt: leave out --only")
        if until is not None and await store.get(REBUILD_KEY) is None:
            await _refuse_to_cut_what_is_proven(store, url, until, output)
        with LogCorrupt.locating(url), progress("replaying the log", quiet=output.as_json) as show:
            report = await rebuild(
                store,
                clock=SystemClock(),
                actor=actor,
                reason=reason,
                only=only,
                until=until,
                projections=given,
                jobs=jobs,
                progress=show,
            )
    unchanged = "no row differed" if report.changed else "nothing differed, nothing was written"
    if until is not None:
        unchanged = f"no row differed; kept the log before offset {report.verified.head.next_offset}"
    _rebuild_result(url, report, output, unchanged, until)


async def _refuse_to_cut_what_is_proven(store: "Store", url: str, until: int, output: Output) -> None:
    """Raise `InvalidArgument` where a cut would drop events of a log in which nothing is wrong."""
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.log import LogReader
    from ledgerq.projections.replay import fold_verified

    log = LogReader(store, clock=SystemClock())
    try:
        await log.check_anchor(await store.read_anchor())
        with progress("looking whether it must be cut", quiet=output.as_json) as show:
            proven, _ = await fold_verified(log, progress=show)
    except LedgerError:
        return
    dropped = proven.head.next_offset - until
    if dropped > 0:
        new = rebuild_command(url, f"--into NEW_URL --until {until}")
        raise InvalidArgument(
            f"nothing is wrong with the log of {url}, so it is not cut: {plural(dropped, 'event')} would be lost. "
            f"Leave out --until; a shorter copy is made by: {new}"
        )


async def _rebuild_into(url: str, into: str, actor: str, reason: str, until: int | None, output: Output) -> None:
    from ledgerq.projections.repair.copying import copy_into
    from ledgerq.worker.engine.decisions import operator

    actor, reason = operator(actor, reason)
    refuse_memory(into)
    # Nothing of the new store is made before the old one was found. Its own writer, if there is one, is refused.
    async with reading(url) as reader, opened_store(into, NOT_IN_USE, create=True) as target:
        with progress("copying the log", quiet=output.as_json) as show:
            report = await copy_into(
                reader.store, target, clock=reader.clock, actor=actor, reason=reason, until=until, progress=show
            )
    _rebuild_result(into, report, output, "the log was copied; no row follows from it", until)


def _rebuild_result(location: str, report: "RebuildReport", output: Output, unchanged: str, until: int | None) -> None:
    """Print the report; `unchanged` is the result where no row was written."""
    head = report.verified.head
    if until is not None and head.next_offset < until:
        output.note(
            f"the last commit that ends by offset {until} ends at {head.next_offset}: the log is kept up to there"
        )
    if output.as_json:
        output.json(
            {
                "location": location,
                "projections": list(report.names),
                "changed": report.changed,
                "rows_put": report.rows_put,
                "rows_deleted": report.rows_deleted,
                "jobs": report.jobs,
                "lost_payloads": [lost_payload_json(lost) for lost in report.lost],
                "lost_texts": report.lost_texts,
                "lost_keys": report.lost_keys,
                "secret_is_new": report.is_secret_new,
                "events": report.verified.events,
                "head": {"offset": head.next_offset, "digest": head.digest.hex()},
            }
        )
        return
    output.line(f"log     {report.verified.events} events in {report.verified.batches} commits, proven")
    output.line(f"jobs    {report.jobs}")
    for line in lost_payload_lines(report.lost):
        output.line(f"lost    {line}")
    for what, line in lost_beside(report):
        output.line(f"{what:<8}{line}")
    if report.rows_put + report.rows_deleted:
        result = f"{report.rows_put} rows set, {report.rows_deleted} removed"
    else:
        result = unchanged
    output.line(f"result  {', '.join(report.names)}: {result}")
