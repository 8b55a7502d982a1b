"""What the last audit found, kept beside the anchor where monitors can see it: "no audit in a day" must be noticed.

An audit reads a pinned view and writes nothing into the store. On request its result is noted outside of SlateDB's
files, as `audit`, a small JSON document: a file in the store's folder, or an object under its prefix. Whoever may write
there can forge it: it is for operators, no proof.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.locations import Location, parse_location
from ledgerq.eventlog.objects import Objects

__all__ = ["AuditNote", "decode_note", "encode_note", "read_note", "write_note"]

_NAME: Final = "audit"
_LIMIT_S: Final = 10.0
_MAX_BYTES: Final = 4096


class AuditNote(NamedTuple):
    """The result of an audit that ended at `time_ms` (ms since the Unix epoch).

    `offset`: the log is proven up to it. `differences`: rows that are not what the log says. `log_intact` is False when
    the log itself could not be verified: then `offset` is the first that is not proven, and nothing was compared.
    """

    time_ms: int
    offset: int
    differences: int
    log_intact: bool
    deep: bool


def encode_note(note: AuditNote) -> bytes:
    """The note as JSON, for people too."""
    return json.dumps(note._asdict(), indent=1).encode() + b"\n"


def decode_note(value: bytes) -> AuditNote | None:
    """The opposite; None for anything malformed, which counts as no audit."""
    try:
        fields = json.loads(value)
        note = AuditNote(**{name: fields[name] for name in AuditNote._fields})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    numbers = (note.time_ms, note.offset, note.differences)
    is_right = all(type(number) is int and number >= 0 for number in numbers) and type(note.log_intact) is bool
    return note if is_right else None


async def read_note(url: str) -> AuditNote | None:
    """The note of the store at `url`; None when there is none, also for a store in memory.

    Raises `StoreUnavailable` when it can't be read.
    """
    location = parse_location(url)
    if location.is_memory:
        return None
    if not location.is_file:
        value = await Objects(location, limit_s=_LIMIT_S).get(_NAME)
    else:
        try:
            value = await asyncio.to_thread(_read, location.folder / _NAME)
        except OSError as error:
            raise StoreUnavailable(f"{url}: the note of its last audit can't be read: {error}") from error
    return None if value is None else decode_note(value)


async def write_note(url: str, note: AuditNote) -> None:
    """Note an audit, in place of the one before. Raises `StoreUnavailable`; does nothing for a store in memory."""
    location: Location = parse_location(url)
    if location.is_memory:
        return
    if not location.is_file:
        await Objects(location, limit_s=_LIMIT_S).put(_NAME, encode_note(note))
        return
    try:
        await asyncio.to_thread(_write, location.folder, encode_note(note))
    except OSError as error:
        raise StoreUnavailable(f"{url}: the audit could not be noted: {error}") from error


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None


def _write(folder: Path, value: bytes) -> None:
    """A reader finds the old note or the new one, never a part."""
    new = folder / f"{_NAME}.new-{os.getpid()}"
    try:
        new.write_bytes(value)
        new.replace(folder / _NAME)
    finally:
        new.unlink(missing_ok=True)
