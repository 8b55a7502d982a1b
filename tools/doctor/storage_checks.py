"""The doctor's checks on the location itself: the rules that SlateDB's safety rests on, speed, clock, disk."""

import asyncio
import os
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal, NamedTuple

from ledgerq.eventlog.clock import PLAUSIBLE_MS, SystemClock, time_text
from ledgerq.eventlog.files.odd_files import new_file
from ledgerq.eventlog.files.private_folders import readable_by_others
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.redaction import redact_urls
from ledgerq.tools.doctor.storage_probe import PROBE_ERRORS, Probe, open_probe

__all__ = ["Check", "check_folder", "check_storage", "check_rules", "file_system"]

_STEP_LIMIT_S: Final = 30.0
_ROUNDS: Final = 5
_SLOW_PUT_MS: Final = 500.0
_SLOW_LOCAL_PUT_MS: Final = 50.0
_SLOW_FSYNC_MS: Final = 50.0
# S3 gives whole seconds, and refuses requests whose time is off by more than 15 minutes.
_CLOCK_SLACK_MS: Final = 2_000
_CLOCK_LIMIT_MS: Final = 15 * 60 * 1000
_LITTLE_SPACE_BYTES: Final = 1024**3
_NETWORK_TYPES: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "virtiofs")
_MEMORY_TYPES: Final = ("tmpfs", "ramfs", "devtmpfs")
_SET_CLOCK: Final = "set the clock, and keep it set by NTP"
_UNSAFE_STORE: Final = "this store would lose acknowledged jobs: use another service, or a newer version of it"


class Check(NamedTuple):
    """The result of one check: `measured` is what was found, `advice` what to do about it."""

    name: str
    status: Literal["ok", "warn", "fail"]
    measured: str
    advice: str | None


async def check_storage(location: Location) -> list[Check]:
    """Check the location by requests to it, leaving nothing behind."""
    try:
        async with open_probe(location) as probe:
            checks = await check_rules(probe, conditional_update=not location.is_file)
            return [*checks, *await _check_speed(probe, location.is_file)]
    except PROBE_ERRORS as error:
        return [Check("requests", "fail", _cause(error), "check the permissions: reading, writing, listing, deleting")]


async def check_rules(probe: Probe, *, conditional_update: bool) -> list[Check]:
    """Check the rules: one winner of two creations, no overwriting of changes, metadata kept, listings up to date."""
    steps: list[tuple[str, Callable[[Probe], Awaitable[Check]]]] = [("conditional create", _check_create)]
    if conditional_update:
        steps += [("conditional update", _check_update), ("metadata", _check_metadata)]
    steps.append(("read and list after write", _check_listing))
    checks: list[Check] = []
    for name, step in steps:
        try:
            async with asyncio.timeout(_STEP_LIMIT_S):
                checks.append(await step(probe))
        except TimeoutError:
            checks.append(Check(name, "fail", f"no answer within {_STEP_LIMIT_S:g} s", "check the network or the disk"))
        except PROBE_ERRORS as error:
            checks.append(Check(name, "fail", _cause(error), _UNSAFE_STORE))
    return checks


def _cause(error: BaseException) -> str:
    return redact_urls(str(error).partition("\n")[0]) or type(error).__name__


async def _check_create(probe: Probe) -> Check:
    name = "conditional create"
    contents = (b"one", b"two")
    won = await asyncio.gather(*(probe.put_new("create", content) for content in contents))
    late = await probe.put_new("create", b"three")
    kept = await probe.get("create")
    if sum(won) != 1 or late:
        winners = sum(won) + late
        return Check(name, "fail", f"{winners} of 3 writers were answered that they made one new object", _UNSAFE_STORE)
    if kept != contents[won.index(True)]:
        return Check(name, "fail", "the object holds what a refused writer sent", _UNSAFE_STORE)
    return Check(name, "ok", "of 3 writers of one new object, one made it", None)


async def _check_update(probe: Probe) -> Check:
    name = "conditional update"
    first = await probe.put("update", b"first")
    if not await probe.put_over("update", b"second", first):
        return Check(name, "fail", "an update of the version that was just written was refused", _UNSAFE_STORE)
    if await probe.put_over("update", b"third", first) or await probe.get("update") != b"second":
        return Check(name, "fail", "an update of a version that is gone was accepted", _UNSAFE_STORE)
    return Check(name, "ok", "an update of a version that is gone was refused", None)


async def _check_metadata(probe: Probe) -> Check:
    await probe.put("metadata", b"content", mark="marked")
    found = await probe.mark("metadata")
    if found != "marked":
        # SlateDB distinguishes its own retried write from another writer's by it.
        advice = "after a dropped connection a writer may take its own write for another's: use another service"
        return Check("metadata", "warn", f"written 'marked', read back {found!r}", advice)
    return Check("metadata", "ok", "came back as it was written", None)


async def _check_listing(probe: Probe) -> Check:
    name = "read and list after write"
    await probe.put("listing", b"content")
    listed, content = await probe.names(), await probe.get("listing")
    await probe.delete("listing")
    left = "listing" in await probe.names() or await probe.get("listing") is not None
    if content != b"content" or "listing" not in listed:
        return Check(name, "fail", "a new object was not seen at once", _UNSAFE_STORE)
    if left:
        return Check(name, "fail", "a deleted object was still seen", _UNSAFE_STORE)
    return Check(name, "ok", "a new object was seen at once, a deleted one no more", None)


async def _check_speed(probe: Probe, is_file: bool) -> list[Check]:
    put_ms, get_ms, ahead_ms = [], [], []
    async with asyncio.timeout(_STEP_LIMIT_S):
        for number in range(_ROUNDS):
            began_s, wall_ms = time.perf_counter(), time.time() * 1000
            await probe.put(f"speed-{number}", bytes(1000))
            put_ms.append((time.perf_counter() - began_s) * 1000)
            middle_ms = wall_ms + put_ms[-1] / 2
            began_s = time.perf_counter()
            await probe.get(f"speed-{number}")
            get_ms.append((time.perf_counter() - began_s) * 1000)
            ahead_ms.append(await probe.modified_ms(f"speed-{number}") - middle_ms)
    put, get = statistics.median(put_ms), statistics.median(get_ms)
    slow = put > (_SLOW_LOCAL_PUT_MS if is_file else _SLOW_PUT_MS)
    advice = "each commit waits for a write: choose a nearer region, or a faster disk" if slow else None
    speed = Check("latency", "warn" if slow else "ok", f"{put:.1f} ms a write, {get:.1f} ms a read (median)", advice)
    return [speed, _check_clock(statistics.median(ahead_ms))]


def _check_clock(ahead_ms: float) -> Check:
    now_ms = SystemClock().now_ms()
    if now_ms < PLAUSIBLE_MS:
        return Check("clock", "fail", f"this machine's clock shows {time_text(now_ms)}", _SET_CLOCK)
    if abs(ahead_ms) <= _CLOCK_SLACK_MS:
        return Check("clock", "ok", f"within {_CLOCK_SLACK_MS / 1000:g} s of the store's", None)
    where = "behind" if ahead_ms > 0 else "ahead of"
    measured = f"this machine's clock is {abs(ahead_ms) / 1000:.1f} s {where} the store's"
    is_refused = abs(ahead_ms) > _CLOCK_LIMIT_MS
    return Check("clock", "fail" if is_refused else "warn", measured, _SET_CLOCK)


def check_folder(folder: Path) -> list[Check]:
    """Check the folder of a file store: file system, free space, permissions, the cost of making it durable."""
    return [_check_file_system(folder), _check_space(folder), _check_permissions(folder), _check_fsync(folder)]


def _check_file_system(folder: Path) -> Check:
    kind = file_system(folder)
    if kind in _MEMORY_TYPES:
        return Check("file system", "warn", f"{kind}, which is gone after a restart", "choose a folder on a disk")
    if kind in _NETWORK_TYPES or kind.startswith("fuse"):
        advice = "network file systems may break rename or fsync: prefer a local disk, or an object store"
        return Check("file system", "warn", kind, advice)
    return Check("file system", "ok", kind, None)


def file_system(folder: Path, mounts: str = "/proc/self/mountinfo") -> str:
    """The type of the file system that holds `folder`, or "unknown"."""
    try:
        lines = Path(mounts).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return "unknown"
    real = str(folder.resolve())
    found, depth = "unknown", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        # Of several mounts on one point the last one counts.
        if (real == point or real.startswith(point.rstrip("/") + "/")) and len(point) >= depth:
            found, depth = after.split()[0], len(point)
    return found


def _check_space(folder: Path) -> Check:
    free_bytes = shutil.disk_usage(folder).free
    text = f"{free_bytes / 1024**3:.1f} GiB are free"
    if free_bytes < _LITTLE_SPACE_BYTES:
        return Check("free space", "warn", text, "a full disk stops the queue: free some space")
    return Check("free space", "ok", text, None)


def _check_permissions(folder: Path) -> Check:
    stat = folder.stat()
    measured = f"mode {stat.st_mode & 0o7777:04o}, owner {stat.st_uid}, this user {os.geteuid()}"
    inner = [folder, *(path for path in (folder / name for name in ("manifest", "wal", "compacted")) if path.exists())]
    closed = [path.name for path in inner if not os.access(path, os.R_OK | os.W_OK | os.X_OK)]
    if closed:
        return Check("permissions", "fail", f"{measured}; no access to {', '.join(closed)}", "change owner or mode")
    if stat.st_mode & 0o002 and not stat.st_mode & 0o1000:
        return Check("permissions", "warn", f"{measured}; every user may change it", "chmod o-w the folder")
    if readable_by_others(folder):
        advice = "if payloads are confidential: chmod -R o-rwx the folder"
        return Check("permissions", "warn", f"{measured}; every user may look into it", advice)
    return Check("permissions", "ok", measured, None)


def _check_fsync(folder: Path) -> Check:
    costs_ms = []
    try:
        with new_file(folder, ".ledgerq-doctor-fsync") as (_, fd):
            for number in range(_ROUNDS):
                os.pwrite(fd, bytes(4096), number * 4096)
                began_s = time.perf_counter()
                os.fsync(fd)
                costs_ms.append((time.perf_counter() - began_s) * 1000)
    except OSError as error:
        return Check("fsync", "fail", error.strerror or str(error), "check the disk: nothing here is safe")
    cost_ms = statistics.median(costs_ms)
    slow = cost_ms > _SLOW_FSYNC_MS
    advice = "each commit waits for it: use a faster disk" if slow else None
    return Check("fsync", "warn" if slow else "ok", f"{cost_ms:.2f} ms (median)", advice)
