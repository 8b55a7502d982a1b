"""Checks of SlateDB's files against its manifest before it opens a store in a folder, so that errors have names.

SlateDB waits without end for bytes that a shortened file has not (an exchanged one looks to it like a shortened one),
and for some files its error is only that something is wrong. Object stores give an object as it was put or not at all,
so there nothing is checked.

A sorted file holds blocks, filter, index, statistics, and its own description, without a gap. The manifest knows where
filter, index and statistics are. The last ten bytes, also of a log file, are the description's position (u64) and the
format's version (u16), big-endian. A log file may be empty: that is how a writer fences another one.
"""

import asyncio
import os
import re
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

from slatedb.uniffi import SsTableInfo, VersionedManifest

from ledgerq.eventlog.errors import LogPoisoned, RowUnreadable
from ledgerq.eventlog.files.fsync import recorded_manifest
from ledgerq.eventlog.files.garbage import admin_of, sorted_files
from ledgerq.eventlog.keys import PAYLOAD_PREFIX, after_prefix
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.sorted_files import COMPRESSED, UNKNOWN_VERSION, damaged_ranges, read_sst
from ledgerq.eventlog.slate.error_mapping import NO_COMPACTIONS, SLATE_ERRORS, salvage_it, translate

__all__ = [
    "check_files",
    "ends_well",
    "numbers_of",
    "trusted_files",
    "wrong_log_file",
    "wrong_sequence",
    "wrong_sorted_file",
]

_T = TypeVar("_T")
_FOOTER: Final = struct.Struct(">QH")
_VERSIONS: Final = (1, 2)
_MAX_CHECKED_BYTES: Final = 256 * 1024 * 1024
_FAR_FUTURE_S: Final = 2**33
_NUMBER: Final = re.compile(rb"-1|[0-9]{1,20}")


async def check_files(location: Location, *, writing: bool) -> VersionedManifest | None:
    """Raise `LogPoisoned` with the name of the file when SlateDB could not open what is there, or would wait for ever.

    A reader alone misses a sorted file that is not there when it reads from it. `RowUnreadable` means that no more is
    wrong than blocks of payloads. Returns the newest manifest; None in a new store. Raises OSError.
    """
    admin = admin_of(location)
    manifest = await _newest(location, "manifest", salvage_it(location.original), admin.read_manifest)
    if writing:
        await _newest(location, "compactions", NO_COMPACTIONS, admin.read_compactions)
    if manifest is None:
        await asyncio.to_thread(_check_new, location)
        return None
    trusted: frozenset[str] | None = None
    if writing:
        wrong = await wrong_sequence(location)
        if wrong is not None:
            raise LogPoisoned(
                f"{location.original}: manifest/{manifest.id:020d}.manifest {wrong}; {salvage_it(location.original)}"
            )
        trusted = await trusted_files(location)
    await asyncio.to_thread(_check_ends, location, manifest, trusted)
    return manifest


async def trusted_files(location: Location) -> frozenset[str]:
    """The sorted files that are known to be on the disk as they were written."""
    number = await asyncio.to_thread(recorded_manifest, location.folder)
    try:
        noted = await admin_of(location).read_manifest(number) if number else None
    except SLATE_ERRORS:
        noted = None
    return frozenset() if noted is None else frozenset(sorted_files(noted))


async def _newest(
    location: Location, kind: str, remedy: str, read: Callable[[int | None], Coroutine[Any, Any, _T | None]]
) -> _T | None:
    """Read the newest manifest, or list of compactions; None in a new store."""
    newest, collected = await asyncio.to_thread(_numbers, location, kind)
    if newest <= collected:
        # SlateDB would search for newer ones without end.
        raise LogPoisoned(
            f"{location.original}: the newest file in {kind}/ is number {newest}, but there was one after "
            f"{collected}, by gc/{kind}.boundary: it is missing, or the boundary was altered; {remedy}"
        )
    try:
        return await read(None) if newest else None
    except SLATE_ERRORS as error:
        translated = translate(error, location.original)
        if not isinstance(translated, LogPoisoned):
            raise translated from error
        message = " ".join(str(getattr(error, "message", error)).split())
        raise LogPoisoned(
            f"{location.original}: {kind}/{newest:020d}.{kind} can't be read ({message}); {remedy}"
        ) from error


def _numbers(location: Location, kind: str) -> tuple[int, int]:
    """The number of the newest file of a kind, and that up to which the garbage collector removed them; 0 and -1."""
    found = numbers_of(location.folder, kind)
    boundary = location.folder / "gc" / f"{kind}.boundary"
    try:
        text = boundary.read_bytes()
    except FileNotFoundError:
        text = b"-1"
    if not _NUMBER.fullmatch(text):
        raise LogPoisoned(
            f"{location.original}: gc/{kind}.boundary can't be read; restore it from a copy, or remove it: it only "
            "holds up to which number files were removed as garbage"
        )
    return found[0] if found else 0, int(text)


def _check_new(location: Location) -> None:
    """Check that a store without a manifest is new: it has no commits to write over, no compactor that fences it."""
    folder = location.folder
    has_log = any(path.stat().st_size for path in (folder / "wal").glob("*.sst"))
    if has_log or (folder / "anchor").exists() or numbers_of(folder, "compactions"):
        raise LogPoisoned(
            f"{location.original}: manifest/ is empty, but there are log files, lists of compactions or an anchor; "
            + salvage_it(location.original)
        )


def numbers_of(folder: Path, kind: str) -> list[int]:
    """The numbers of the manifests, log files or lists of compactions in a store's folder, newest first."""
    suffix = "sst" if kind == "wal" else kind
    return sorted((int(path.stem) for path in folder.glob(f"{kind}/*.{suffix}") if path.stem.isdigit()), reverse=True)


async def wrong_sequence(location: Location) -> str | None:
    """The fault of the sequence numbers that the newest manifest holds, or None.

    They may not lead: SlateDB would open, and could never write a sorted file.
    """
    admin = admin_of(location)
    tracked = await admin.get_sequence_for_timestamp(_FAR_FUTURE_S, False)
    manifest = await admin.read_manifest(None)
    if manifest is None or tracked is None or tracked <= manifest.last_l0_seq:
        return None
    return f"was altered: it holds sequence number {tracked}, and {manifest.last_l0_seq} is its last"


def _check_ends(location: Location, manifest: VersionedManifest, trusted: frozenset[str] | None) -> None:
    wrong = wrong_sorted_file(location.folder, manifest, trusted)
    if wrong is not None:
        remedy = salvage_it(location.original)
        error = (
            RowUnreadable if _costs_payloads_only(location.folder, manifest, trusted or frozenset()) else LogPoisoned
        )
        raise error(f"{location.original}: manifest/{manifest.id:020d}.manifest can't be used: {wrong}; {remedy}")
    for path in sorted(location.folder.glob("wal/*.sst")):
        if path.stem.isdigit() and int(path.stem) > manifest.replay_after_wal_id and not ends_well(path, None):
            raise LogPoisoned(
                f"{location.original}: wal/{path.name} is damaged at its end; {salvage_it(location.original)}"
            )


def wrong_sorted_file(folder: Path, manifest: VersionedManifest, trusted: frozenset[str] | None) -> str | None:
    """The fault of the first sorted file that is not as `manifest` describes it, or None.

    For a writer one that is missing counts too, and checksums of those that are not `trusted`: a power cut may leave
    holes in a file whose end is right. Of these the newest 256 MiB are read. None for a reader. Raises OSError. Blocks.
    """
    left_bytes = _MAX_CHECKED_BYTES
    views = [*manifest.l0, *(view for run in manifest.compacted for view in run.sst_views)]
    for view in sorted(views, key=lambda view: str(view.sst.id.value), reverse=True):
        name = f"compacted/{view.sst.id.value}.sst"
        path = folder / name
        if not path.exists():
            if trusted is not None:
                return f"{name}, which it names, is missing"
        elif not ends_well(path, view.sst.info):
            return f"{name} is not the file that it describes, which was cut short or exchanged, or it was altered"
        elif trusted is not None and path.name not in trusted and left_bytes > 0:
            left_bytes -= path.stat().st_size
            problem = next((part for part in read_sst(path.read_bytes(), ()) if _is_damage(part.problem)), None)
            if problem is not None:
                return f"{name} is damaged (the {problem.kind} at byte {problem.start}: {problem.problem})"
    return None


def wrong_log_file(path: Path) -> str:
    """The fault of a log file, or nothing; an empty one fenced a writer. Raises OSError. Blocks."""
    if not ends_well(path, None):
        return "is damaged at its end"
    data = path.read_bytes()
    problem = next((part for part in read_sst(data, ()) if _is_damage(part.problem)), None) if data else None
    return "" if problem is None else f"is damaged (the {problem.kind} at byte {problem.start}: {problem.problem})"


def _costs_payloads_only(folder: Path, manifest: VersionedManifest, trusted: frozenset[str]) -> bool:
    """Whether blocks of payloads are all that is damaged: each costs its jobs, and the store is well without them."""
    after, left_bytes = after_prefix(PAYLOAD_PREFIX), _MAX_CHECKED_BYTES
    views = [*manifest.l0, *(view for run in manifest.compacted for view in run.sst_views)]
    for view in sorted(views, key=lambda view: str(view.sst.id.value), reverse=True):
        path = folder / f"compacted/{view.sst.id.value}.sst"
        if not (path.exists() and ends_well(path, view.sst.info)):
            return False
        if path.name in trusted or left_bytes <= 0:
            continue
        left_bytes -= path.stat().st_size
        ranges = damaged_ranges(path.read_bytes())
        if ranges is None or not all(first >= PAYLOAD_PREFIX and (stop or after) <= after for first, stop in ranges):
            return False
    return True


def _is_damage(problem: str) -> bool:
    """Whether the bytes themselves are wrong: a block compressed by a setting is one that only SlateDB reads."""
    return bool(problem) and not problem.startswith((COMPRESSED, UNKNOWN_VERSION))


def ends_well(file: Path, info: SsTableInfo | None) -> bool:
    """Whether a file's end matches its description in the manifest, or without one, is possible at all."""
    fd = os.open(file, os.O_RDONLY)
    try:
        size_bytes = os.fstat(fd).st_size
        footer = os.pread(fd, _FOOTER.size, max(0, size_bytes - _FOOTER.size))
    finally:
        os.close(fd)
    if len(footer) < _FOOTER.size:
        return info is None and size_bytes == 0
    described_at, version = _FOOTER.unpack(footer)
    if described_at >= size_bytes or version not in _VERSIONS:
        return False
    if info is None:
        return True
    parts = ((info.filter_offset, info.filter_len), (info.index_offset, info.index_len))
    ends = [offset + length for offset, length in (*parts, (info.stats_offset, info.stats_len))]
    return ends == [info.index_offset, info.stats_offset, described_at]
