"""The payload of a job to be added: an argument, or the standard input."""

import sys
from typing import TYPE_CHECKING, Final

from ledgerq.eventlog.errors import InvalidArgument

if TYPE_CHECKING:
    from ledgerq.worker.engine.large_payloads import Stream

__all__ = ["given_payload"]

_IN_A_ROW_BYTES: Final = 1024 * 1024


def given_payload(text: str) -> "bytes | Stream":
    """The payload that `text` is, or the standard input for `-`; raises `InvalidArgument` where nothing is piped in."""
    if text != "-":
        return text.encode("utf-8", "surrogateescape")
    if sys.stdin.isatty():
        raise InvalidArgument("no payload: give it as an argument, or pipe it into the standard input")
    first = sys.stdin.buffer.read(_IN_A_ROW_BYTES + 1)
    return first if len(first) <= _IN_A_ROW_BYTES else _Piped(first)


class _Piped:
    """A large payload from the standard input, of which the first bytes are read already."""

    def __init__(self, first: bytes) -> None:
        self._first = first

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes."""
        piece, self._first = self._first[:size], self._first[size:]
        return piece or sys.stdin.buffer.read(size)
