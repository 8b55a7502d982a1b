"""A store whose files may be damaged, as a folder of files to be read one by one: nothing is opened, nothing written.

Objects of a bucket are copied to a temporary folder first: that takes one request and their size on the disk for each.
"""

import asyncio
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from slatedb.uniffi import VersionedManifest

from ledgerq.eventlog.anchor import FileAnchor, decode_slot
from ledgerq.eventlog.errors import InvalidArgument, StoreNotFound, StoreUnavailable
from ledgerq.eventlog.files.file_checks import numbers_of
from ledgerq.eventlog.files.garbage import admin_of
from ledgerq.eventlog.locations import Location, parse_location
from ledgerq.eventlog.log import Progress
from ledgerq.eventlog.recovery.store_files import FileFault
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.store import Anchor

__all__ = ["DamagedStore", "damaged_store"]

_OBJECT_LIMIT_S: Final = 300.0
_MANIFEST_LIMIT_S: Final = 10.0
_MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
_MAX_MANIFESTS: Final = 200


class DamagedStore(NamedTuple):
    """The folder with a store's files, which are only read, and what is known of them before they are.

    `anchor_lags`: later commits than the anchor's may have been made; `is_anchor_in_doubt`: the one of its two
    slots that can't be read may name a later one. `manifest`: the number of the newest one that can be read, None
    if there is none; `replayed_from`: the log files after this number are not in sorted files by it, None unless it
    is the newest that is there. `faults`: manifests that can't be read, and files that are missing though the
    newest needs them.
    """

    location: str
    folder: Path
    anchor: Anchor | None
    anchor_lags: bool
    is_anchor_in_doubt: bool
    manifest: int | None
    replayed_from: int | None
    faults: list[FileFault]


@asynccontextmanager
async def damaged_store(
    location: Location,
    *,
    progress: Progress | None = None,
    quietly: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> AsyncIterator[DamagedStore]:
    """The files of the store at `location`; a copy of them, as long as this lasts, when they are objects.

    `quietly` is entered while SlateDB reads manifests: of a damaged one it may print a panic before it gives an error.
    Raises `StoreNotFound` when there are none, `StoreUnavailable`, `InvalidArgument` for a store in memory.
    """
    if location.is_memory:
        raise InvalidArgument(f"{location.original} holds no files: give a folder or a bucket")
    if location.is_file:
        if not await asyncio.to_thread(location.folder.is_dir):
            raise StoreNotFound(f"there is no store at {location.original}: check the URL")
        anchor = await asyncio.to_thread(_file_anchor, location)
        yield await _described(location, location, anchor, quietly)
        return
    with tempfile.TemporaryDirectory(prefix="ledgerq-objects-") as name:
        anchor = await _copy(location, Path(name), progress)
        yield await _described(location, parse_location(name), anchor, quietly)


def _file_anchor(location: Location) -> Anchor | None:
    try:
        return FileAnchor(location.folder, fsync=False).read()
    except OSError:
        return None  # the same as a damaged one


def _is_in_doubt(location: Location) -> bool:
    try:
        return FileAnchor(location.folder, fsync=False).is_in_doubt()
    except OSError:
        return False  # no anchor at all


async def _copy(location: Location, folder: Path, progress: Progress | None) -> Anchor | None:
    """Copy all objects of a store; returns its anchor."""
    objects = Objects(location, limit_s=_OBJECT_LIMIT_S)
    names = [name for name in await objects.names() if ".." not in PurePosixPath(name).parts]
    if not names:
        raise StoreNotFound(f"there is no store at {location.original}: check the URL")
    anchor = None
    for number, name in enumerate(names):
        content = await objects.get(name)
        if content is None:
            continue
        if name == "anchor":
            slot = decode_slot(content)
            anchor = None if slot is None else slot[1]
        try:
            await asyncio.to_thread(_write, folder / name, content)
        except OSError as error:
            raise StoreUnavailable(
                f"{name} of {location.original} can't be copied to {folder} ({error}): the copy takes as much room as "
                "the store; set TMPDIR to a folder that has it"
            ) from error
        if progress is not None:
            progress(number + 1, len(names))
    return anchor


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


async def _described(
    location: Location, scratch: Location, anchor: Anchor | None, quietly: Callable[[], AbstractContextManager[None]]
) -> DamagedStore:
    with quietly():
        manifest, faults = await _newest_manifest(scratch)
    number = None if manifest is None else manifest.id
    # An older manifest needs files that were rightly removed since.
    replayed_from = None if manifest is None or faults else manifest.replay_after_wal_id
    if manifest is not None and not faults:
        faults += await asyncio.to_thread(_missing, scratch.folder, manifest)
    lags, in_doubt = not location.is_file, await asyncio.to_thread(_is_in_doubt, scratch)
    return DamagedStore(location.original, scratch.folder, anchor, lags, in_doubt, number, replayed_from, faults)


async def _newest_manifest(scratch: Location) -> tuple[VersionedManifest | None, list[FileFault]]:
    """The newest manifest that can be read, and the faults of those after it."""
    faults: list[FileFault] = []
    admin = admin_of(scratch)
    for number in (await asyncio.to_thread(numbers_of, scratch.folder, "manifest"))[:_MAX_MANIFESTS]:
        name = f"manifest/{number:020d}.manifest"
        try:
            status = await asyncio.to_thread((scratch.folder / name).stat)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_MANIFEST_BYTES:
                faults.append(FileFault(name, ("it is no regular file of a manifest's size",)))
                continue
            async with asyncio.timeout(_MANIFEST_LIMIT_S):
                manifest = await admin.read_manifest(number)
        except (OSError, TimeoutError, *SLATE_ERRORS) as error:
            message = " ".join(str(getattr(error, "message", error)).split())
            faults.append(FileFault(name, (f"it can't be read: {message}",)))
            continue
        if manifest is not None:
            return manifest, faults
    return None, faults


def _missing(folder: Path, manifest: VersionedManifest) -> list[FileFault]:
    """The files that a manifest names, or that must have been written after it, and that are not there."""
    views = [*manifest.l0, *(view for run in manifest.compacted for view in run.sst_views)]
    named = [f"compacted/{view.sst.id.value}.sst" for view in views]
    found = set(numbers_of(folder, "wal"))
    last = max([manifest.next_wal_sst_id - 1, *found])
    # The number of a manifest that was altered may be any at all.
    first = max(manifest.replay_after_wal_id + 1, last - 100_000)
    named += [f"wal/{number:020d}.sst" for number in range(first, last + 1) if number not in found]
    what = f"it is missing, and manifest/{manifest.id:020d}.manifest needs it"
    return [FileFault(name, (what,)) for name in dict.fromkeys(named) if not (folder / name).exists()]
