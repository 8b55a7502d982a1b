"""The process that holds a store, as the small JSON document `writer` names it, and the error that names it.

The document only informs. Whether the writer is alive is decided by a lock (lock.py) or a lease (lease.py). Unknown
fields are ignored, so that later versions may add some.
"""

import json
import socket
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import StoreInUse
from ledgerq.eventlog.runtime.process import own_identity, own_pid, package_version

__all__ = ["MAX_HOLDER_BYTES", "HOLDER_NAME", "Holder", "decode_holder", "in_use", "new_holder"]

HOLDER_NAME: Final = "writer"
MAX_HOLDER_BYTES: Final = 4096
_MAX_HOST_CHARS: Final = 255


class Holder(NamedTuple):
    """A writer: its host, its process there, when it opened the store (ms since the Unix epoch) and with what version.

    `identity` is that of its process, which no other one has (see runtime/process.py). `shares`: it serves the store to
    other processes of this machine (worker/sharing).
    """

    host: str
    pid: int
    opened_ms: int
    version: str
    identity: str
    shares: bool = False

    def encode(self, **more: int | bool) -> bytes:
        """Its document: JSON, with further fields."""
        return json.dumps(self._asdict() | more, separators=(",", ":")).encode() + b"\n"


def new_holder(clock: Clock, *, shares: bool = False) -> Holder:
    """This process, from now on."""
    return Holder(socket.gethostname(), own_pid(), clock.now_ms(), package_version(), own_identity(), shares)


def decode_holder(data: bytes) -> tuple[Holder, dict[str, Any]] | None:
    """The holder and all fields of its document; None when it is none: empty, half written, or damaged."""
    try:
        fields: Any = json.loads(data[:MAX_HOLDER_BYTES])
        host, pid, opened_ms = fields["host"], fields["pid"], fields["opened_ms"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(host, str) or type(pid) is not int or type(opened_ms) is not int:
        return None
    # It ends up in messages and on terminals, and anyone who may write the store may have written anything.
    host = "".join(char if char.isprintable() else "?" for char in host[:_MAX_HOST_CHARS])
    version, identity = (str(fields.get(name, "")) for name in ("version", "identity"))
    return Holder(host, pid, opened_ms, version, identity, fields.get("shares") is True), fields


def in_use(location: str, holder: Holder | None, *, until_ms: int | None = None) -> StoreInUse:
    """The error for a store at `location` that `holder` writes; `until_ms`: when its lease ends if not renewed."""
    if holder is None:
        return StoreInUse(location, until_ms=until_ms)
    is_own = bool(holder.identity) and holder.identity == own_identity()
    return StoreInUse(
        location,
        host=holder.host,
        pid=holder.pid,
        since_ms=holder.opened_ms,
        until_ms=until_ms,
        is_own=is_own,
        shares=holder.shares,
    )
