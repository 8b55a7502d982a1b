"""The side records: payloads, texts, results and values of keys, which stand beside the log, where they can be deleted.

Each holds a random salt, and the log has its digest: so nothing about it can be guessed, and each change is found. Of a
unique key the log has a digest that is keyed with the store's secret, so that equal keys are equal there.
"""

from hashlib import blake2b
from typing import Final, NamedTuple

import msgpack

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import DIGEST_BYTES, pack, unpack
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.store import ReadStore

__all__ = [
    "MAX_RESULT_BYTES",
    "MAX_VALUE_BYTES",
    "PayloadRecord",
    "SALT_BYTES",
    "ValueRow",
    "decode_payload",
    "decode_result",
    "decode_text",
    "decode_value_row",
    "encode_payload",
    "encode_sealed",
    "encode_value_row",
    "key_digest",
    "read_secret",
]

SALT_BYTES: Final = 16
MAX_RESULT_BYTES: Final = 1024 * 1024
MAX_VALUE_BYTES: Final = 64 * 1024
_OFFSET_BYTES: Final = 8
_packer = msgpack.Packer(autoreset=True)


class PayloadRecord(NamedTuple):
    """A job's payload: random salt (so that a guessable payload can't be found from its digest), headers, bytes.

    `unique_key` is the job's, whose digest stands in the log; None where there is none, and up to format 2.
    """

    salt: bytes
    headers: dict[str, str] | None
    payload: bytes
    unique_key: bytes | None = None


def encode_payload(
    salt: bytes, headers: dict[str, str] | None, payload: bytes, unique_key: bytes | None = None
) -> bytes:
    """A payload record; headers that UTF-8 can't hold raise `InvalidArgument`."""
    try:
        return _packer.pack((salt, headers, payload) if unique_key is None else (salt, headers, payload, unique_key))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"the payload's headers can't be stored: {error}") from error


def decode_payload(value: bytes) -> PayloadRecord:
    """The payload record in `value`; raises `ValueError` when it is malformed."""
    try:
        record = PayloadRecord(*unpack(value))
    except TypeError as error:
        raise ValueError(str(error)) from error
    headers = record.headers
    texts = () if headers is None else (*headers, *headers.values()) if type(headers) is dict else (None,)
    others = (record.salt, record.payload, b"" if record.unique_key is None else record.unique_key)
    if not all(type(other) is bytes for other in others) or not all(type(text) is str for text in texts):
        raise ValueError("a payload record has the wrong shape")
    return record


def encode_sealed(salt: bytes, value: str | bytes) -> bytes:
    """The row of a text or of a result: the salt, and the value."""
    return pack((salt, value))


def decode_text(value: bytes) -> str:
    """The text in its row; raises `ValueError` when that is malformed."""
    text = _sealed(value)
    if type(text) is not str:
        raise ValueError("a text's row holds no text")
    return text


def decode_result(value: bytes) -> bytes:
    """The result in its row; raises `ValueError` when that is malformed."""
    result = _sealed(value)
    if type(result) is not bytes:
        raise ValueError("a result's row holds no bytes")
    return result


class ValueRow(NamedTuple):
    """The row of a key: the offset of the event that set it, and what its digest is of, salt and value."""

    offset: int
    sealed: bytes

    @property
    def value(self) -> bytes:
        """The value; raises `ValueError` when that is malformed."""
        return decode_result(self.sealed)


def encode_value_row(offset: int, sealed: bytes) -> bytes:
    """The row of a key: the offset as u64, and what `encode_sealed` made of salt and value."""
    return offset.to_bytes(_OFFSET_BYTES) + sealed


def decode_value_row(row: bytes) -> ValueRow:
    """The parts of a key's row, of any bytes: whether they are right, its digest tells."""
    return ValueRow(int.from_bytes(row[:_OFFSET_BYTES]), row[_OFFSET_BYTES:])


def key_digest(key: bytes, secret: bytes) -> bytes:
    """What stands for a unique key in the log and in the index: equal for equal keys, and no help in guessing them."""
    return blake2b(key, key=secret, digest_size=DIGEST_BYTES).digest()


async def read_secret(store: ReadStore) -> bytes | None:
    """The store's secret; None where there is none, or one of a wrong length."""
    secret = await store.get(keys.SECRET_KEY)
    return secret if secret is not None and len(secret) == keys.SECRET_BYTES else None


def _sealed(value: bytes) -> object:
    fields = unpack(value)
    if type(fields) is not tuple or len(fields) != 2 or type(fields[0]) is not bytes:
        raise ValueError("the row of a text or a result has the wrong shape")
    return fields[1]
