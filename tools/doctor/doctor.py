"""`ledgerq doctor URL`: checks whether a location can hold a store, safely and fast, and whether the one there is well.

Each check reports what it measured and what to do. The checks on a bucket (or folder) are in storage_checks.py, their
requests in storage_probe.py.
"""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ledgerq.eventlog.errors import LedgerError, LogPoisoned, LogRolledBack, NotRebuilt, StoreNotFound, StoreUnavailable
from ledgerq.tools.console.arguments import AsJson, Url
from ledgerq.tools.console.opening import execute, last_writer, reading, refuse_memory
from ledgerq.tools.console.output import Output, local_time

if TYPE_CHECKING:
    from ledgerq.eventlog.locations import Location
    from ledgerq.eventlog.log import LogReader
    from ledgerq.tools.doctor.storage_checks import Check

__all__ = ["diagnose", "doctor"]

# The writer may be another machine, whose clock is a little ahead.
_CLOCK_SLACK_MS: Final = 60_000
_TRIAL_LIMIT_S: Final = 60.0


def doctor(url: Url, as_json: AsJson = False) -> None:
    """Check a store and its location.

    Can a store live there, safely and fast? How is the one that is there? This writes a few small files or objects of
    its own and removes them; it fences no writer. Exit code 1: a check failed.
    """
    execute(_doctor(url, Output(as_json=as_json)))


async def _doctor(url: str, output: Output) -> int:
    checks = await diagnose(url)
    failed = sum(check.status == "fail" for check in checks)
    try:
        if output.as_json:
            rows = [check._asdict() for check in checks]
            output.json({"location": url, "healthy": not failed, "checks": rows})
        else:
            output.table(
                ("", "check", "measured", "what to do"),
                [[check.status, check.name, check.measured, check.advice or ""] for check in checks],
            )
            output.line(f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    except BrokenPipeError:
        pass  # the reader has seen enough, and the exit code still counts
    return 1 if failed else 0


async def diagnose(url: str) -> "list[Check]":
    """All checks that apply to `url`, in order. Raises `InvalidArgument` for a URL that names no location."""
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.eventlog.slate.preflight import check_writable
    from ledgerq.tools.doctor.storage_checks import Check, check_folder, check_storage

    refuse_memory(url)
    location = parse_location(url)
    is_new = location.is_file and not location.folder.is_dir()
    try:
        try:
            await check_writable(location, create=True)
        except StoreUnavailable as error:
            cause, _, advice = str(error).partition("; ")
            checks = [Check("reachable and writable", "fail", cause, advice or "see the message")]
            # A bucket that does not answer would only not answer again.
            return checks + (await _check_store(location) if location.is_file and not is_new else [])
        checks = [Check("reachable and writable", "ok", "a small write and its removal succeeded", None)]
        if location.is_file:
            checks += check_folder(location.folder)
        checks += await check_storage(location)
        return checks + await _check_store(location)
    finally:
        if is_new and location.folder.is_dir() and not any(location.folder.iterdir()):
            location.folder.rmdir()


async def _check_store(location: "Location") -> "list[Check]":
    from ledgerq.tools.doctor.storage_checks import Check

    try:
        async with reading(location.original) as log:
            checks = [await _check_head(log), await _check_anchor(location, log), await _check_writer(location, log)]
    except StoreNotFound:
        return [Check("ledgerq store", "ok", "there is none yet; the first enqueue makes it", None)]
    except LedgerError as error:
        checks = [Check("ledgerq store", "fail", str(error), await _remedy(location, error))]
    return checks + (await _check_set_aside(location) if location.is_file else [])


async def _remedy(location: "Location", error: LedgerError) -> str:
    """The remedy for a damaged store: whether opening mends it, tried on a view without what would be set aside."""
    from ledgerq.eventlog.recovery.healing import find_set_aside

    if location.is_file and isinstance(error, LogPoisoned):
        async with asyncio.timeout(_TRIAL_LIMIT_S):
            files = await find_set_aside(location)
        if files:
            return (
                f"start the writer: it sets {len(files)} files aside ({', '.join(list(files)[:3])}...), which nothing "
                "that was promised depends on, and opens"
            )
    return "see the message"


async def _check_set_aside(location: "Location") -> "list[Check]":
    from ledgerq.eventlog.recovery.set_aside import read_set_aside
    from ledgerq.tools.doctor.storage_checks import Check

    return [
        Check(
            "set aside",
            "ok",
            f"{len(moved.files)} files that kept the store from being opened are in {moved.folder}",
            "nothing needs them: remove the folder once you know what happened",
        )
        for moved in await asyncio.to_thread(read_set_aside, location.folder)
    ]


async def _check_head(log: "LogReader") -> "Check":
    from ledgerq.eventlog import keys
    from ledgerq.tools.doctor.storage_checks import Check

    version = await log.store.get(keys.FORMAT_KEY)
    head = await log.head()
    when = f", the last of {local_time(head.time_ms)}" if head.next_offset else ""
    measured = f"format {(version or b'?').decode()}, {head.next_offset} events{when}"
    if await log.store.get(keys.REBUILD_KEY) is not None:
        error = NotRebuilt("a rebuild is under way or was interrupted")
        return Check("ledgerq store", "fail", f"{measured}; {error}", "wait for it, or run rebuild-projections again")
    if (version or b"").isdigit() and int(version or b"0") < keys.FORMAT_VERSION:
        advice = (
            f"run rebuild-projections, which brings it to format {keys.FORMAT_VERSION}: no version writes it before"
        )
        return Check("ledgerq store", "warn", measured, advice)
    ahead_ms = head.time_ms - log.clock.now_ms()
    if ahead_ms > _CLOCK_SLACK_MS:
        measured = f"{measured}, which is {timedelta(seconds=ahead_ms // 1000)} after this machine's clock"
        advice = (
            "set the clock right, wait until it has caught up, or copy the store: rebuild-projections URL --into NEW"
        )
        return Check("ledgerq store", "warn", measured, advice)
    return Check("ledgerq store", "ok", measured, None)


async def _check_anchor(location: "Location", log: "LogReader") -> "Check":
    from ledgerq.tools.doctor.storage_checks import Check

    anchor = await log.store.read_anchor()
    if anchor is None:
        advice = "was the file or object `anchor` removed? The next writer makes it again; audit first"
        return Check("anchor", "warn", "there is none", advice)
    try:
        await log.check_anchor(anchor)
    except LogRolledBack as error:
        return Check("anchor", "fail", str(error), "restore the lost files, or follow the message")
    measured = f"{anchor.next_offset} events were durable, and the log holds them"
    is_end_known = not location.is_file or (await log.head()).next_offset > anchor.next_offset
    if not is_end_known and await asyncio.to_thread(_is_anchor_in_doubt, location.folder):
        advice = "one of its two slots was damaged; the next commits write both anew. Audit, and look after the disk"
        return Check("anchor", "warn", f"{measured}; a slot that can't be read may have named more", advice)
    return Check("anchor", "ok", measured, None)


def _is_anchor_in_doubt(folder: Path) -> bool:
    """Whether a slot can't be read, also when it is read again: a writer may be writing it."""
    from ledgerq.eventlog.anchor import FileAnchor

    anchor = FileAnchor(folder, fsync=False)
    try:
        return anchor.is_in_doubt() and anchor.is_in_doubt()
    except OSError:
        return False  # the file can't be read at all, of which the other checks tell


async def _check_writer(location: "Location", log: "LogReader") -> "Check":
    from ledgerq.eventlog.single_writer.hold import current_writer
    from ledgerq.tools.doctor.storage_checks import Check

    last = await last_writer(log)
    measured = "none yet" if last is None else last.describe()
    try:
        writing = await current_writer(location, log.clock)
    except StoreUnavailable as error:
        return Check("last writer", "warn", f"{measured}; it may be alive or not: {error}", "see the message")
    if writing is not None:
        since = "" if writing.since_ms is None else f" since {local_time(writing.since_ms)}"
        who = "a process" if writing.pid is None else f"process {writing.pid} on host {writing.host}"
        return Check("last writer", "ok", f"{who} writes it{since}", None)
    if last is not None and not last.is_closed:
        advice = "it crashed, or could not reach the store at its end: just start it again, nothing else is needed"
        return Check("last writer", "warn", f"none now; the last was {measured}", advice)
    return Check("last writer", "ok", "none now" if last is None else f"none now; the last was {measured}", None)
