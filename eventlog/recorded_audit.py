"""The result of the last audit, kept beside the anchor for monitors: "no audit in a day" must be noticed.

An audit reads a pinned view and writes nothing into the store. On request its result is written outside of SlateDB's
files, as `audit`, a small JSON document: a file in the store's folder, or an object under its prefix. Anyone who may
write there can forge it: it is for operators, no proof.
"""

import asyncio
import json
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.codec import Head, decode_head, encode_head
from ledgerq.eventlog.errors import LogCorrupt, StoreUnavailable
from ledgerq.eventlog.files.odd_files import new_file, read_small
from ledgerq.eventlog.locations import Location, parse_location
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.slate.objects import Objects

__all__ = [
    "AuditStart",
    "RecordedAudit",
    "RecordedAuditReader",
    "decode_recorded_audit",
    "encode_recorded_audit",
    "read_recorded_audit",
    "write_recorded_audit",
]

_NAME: Final = "audit"
_LIMIT_S: Final = 10.0
_MAX_BYTES: Final = 1024 * 1024
_ROWS: Final = ("counters", "schedules", "limits")


class AuditStart(NamedTuple):
    """The state that a clean audit proved, for a later one to start from.

    `head` is the end of the log then, `counters` the stats row of each queue there, `full_ms` when the last audit ended
    that looked at everything (ms since the Unix epoch), `schedules` the row of each schedule, by its name, `limits` the
    row of the limits of each queue.
    """

    head: Head
    counters: dict[str, bytes]
    full_ms: int
    schedules: dict[str, bytes] = {}  # noqa: RUF012 - never changed
    limits: dict[str, bytes] = {}  # noqa: RUF012 - never changed


class RecordedAudit(NamedTuple):
    """The result of an audit that ended at `time_ms` (ms since the Unix epoch).

    `offset`: the log is proven up to it. `differences`: rows that differ from what follows from the log. `log_intact`
    is False when the log itself could not be verified: then `offset` is the first that is not proven, and nothing was
    compared. `start` is None unless all was right, and where there are so many queues that it would not be small.
    """

    time_ms: int
    offset: int
    differences: int
    log_intact: bool
    deep: bool
    start: AuditStart | None = None


def encode_recorded_audit(recorded: RecordedAudit) -> bytes:
    """The result as JSON text, readable for people too."""
    fields = recorded._asdict()
    if recorded.start is not None:
        head, full_ms = recorded.start.head, recorded.start.full_ms
        rows = {name: _as_hex(getattr(recorded.start, name)) for name in _ROWS}
        fields["start"] = {**head._asdict(), "digest": head.digest.hex(), "full_ms": full_ms, **rows}
    value = json.dumps(fields, indent=1).encode() + b"\n"
    return value if len(value) <= _MAX_BYTES else encode_recorded_audit(recorded._replace(start=None))


def _as_hex(rows: dict[str, bytes]) -> dict[str, str]:
    return {name: row.hex() for name, row in rows.items()}


def decode_recorded_audit(value: bytes) -> RecordedAudit | None:
    """The result in such a text; None for anything malformed, which counts as no audit."""
    try:
        fields = json.loads(value)
        names = RecordedAudit._fields[:-1]
        recorded = RecordedAudit(**{name: fields[name] for name in names}, start=_decode_start(fields.get("start")))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, LogCorrupt):
        return None
    numbers = (recorded.time_ms, recorded.offset, recorded.differences)
    is_right = all(type(number) is int and number >= 0 for number in numbers) and type(recorded.log_intact) is bool
    return recorded if is_right else None


def _decode_start(fields: Any) -> AuditStart | None:
    if fields is None:
        return None
    parts = {name: fields[name] for name in Head._fields}
    # Through the codec, which checks it.
    head = decode_head(encode_head(Head(**parts | {"digest": bytes.fromhex(parts["digest"])})))
    # A store that an earlier version audited had no schedules and no limits.
    counters, schedules, limits = (
        {name: bytes.fromhex(row) for name, row in fields.get(kind, {}).items()} for kind in _ROWS
    )
    return AuditStart(head, counters, int(fields["full_ms"]), schedules, limits)


class RecordedAuditReader:
    """Reader of the last audit of a store, for repeated reads: a disk that hangs is not asked a second time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._location = location = parse_location(url)
        stored_alone = location.is_file or location.is_memory
        self._objects = None if stored_alone else Objects(location, limit_s=_LIMIT_S)
        self._reading: Future[bytes | None] | None = None

    async def read(self) -> RecordedAudit | None:
        """The last audit; None when there is none, also for a store in memory.

        Raises `StoreUnavailable` when it can't be read.
        """
        if self._location.is_memory:
            return None
        value = await (self._file() if self._objects is None else self._objects.get(_NAME))
        return None if value is None else decode_recorded_audit(value)

    async def _file(self) -> bytes | None:
        if self._reading is not None and not self._reading.done():
            raise StoreUnavailable(f"{self._url}: the disk has not given the record of the last audit yet")
        # Not one of the loop's threads: a disk that hangs must not keep the process from ending.
        threads = DaemonThreads("ledgerq-audit")
        self._reading = threads.submit(_read, self._location.folder / _NAME)
        threads.shutdown()
        try:
            return await asyncio.wrap_future(self._reading)
        except OSError as error:
            raise StoreUnavailable(f"{self._url}: the record of its last audit can't be read: {error}") from error


async def read_recorded_audit(url: str) -> RecordedAudit | None:
    """Read the last audit of the store at `url` once, as `RecordedAuditReader.read` does."""
    return await RecordedAuditReader(url).read()


async def write_recorded_audit(url: str, recorded: RecordedAudit) -> None:
    """Record an audit in the place of the one before. Raises `StoreUnavailable`; does nothing for a store in memory."""
    location: Location = parse_location(url)
    if location.is_memory:
        return
    if not location.is_file:
        await Objects(location, limit_s=_LIMIT_S).put(_NAME, encode_recorded_audit(recorded))
        return
    try:
        await asyncio.to_thread(_write, location.folder, encode_recorded_audit(recorded))
    except OSError as error:
        raise StoreUnavailable(f"{url}: the audit could not be recorded: {error}") from error


def _read(path: Path) -> bytes | None:
    try:
        return read_small(path, _MAX_BYTES)
    except FileNotFoundError:
        return None


def _write(folder: Path, value: bytes) -> None:
    """Replace the file at once: a reader finds the old one or the new one, never a part."""
    with new_file(folder, f"{_NAME}.new") as (new, fd):
        os.pwrite(fd, value, 0)
        new.replace(folder / _NAME)
