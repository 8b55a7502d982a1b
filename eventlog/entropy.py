"""Chance as an argument: job ids, payload salts and retry jitter come from an `Entropy` handed to the queue.

A seeded source makes a whole run repeatable; the system's source is for everything else.
"""

import os
import random
from typing import Protocol

from ulid import ULID

from ledgerq.eventlog.errors import InvalidArgument

__all__ = ["Entropy", "SeededEntropy", "SystemEntropy", "job_id_bytes", "job_id_ms", "job_id_text"]

_POOL_BYTES = 8192


class Entropy(Protocol):
    """A source of randomness."""

    def take(self, n_bytes: int) -> bytes:
        """`n_bytes` (at most 64) random bytes."""

    def fraction(self) -> float:
        """A number in [0, 1)."""


class SystemEntropy:
    """The operating system's random source, read in large pieces since a call for each id would dominate its cost."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self, n_bytes: int) -> bytes:
        """`n_bytes` (at most 64) bytes that can't be guessed."""
        at = self._at
        if at + n_bytes > len(self._pool):
            self._pool = os.urandom(_POOL_BYTES)
            at = 0
        self._at = at + n_bytes
        return self._pool[at : at + n_bytes]

    def fraction(self) -> float:
        """A number in [0, 1) with 53 random bits."""
        return (int.from_bytes(self.take(7)) >> 3) / (1 << 53)


class SeededEntropy:
    """The same bytes for the same seed: for tests and simulation, never where ids must not be guessed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def take(self, n_bytes: int) -> bytes:
        """The next `n_bytes` bytes of the seed's sequence."""
        return self._random.randbytes(n_bytes)

    def fraction(self) -> float:
        """The next number of the seed's sequence, in [0, 1)."""
        return self._random.random()


def new_job_id(now_ms: int, entropy: Entropy) -> bytes:
    """A ULID as 16 bytes: 48 bits of milliseconds since the Unix epoch, then 80 random bits (github.com/ulid/spec)."""
    return now_ms.to_bytes(6) + entropy.take(10)


def job_id_text(id: bytes) -> str:
    """The 26 characters of Crockford's base 32 that people see."""
    return str(ULID(id))


def job_id_bytes(text: str) -> bytes:
    """The 16 bytes behind a ULID's text; raises `InvalidArgument` for anything else."""
    try:
        return ULID.from_str(text).bytes
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidArgument(f"{text!r} is not a job id: a ULID of 26 characters, as enqueue returns it") from error


def job_id_ms(id: bytes) -> int:
    """The time inside an id, in ms since the Unix epoch."""
    return int.from_bytes(id[:6])
