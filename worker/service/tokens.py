"""Tokens: who may do what. A file has their SHA-256, never the tokens themselves.

[[token]]
name = "mailer"                      # the actor of what it changes
sha256 = "9f86d081884c7d65..."       # of the token's text
scopes = ["enqueue", "work"]
queues = ["mail"]                    # queues whose names begin so; left out: all
"""

import hashlib
import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.remote.service_errors import NotAllowed

__all__ = ["ANYONE", "SCOPES", "Caller", "is_loopback", "load_tokens"]

SCOPES: Final = ("enqueue", "work", "operate", "read", "payload")
_MAX_FILE_BYTES: Final = 1024 * 1024


class Caller(NamedTuple):
    """A caller: the name of its token, what it may do, and the beginnings of the names of its queues (None: all)."""

    name: str
    scopes: frozenset[str]
    prefixes: tuple[str, ...] | None = None

    def sees(self, queue: str) -> bool:
        """Whether its token is for this queue."""
        return self.prefixes is None or queue.startswith(self.prefixes)

    def allow(self, scope: str, queue: str = "") -> None:
        """Raise `NotAllowed` when it lacks the scope, or it is not for this queue (empty: none in particular)."""
        if scope and scope not in self.scopes:
            raise NotAllowed(f"the token {self.name!r} lacks the scope {scope}")
        if queue and not self.sees(queue):
            raise NotAllowed(f"the token {self.name!r} is not for the queue {queue!r}")


ANYONE: Final = Caller("", frozenset(SCOPES))
"""The caller of a service without tokens, which this machine alone can reach."""


def is_loopback(host: str) -> bool:
    """Whether this name or address of a host is that of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_tokens(path: Path) -> dict[bytes, Caller]:
    """The callers of a file, by the digests of their tokens; raises `InvalidArgument` for what is wrong with it."""
    try:
        with path.open("rb") as file:
            value = file.read(_MAX_FILE_BYTES + 1)
        if len(value) > _MAX_FILE_BYTES:
            raise InvalidArgument(f"{path} has more than {_MAX_FILE_BYTES} bytes: it is no file of tokens")
        table = tomllib.loads(value.decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no TOML"  # of what stands in it nothing is shown
        raise InvalidArgument(f"the tokens in {path} can't be read: {reason}") from None
    entries = table.get("token")
    if table.keys() != {"token"} or not isinstance(entries, list) or not entries:
        raise InvalidArgument(f"{path} has [[token]] tables, at least one, and nothing else")
    callers: dict[bytes, Caller] = {}
    for number, entry in enumerate(entries, start=1):
        digest, caller = _caller(f"{path}, token {number}", entry)
        if digest in callers or any(caller.name == other.name for other in callers.values()):
            raise InvalidArgument(f"{path}, token {number}: another one has the same name or the same sha256")
        callers[digest] = caller
    return callers


def _caller(where: str, entry: Mapping[str, Any]) -> tuple[bytes, Caller]:
    if not isinstance(entry, dict) or not {"name", "sha256", "scopes"} <= entry.keys() <= _FIELDS:
        raise InvalidArgument(f"{where}: it has name, sha256 and scopes, perhaps queues, and nothing else")
    name, scopes, queues = entry["name"], entry["scopes"], entry.get("queues")
    if not isinstance(name, str) or not 1 <= len(name) <= 255 or not name.isprintable():
        raise InvalidArgument(f"{where}: name is text of 1 to 255 characters that can be printed")
    if not isinstance(scopes, list) or not scopes or not all(scope in SCOPES for scope in scopes):
        raise InvalidArgument(f"{where}: scopes are a list of {', '.join(SCOPES)}")
    if queues is not None and (not isinstance(queues, list) or not all(q and isinstance(q, str) for q in queues)):
        raise InvalidArgument(f"{where}: queues are a list of beginnings of names")
    try:
        digest = bytes.fromhex(entry["sha256"])
    except (ValueError, TypeError):
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise InvalidArgument(f"{where}: sha256 is that of the token's text, in 64 hexadecimal digits")
    return digest, Caller(name, frozenset(scopes), None if queues is None else tuple(queues))


_FIELDS: Final = frozenset({"name", "sha256", "scopes", "queues"})
