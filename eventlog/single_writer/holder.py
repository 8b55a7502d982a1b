"""The writer's note, a small JSON document in the file or object `writer`, and the error that names the writer.

The note only informs. Whether the writer is alive is decided by a lock (lock.py) or a lease (lease.py). Unknown fields
are ignored, so that later versions may add some.
"""

import json
import socket
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import StoreInUse
from ledgerq.eventlog.runtime.process import own_identity, own_pid, package_version

__all__ = ["MAX_NOTE_BYTES", "NOTE_NAME", "WriterNote", "decode_note", "in_use", "new_note"]

NOTE_NAME: Final = "writer"
MAX_NOTE_BYTES: Final = 4096
_MAX_HOST_CHARS: Final = 255


class WriterNote(NamedTuple):
    """A writer: its host, its process there, when it opened the store (ms since the Unix epoch) and with what version.

    `identity` is that of its process, which no other one has (see runtime/process.py).
    """

    host: str
    pid: int
    opened_ms: int
    version: str
    identity: str

    def encode(self, **more: int | bool) -> bytes:
        """The note as JSON, with further fields."""
        return json.dumps(self._asdict() | more, separators=(",", ":")).encode() + b"\n"


def new_note(clock: Clock) -> WriterNote:
    """A note of this process."""
    return WriterNote(socket.gethostname(), own_pid(), clock.now_ms(), package_version(), own_identity())


def decode_note(data: bytes) -> tuple[WriterNote, dict[str, Any]] | None:
    """The note and all fields of its document; None when it is none: empty, half written, or damaged."""
    try:
        fields: Any = json.loads(data[:MAX_NOTE_BYTES])
        host, pid, opened_ms = fields["host"], fields["pid"], fields["opened_ms"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(host, str) or type(pid) is not int or type(opened_ms) is not int:
        return None
    # It ends up in messages and on terminals, and anyone who may write the store may have written anything.
    host = "".join(char if char.isprintable() else "?" for char in host[:_MAX_HOST_CHARS])
    version, identity = (str(fields.get(name, "")) for name in ("version", "identity"))
    return WriterNote(host, pid, opened_ms, version, identity), fields


def in_use(location: str, note: WriterNote | None, *, until_ms: int | None = None) -> StoreInUse:
    """The error for a store at `location` that `note` writes; `until_ms`: when its lease ends, if it isn't renewed."""
    if note is None:
        return StoreInUse(location, until_ms=until_ms)
    is_own = bool(note.identity) and note.identity == own_identity()
    return StoreInUse(location, host=note.host, pid=note.pid, since_ms=note.opened_ms, until_ms=until_ms, is_own=is_own)
