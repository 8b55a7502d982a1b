"""The further terms of a job, packed in its enqueued event: the task that it is for, and how its arguments are written.

A job without any has none, which costs a byte. New terms are further fields with defaults, and one that has its default
at the end is not written; a version that doesn't know a field refuses the terms.
"""

from functools import lru_cache
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct
from msgspec.msgpack import Decoder
from msgspec.structs import astuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import FormatTooNew

__all__ = ["JSON", "Terms", "decode_terms", "encode_terms"]

JSON: Final = 0
"""The content type of arguments and results that are JSON."""


class Terms(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a job is to be done by: `task` is the name of one, empty for none; `content_type` that of its payload.

    No try begins from `expires_ms` on; none begins or runs from `deadline_ms` on (ms since the Unix epoch, 0: never).
    Its unique key is held until `hold_ms` at least, whatever becomes of it (0: for no such period).
    `blob`: what the log has of a payload that stands beside the store (`Blob`), empty for one in a row.
    """

    task: str = ""
    content_type: int = JSON
    expires_ms: Annotated[int, Meta(ge=0)] = 0
    deadline_ms: Annotated[int, Meta(ge=0)] = 0
    hold_ms: Annotated[int, Meta(ge=0)] = 0
    blob: bytes = b""


_decode: Final = Decoder(Terms).decode
_DEFAULTS: Final = astuple(Terms())


@lru_cache(1000)
def encode_terms(terms: Terms) -> bytes:
    """The bytes of the terms, without the defaults at their end."""
    fields = astuple(terms)
    while fields and fields[-1] == _DEFAULTS[len(fields) - 1]:
        fields = fields[:-1]
    return pack(fields)


@lru_cache(1000)
def decode_terms(value: bytes) -> Terms:
    """The terms in `value`; raises `FormatTooNew` for those of a newer version, and `ValueError` for malformed ones."""
    try:
        return _decode(value)
    except msgspec.MsgspecError as error:
        fields = unpack(value)
        if type(fields) is tuple and len(fields) > len(_DEFAULTS):
            known = ", ".join(Terms.__struct_fields__)
            raise FormatTooNew(f"a job has {len(fields)} terms, this ledgerq knows {known}: upgrade it") from error
        raise ValueError(f"a job's terms can't be decoded: {error}") from error
