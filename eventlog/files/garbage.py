"""Garbage collection of a file store: by SlateDB's rules, held back by what is known to be on the disk.

SlateDB's own garbage collector goes by the newest manifest. After a power cut that manifest, or a sorted file that it
names, may be gone, and then the log files that it replaced are needed. So here everything goes by the newest manifest
that was synced with all its files, and by those after it. The rules are those of SlateDB 0.17's `garbage_collector/`:

- a log file is kept from the manifest's `replay_after_wal_id` on, and where a checkpoint replays it; an empty one is
  kept: it fenced a writer (collecting those can lose acknowledged writes);
- a manifest is kept from that one on, and where a checkpoint names it;
- a sorted file is kept when a kept manifest names it, and when it is newer than the oldest compaction on record or
  the newest level-0 file: then it may be on its way into a manifest;
- of the lists of compactions the newest one is kept.

`gc/KIND.boundary` is advanced before manifests or lists of compactions go, so that a writer that was stopped for long
can't make one of them again (RFC 26). Nothing younger than `gc_age_s` goes.
"""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple

from slatedb.uniffi import (
    Admin,
    AdminBuilder,
    GarbageCollectorDirectoryOptions,
    GarbageCollectorOptions,
    ObjectStore,
    VersionedManifest,
)
from ulid import ULID

from ledgerq.eventlog.files.fsync import FileSync, write_small
from ledgerq.eventlog.locations import Location

__all__ = ["admin_of", "collect", "newest_synced", "sorted_files"]

_NEVER_MS: Final = 10**14


class _Kept(NamedTuple):
    """The files to keep: `replay_from` is the synced manifest's first log file, `ranges` those of checkpoints."""

    manifest_id: int
    manifests: frozenset[int]
    sorted_files: frozenset[str]
    replay_from: int
    ranges: tuple[tuple[int, int], ...]
    cutoff_ms: int


def admin_of(location: Location) -> Admin:
    """SlateDB's administration of the store at `location`."""
    return AdminBuilder(location.database, ObjectStore.resolve(location.root)).build()


def sorted_files(manifest: VersionedManifest) -> set[str]:
    """The names in compacted/ of the sorted files that a manifest names."""
    trees = [(manifest.l0, manifest.compacted), *((part.l0, part.compacted) for part in manifest.segments)]
    views = [view for l0, runs in trees for view in [*l0, *(view for run in runs for view in run.sst_views)]]
    return {f"{view.sst.id.value}.sst" for view in views}


async def newest_synced(admin: Admin, files: FileSync) -> VersionedManifest | None:
    """The newest manifest that is on the disk with every sorted file that it names; None when none is known to be."""
    for number in files.synced_numbers("manifest"):
        manifest = await admin.read_manifest(number)
        if manifest is not None and files.is_synced("compacted", sorted_files(manifest)):
            return manifest
    return None


async def collect(
    location: Location, files: FileSync, *, age_ms: int, now_ms: int, run: Callable[..., "asyncio.Future[None]"]
) -> None:
    """One round; `run` calls a function in a thread. Raises OSError and SlateDB's errors; half a round does no harm."""
    admin = admin_of(location)
    await _drop_expired_checkpoints(admin)
    await run(files.sync_behind)
    # Before the manifests: what a compaction wrote in between is newer than this.
    compactions = await admin.read_compactions(None)
    started_ms = [_time_ms(compaction.id) for compaction in compactions.recent_compactions] if compactions else []
    synced = await newest_synced(admin, files)
    if synced is None:
        return
    kept = await _kept(admin, location.folder, synced, min(now_ms - age_ms, *started_ms) if started_ms else 0)
    lists = files.synced_numbers("compactions")
    await run(_remove, location.folder, kept, lists[0] if lists else 0, now_ms - age_ms)


async def _drop_expired_checkpoints(admin: Admin) -> None:
    """Run a round of SlateDB's own collector for this alone: with an age at which it finds no files old enough."""
    nothing = GarbageCollectorDirectoryOptions(interval_ms=None, min_age_ms=_NEVER_MS, dry_run=True)
    await admin.run_gc_once(GarbageCollectorOptions(manifest_options=nothing))


async def _kept(admin: Admin, folder: Path, synced: VersionedManifest, cutoff_ms: int) -> _Kept:
    later = [number for number in _numbers(folder / "manifest", ".manifest") if number > synced.id]
    newer = [manifest for number in later if (manifest := await admin.read_manifest(number)) is not None]
    named = {checkpoint.manifest_id for manifest in [synced, *newer] for checkpoint in manifest.checkpoints}
    checkpoints = [manifest for number in named if (manifest := await admin.read_manifest(number)) is not None]
    views = [_time_ms(view.sst.id.value) for view in synced.l0]
    last = synced.last_compacted_l0_sst_view_id
    newest_l0_ms = max(views) if views else _time_ms(last) if last else 0
    return _Kept(
        synced.id,
        frozenset({synced.id, *later, *named}),
        frozenset[str]().union(*(sorted_files(manifest) for manifest in [synced, *newer, *checkpoints])),
        synced.replay_after_wal_id,
        tuple((manifest.replay_after_wal_id, manifest.next_wal_sst_id) for manifest in checkpoints),
        min(cutoff_ms, newest_l0_ms),
    )


def _remove(folder: Path, kept: _Kept, newest_list: int, before_ms: int) -> None:
    for wal_id in _numbers(folder / "wal", ".sst"):
        is_replayed = any(start < wal_id < stop for start, stop in kept.ranges)
        if wal_id < kept.replay_from and not is_replayed:
            path = folder / "wal" / f"{wal_id:020d}.sst"
            if _is_older(path, before_ms) and path.stat().st_size:
                path.unlink(missing_ok=True)
    manifests = [number for number in _numbers(folder / "manifest", ".manifest") if number not in kept.manifests]
    _remove_numbered(folder, "manifest", (number for number in manifests if number < kept.manifest_id), before_ms)
    lists = _numbers(folder / "compactions", ".compactions")
    _remove_numbered(folder, "compactions", (number for number in lists if number < newest_list), before_ms)
    for path in (folder / "compacted").iterdir():
        if path.suffix == ".sst" and path.name not in kept.sorted_files and _time_ms(path.stem) < kept.cutoff_ms:
            path.unlink(missing_ok=True)


def _remove_numbered(folder: Path, kind: str, numbers: Iterable[int], before_ms: int) -> None:
    paths = {number: folder / kind / f"{number:020d}.{kind}" for number in numbers}
    old = {number: path for number, path in paths.items() if _is_older(path, before_ms)}
    if not old:
        return
    boundary = folder / "gc" / f"{kind}.boundary"
    if max(old) > _boundary(boundary):
        write_small(boundary, str(max(old)).encode())
    for path in old.values():
        path.unlink(missing_ok=True)


def _boundary(path: Path) -> int:
    try:
        return int(path.read_bytes()[:20])
    except (FileNotFoundError, ValueError):
        return -1


def _is_older(path: Path, before_ms: int) -> bool:
    try:
        return path.stat().st_mtime_ns // 1_000_000 < before_ms
    except FileNotFoundError:
        return False


def _numbers(folder: Path, suffix: str) -> list[int]:
    return sorted(int(path.stem) for path in folder.iterdir() if path.suffix == suffix and path.stem.isdigit())


def _time_ms(name: str) -> int:
    """The time inside the ULID of a sorted file or a compaction; of another name a time that never comes."""
    try:
        return int(ULID.from_str(name).milliseconds)
    except ValueError:
        return _NEVER_MS
