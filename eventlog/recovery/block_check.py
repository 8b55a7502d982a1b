"""A check of every block of every file that a store needs now: SlateDB notices damage only in what it reads.

A payload's block is read when its job is claimed, perhaps in a year, and a filter only for a key that is searched for.
"""

import asyncio
import os
from typing import Final

from slatedb.uniffi import VersionedManifest

from ledgerq.eventlog.errors import LogPoisoned
from ledgerq.eventlog.files.file_checks import numbers_of
from ledgerq.eventlog.files.garbage import admin_of
from ledgerq.eventlog.files.garbage import sorted_files as names_of
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.sorted_files import COMPRESSED
from ledgerq.eventlog.recovery.store_files import FileFault, content_of, parts_of, problem_text
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS, translate
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.preflight import CAUSE_LIMIT_S

__all__ = ["find_damaged_files"]

# No key is in this range: blocks are checked, and their rows are not decoded.
_NOTHING: Final = ((b"", b""),)


async def find_damaged_files(location: Location) -> list[FileFault]:
    """The files of the newest manifest, and the log files after it, that have a part that can't be read.

    It reads all of them. A file that a writer replaced meanwhile is no fault. Raises `LogPoisoned`, `StoreUnavailable`.
    """
    objects = None if location.is_file else Objects(location, limit_s=10 * CAUSE_LIMIT_S)
    manifest = await _manifest(location)
    faults: list[FileFault] = []
    missing: dict[str, FileFault] = {}
    for name in await _names(location, objects, manifest):
        content = await _content(location, objects, name)
        if content is None:
            missing[name] = FileFault(name, ("it is missing",))
            continue
        data, problems = content
        problems += await asyncio.to_thread(_problems, data, name.startswith("wal/"))
        # Before the next one is read: a file may have many megabytes.
        del content, data
        if problems:
            faults.append(FileFault(name, tuple(problems)))
    if missing:
        needed = set(await _names(location, objects, await _manifest(location)))
        faults += [fault for name, fault in missing.items() if name in needed]
    return sorted(faults)


async def _manifest(location: Location) -> VersionedManifest | None:
    try:
        async with asyncio.timeout(CAUSE_LIMIT_S):
            return await admin_of(location).read_manifest(None)
    except TimeoutError as error:
        raise LogPoisoned(f"{location.original}: its newest manifest can't be read") from error
    except SLATE_ERRORS as error:
        raise translate(error, location.original) from error


async def _names(location: Location, objects: Objects | None, manifest: VersionedManifest | None) -> list[str]:
    """The files that a store with this manifest needs."""
    if manifest is None:
        return []
    if objects is None:
        numbers = await asyncio.to_thread(numbers_of, location.folder, "wal")
    else:
        stems = [name[4:-4] for name in await objects.names() if name.startswith("wal/") and name.endswith(".sst")]
        numbers = [int(stem) for stem in stems if stem.isdigit()]
    logs = sorted(number for number in numbers if number > manifest.replay_after_wal_id)
    return [*(f"compacted/{name}" for name in sorted(names_of(manifest))), *(f"wal/{n:020d}.sst" for n in logs)]


async def _content(location: Location, objects: Objects | None, name: str) -> tuple[bytes, list[str]] | None:
    """A file's bytes, and the problem in reading them, if any; None when it is not there."""
    if objects is not None:
        found = await objects.get(name)
        return None if found is None else (found, [])
    try:
        return await asyncio.to_thread(content_of, location.folder / name)
    except FileNotFoundError:
        return None
    except OSError as error:
        return b"", [f"it can't be read: {os.strerror(error.errno or 0)}"]


def _problems(data: bytes, is_log: bool) -> list[str]:
    """The problems of a file, one a line; a compressed one can be checked only by SlateDB."""
    parts = [part for part in parts_of(data, is_log, _NOTHING) if part.problem]
    return [problem_text(part) for part in parts if not part.problem.startswith(COMPRESSED)]
