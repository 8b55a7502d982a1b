"""Healing of a file store after a power cut: unreadable newest files are set aside, if nothing promised is lost.

SlateDB opens the newest manifest and every log file after it, or nothing. After a power cut one of them may be there by
name only, or name a sorted file that is not on the disk. All that was promised is still there then, in log files and
an older manifest (files/garbage.py sees to that). So, when the newest files can't be opened, each manifest is tried
from the newest to the oldest, with the log files up to the first one that can't be read, in a scratch view of the
store.

The first view in which head, chain and anchor prove that every promised commit is there is what the store becomes: the
files left out of it are moved to `set-aside/TIME/`, with a `report.json` that gives the reasons. Nothing is deleted.
The writer that opens the store puts the fact into the log (`FilesSetAside`). Without such a view nothing is moved.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from slatedb.uniffi import VersionedManifest

from ledgerq.eventlog import keys
from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LedgerError, LogPoisoned, LogRolledBack, RowUnreadable
from ledgerq.eventlog.files.file_checks import (
    check_files,
    numbers_of,
    trusted_files,
    wrong_log_file,
    wrong_sequence,
    wrong_sorted_file,
)
from ledgerq.eventlog.files.garbage import admin_of
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.recovery.scratch_view import scratch_view
from ledgerq.eventlog.recovery.set_aside import SetAside, move_aside
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.runtime.waits import Steps, to_the_end, while_synced
from ledgerq.eventlog.single_writer.hold import Hold
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS
from ledgerq.eventlog.slate.slate_reader import open_slate_reader

__all__ = ["find_set_aside", "heal"]

_MAX_MANIFESTS: Final = 200
# One flush is under way at a time, so a power cut leaves few log files whose data is not on the disk.
_MAX_CUTS: Final = 12
_TRIAL_LIMIT_S: Final = 10.0


async def heal(location: Location, hold: Hold, *, thorough: bool = False, limit_s: float) -> SetAside | None:
    """Set aside what keeps the store from being opened; None when there is nothing of the kind.

    `thorough` is for a store that SlateDB refused although nothing is seen to be wrong with its files. `hold` is held,
    and no other process writes. The examination ends after `limit_s`, half of which is for the search; moving files may
    take any time in which the disk syncs something within `limit_s`. Raises `LogPoisoned` when something promised would
    be missing, or was not found in that time, `StoreUnavailable`, TimeoutError and OSError.
    """
    async with asyncio.timeout(limit_s):
        found = await _what_to_move(location, thorough=thorough, limit_s=limit_s / 2)
    if not found:
        return None
    threads, steps = DaemonThreads("ledgerq-heal"), Steps()
    moving = threads.submit(move_aside, location.folder, found, steps.done)
    threads.shutdown()
    # Also when this is given up: what is moved must not be the next writer's.
    hold.keep_until(moving)
    work = while_synced(asyncio.wrap_future(moving), lambda: steps.count, limit_s=limit_s, location=location.original)
    return await to_the_end(work)


async def _what_to_move(location: Location, *, thorough: bool, limit_s: float) -> dict[str, str] | None:
    problem: LogPoisoned | None = None
    try:
        manifest = await check_files(location, writing=True)
        if manifest is None:
            return None
        doubtful = await asyncio.to_thread(_is_doubtful, location.folder, manifest.replay_after_wal_id)
        if not (thorough or doubtful) and await _lists_fit(location, manifest):
            return None
    except LogPoisoned as error:
        problem = error
    try:
        async with asyncio.timeout(limit_s):
            found = await find_set_aside(location, thorough=thorough)
    except TimeoutError:
        # An older manifest may hold what is missing, and a writer's collection would remove it.
        if problem is not None:
            raise problem from None
        found = None
    # A block of payloads costs its jobs, which will be dead letters, and nothing else.
    if not found and problem is not None and not isinstance(problem, RowUnreadable):
        raise problem
    return found


async def find_set_aside(location: Location, *, thorough: bool = False) -> dict[str, str] | None:
    """The newest files without which the store opens and holds every promised commit, with what is wrong with each.

    None when there is no such way; no files when it is well as it stands. It only looks. Raises OSError.
    """
    admin = admin_of(location)
    left_out: dict[str, str] = {}
    trusted = await trusted_files(location)
    for number in numbers_of(location.folder, "manifest")[:_MAX_MANIFESTS]:
        wrong: str | None
        try:
            manifest = await admin.read_manifest(number)
        except SLATE_ERRORS as error:
            wrong = f"can't be read: {' '.join(str(getattr(error, 'message', error)).split())}"
        else:
            if manifest is None:
                continue
            wrong = await asyncio.to_thread(wrong_sorted_file, location.folder, manifest, trusted)
            if wrong is None:
                files = await _files_without(location, manifest, left_out, thorough=thorough)
                if files is not None:
                    return None if files == "short" else files
                wrong = "what was promised is not in what it names, or it was altered"
        left_out[f"manifest/{number:020d}.manifest"] = wrong
    return await asyncio.to_thread(_before_the_first_commit, location.folder)


async def _files_without(
    location: Location, manifest: VersionedManifest, left_out: dict[str, str], *, thorough: bool
) -> dict[str, str] | Literal["short"] | None:
    """The files to leave out besides the newer manifests so that nothing promised is missing; None if nothing helps.

    "short": all log files that can be read were tried, so no older manifest has what is missing.
    """
    lists = thorough or bool(left_out) or not await _lists_fit(location, manifest)
    beside = await asyncio.to_thread(_lists_and_boundaries, location.folder, manifest.id, lists)
    cuts = await asyncio.to_thread(lambda: list(_cuts(location.folder, manifest.replay_after_wal_id)))
    for cut in cuts:
        files = left_out | beside | cut
        found = await _try(location, files)
        if found == "whole":
            return files
        if found == "short":
            return None if cut is not cuts[0] else "short"
    return None


async def _lists_fit(location: Location, manifest: VersionedManifest) -> bool:
    """Whether the newest list of compactions can be read, and is not that of a later compactor than the manifest knows.

    SlateDB takes such a list for another compactor at work, and each opening for fenced by it.
    """
    numbers = await asyncio.to_thread(numbers_of, location.folder, "compactions")
    if not numbers:
        return True
    try:
        # By its number: SlateDB searches without end for a newest one that a boundary promises.
        newest = await admin_of(location).read_compactions(numbers[0])
    except SLATE_ERRORS:
        return False
    return newest is None or newest.compactor_epoch <= manifest.compactor_epoch


def _lists_and_boundaries(folder: Path, manifest_id: int, lists: bool) -> dict[str, str]:
    """Lists of compactions (work to be done) and boundaries (files removed): no data that was written is in them.

    With `lists` all lists are left out: they go with a manifest that is left out, or one can't be read.
    """
    out: dict[str, str] = {}
    numbers = numbers_of(folder, "compactions")
    wrong = {
        "manifest": _wrong_boundary(folder / "gc" / "manifest.boundary", manifest_id),
        "compactions": _wrong_boundary(folder / "gc" / "compactions.boundary", numbers[0] if numbers else 0),
    }
    if lists or wrong["compactions"]:
        # SlateDB begins a new list where there is none, and waits for ever for one that its boundary promises.
        out = {f"compactions/{number:020d}.compactions": "can't be read with this manifest" for number in numbers}
        if (folder / "gc" / "compactions.boundary").exists():
            wrong["compactions"] = wrong["compactions"] or "goes with the lists"
    return out | {f"gc/{kind}.boundary": what for kind, what in wrong.items() if what}


def _wrong_boundary(boundary: Path, newest: int) -> str:
    if not boundary.is_file():
        return ""
    with boundary.open("rb") as file:
        text = file.read(21)
    if not text.isdigit():
        return "can't be read"
    return "goes beyond what is there" if int(text) >= newest else ""


def _cuts(folder: Path, replayed: int) -> Iterator[dict[str, str]]:
    """Ways to end the log, as what is left out of it: at the first file that can't be read, or at an empty one before.

    An empty log file fenced a writer, or has lost its data: only the chain can decide which.
    """
    found = [number for number in reversed(numbers_of(folder, "wal")) if number > replayed]
    sound: list[int] = []
    wrong = ""
    for number in found:
        if number != replayed + 1 + len(sound):
            wrong = "a log file before it is missing"
        else:
            wrong = wrong_log_file(folder / "wal" / f"{number:020d}.sst")
        if wrong:
            break
        sound.append(number)
    rest = dict.fromkeys(found[len(sound) :], "comes after one that is left out")
    if rest:
        rest[found[len(sound)]] = wrong
    yield _named(rest)
    empty = [number for number in sound if (folder / "wal" / f"{number:020d}.sst").stat().st_size == 0]
    for cut in empty[: -_MAX_CUTS - 1 : -1]:
        after = dict.fromkeys((number for number in found if number > cut), "comes after one that is left out")
        yield _named({cut: "with it the log has a gap", **after})


def _named(numbers: dict[int, str]) -> dict[str, str]:
    return {f"wal/{number:020d}.sst": what for number, what in sorted(numbers.items(), reverse=True)}


async def _try(location: Location, left_out: dict[str, str]) -> Literal["whole", "short", "broken"]:
    """The state that the store would have without these files, as head, chain and anchor prove it.

    Whole: all that was promised is there. Short: all is well, but the end is missing.

    Before the first commit is anchored nothing was promised. In the midst of a rebuild the log may go on after its
    head, and what the rebuild has not done yet it will do again.
    """
    view = scratch_view(location, leave_out=left_out)
    try:
        place = await to_the_end(asyncio.to_thread(view.__enter__))
        async with asyncio.timeout(_TRIAL_LIMIT_S):
            if await wrong_sequence(place) is not None:
                return "broken"
            store = await open_slate_reader(place, pinned=True)
            try:
                log = LogReader(store, clock=SystemClock())
                anchor, head = await store.read_anchor(), await log.head()
                await log.check_anchor(anchor)
                if await store.get(keys.REBUILD_KEY) is None:
                    await log.check_tail(head)
            finally:
                await store.close()
    except LogRolledBack as error:
        return "short" if error.head_offset <= error.anchored_offset else "broken"
    except (LedgerError, TimeoutError, *SLATE_ERRORS):
        return "broken"
    finally:
        await asyncio.to_thread(view.__exit__, None, None, None)
    if anchor is None:
        return "whole" if await asyncio.to_thread(_is_unmade, location.folder) else "short"
    # A log file is synced before its anchor is written, so no power cut takes both: where no commit follows the anchor
    # that can be read, the other one may have named what the log file held.
    is_cut = any(name.startswith("wal/") for name in left_out) and head.next_offset <= anchor.next_offset
    in_doubt = is_cut and await asyncio.to_thread(FileAnchor(location.folder, fsync=False).is_in_doubt)
    return "short" if in_doubt else "whole"


def _is_doubtful(folder: Path, replayed: int) -> bool:
    """Whether a log file that is to be read is empty and another follows: it fenced a writer, or has lost its data."""
    numbers = [number for number in numbers_of(folder, "wal") if number > replayed]
    sizes = [(folder / "wal" / f"{number:020d}.sst").stat().st_size for number in numbers]
    while sizes and sizes[0] == 0:
        del sizes[0]
    return 0 in sizes


def _before_the_first_commit(folder: Path) -> dict[str, str] | None:
    """All files of a store in which nothing was promised yet."""
    if not _is_unmade(folder):
        return None
    paths = [path for kind in ("manifest", "wal", "compactions", "gc") for path in (folder / kind).glob("*")]
    return {f"{path.parent.name}/{path.name}": "belongs to a store that was not made yet" for path in paths}


def _is_unmade(folder: Path) -> bool:
    """Whether no commit can have been reported: there is no anchor, no sorted file, and no second log file."""
    if FileAnchor(folder, fsync=False).read() is not None or any((folder / "compacted").glob("*.sst")):
        return False
    return sum(path.stat().st_size > 0 for path in (folder / "wal").glob("*.sst")) <= 1
