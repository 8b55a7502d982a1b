"""The bases of all events: their record type, and the types of field that are checked when they are decoded."""

from typing import Annotated

from msgspec import Meta, Struct

__all__ = ["Count", "Digest", "Fact", "Id", "Sealed", "Text"]

Count = Annotated[int, Meta(ge=0)]
"""A number that is counted or added to; decoding refuses one below zero."""

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
"""A ULID's 16 bytes; decoding refuses any other length."""


class Fact(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The base of all events: what no event can hold (a reference to itself) needs no garbage collection."""


Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A BLAKE2b-256; decoding refuses any other length."""


class Sealed(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """The place of a text or a result, which stands beside the log, where it can be deleted: `t/ AT`, and its row.

    `digest` is the BLAKE2b-256 of the row, which holds a random salt too, so nothing about the value can be guessed;
    `size_bytes` is the row's size. `at` is the offset of the event with which it came.
    """

    at: Annotated[int, Meta(ge=0)]
    size_bytes: Annotated[int, Meta(ge=0)]
    digest: Digest

    def __str__(self) -> str:
        """For those who read the log alone."""
        return f"(a text beside the log, with digest {self.digest.hex()[:16]})"


Text = str | Sealed
"""What somebody wrote: beside the log, or in it, where it stood up to format 2. An empty one stands in the log."""
