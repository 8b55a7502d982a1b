"""The part of an audit for what stands beside the log: it is what the log has the digests of.

Values of keys; and, in a deep audit, payloads, texts, and the store's secret, by the unique keys that were digested
with it. audit.py does the rest.
"""

from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.blobs import FOLDER, BlobName, checked
from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import LogPoisoned, PayloadMissing, StoreUnavailable
from ledgerq.eventlog.side_records import decode_payload, key_digest, read_secret
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.fold import Fold
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.payloads import MISSING, read_payload
from ledgerq.projections.texts import MISSING as MISSING_TEXT
from ledgerq.projections.texts import stored_texts
from ledgerq.projections.values import SetValue, StoredValue, missing_text, stored_values

__all__ = [
    "Difference",
    "blob_differences",
    "missing_secret",
    "payload_differences",
    "text_differences",
    "value_difference",
    "value_differences",
]

_PAYLOAD_ROWS: Final = 256
_PAYLOAD_KEY_BYTES: Final = len(keys.payload_key(0))


class Difference(NamedTuple):
    """One row that differs from the log's fold. `expected` and `found` are readable; None means: no such row."""

    range_name: str
    key: str
    raw_key: bytes
    expected: str | None
    found: str | None


async def missing_secret(store: ReadStore, format_version: int) -> Difference | None:
    """The difference of a store that has no secret, or one of a wrong length; up to format 2 there was none."""
    if format_version < keys.FORMAT_VERSION or await read_secret(store) is not None:
        return None
    found = await store.get(keys.SECRET_KEY)
    size = None if found is None else f"{len(found)} bytes"
    return Difference("meta", "m/secret", keys.SECRET_KEY, f"{keys.SECRET_BYTES} bytes, the store's secret", size)


async def payload_differences(store: ReadStore, fold: Fold) -> AsyncIterator[Difference]:
    """The payloads that are missing, changed, or of no job, and the unique keys that the secret doesn't lead to."""
    # Jobs in the order of their payloads, by little more than their ids: a million of them take memory.
    in_order = sorted((job.payload_offset, id) for id, job in fold.jobs.items())
    offsets, ids = array("Q", (offset for offset, _ in in_order)), [id for _, id in in_order]
    del in_order
    secret = await read_secret(store)
    at, left = 0, list[bytes]()
    pages = store.scan(keys.PAYLOAD_PREFIX, keys.after_prefix(keys.PAYLOAD_PREFIX), page_rows=_PAYLOAD_ROWS)
    try:
        async for page in pages:
            for key, value in page:
                offset, job = keys.offset_of(key), None
                if len(key) == _PAYLOAD_KEY_BYTES:
                    found = bisect_left(offsets, offset, at)
                    left += ids[at:found]
                    at = found
                    if found < len(ids) and offsets[found] == offset:
                        job = fold.jobs[ids[found]]
                        at += 1
                if job is None:
                    yield Difference("payload", f"offset {offset}", key, None, f"{len(value)} bytes of no live job")
                elif digest_of(value) != job.spec.payload_digest:
                    text = f"{len(value)} bytes with digest {digest_of(value).hex()}"
                    yield _payload_difference(job, text)
                elif (other := _key_difference(job, value, secret, fold)) is not None:
                    yield other
    except LogPoisoned:
        pass  # a scan ends at the first block that can't be read: the rest is read one by one
    for id in (*left, *ids[at:]):
        job = fold.jobs[id]
        record, fault = await read_payload(store, job)
        if record is None and id not in fold.without_payload:
            yield _payload_difference(job, None if fault == MISSING else fault)
        elif record is not None and (other := _key_difference(job, record, secret, fold)) is not None:
            yield other


def _payload_difference(job: Job, found: str | None) -> Difference:
    want = f"{job.spec.payload_bytes} bytes with digest {job.spec.payload_digest.hex()}"
    at = job.payload_offset
    return Difference("payload", f"job {job.job_id}, offset {at}", keys.payload_key(at), want, found)


def _key_difference(job: Job, record: bytes, secret: bytes | None, fold: Fold) -> Difference | None:
    """The difference of an unfinished job whose unique key would not be recognised, since the secret is another."""
    if job.spec.unique_key is None or job.state in FINISHED or secret is None or job.offset < fold.secret_since:
        return None
    try:
        key = decode_payload(record).unique_key
    except ValueError:
        return None  # no later version wrote it: the digest is that of its event
    digest = b"" if key is None else key_digest(key, secret)
    if key is None or digest == job.spec.unique_key:
        return None
    want = f"the secret with which its unique key has the digest {job.spec.unique_key.hex()}"
    what = f"job {job.job_id}, offset {job.offset}"
    return Difference("secret", what, keys.SECRET_KEY, want, f"one with which it has {digest.hex()}")


async def blob_differences(store: ReadStore, fold: Fold) -> AsyncIterator[Difference]:
    """The large payloads that are missing or changed; each is read to its end."""
    for id in [*fold.jobs]:
        job = fold.jobs[id]
        if (blob := job.blob) is None or id in fold.without_payload:
            continue
        record, _ = await read_payload(store, job)
        if record is None:
            continue  # which is another difference
        name = BlobName(blob.id, job.id)
        try:
            async for _ in checked(store.blobs, name, blob, decode_payload(record).salt):
                pass
        except (PayloadMissing, StoreUnavailable) as error:
            want = f"{blob.size_bytes} bytes with digest {blob.digest.hex()}"
            yield Difference("blob", f"job {job.job_id}, {FOLDER}/{name}", b"", want, str(error))


async def text_differences(store: ReadStore, fold: Fold) -> AsyncIterator[Difference]:
    """The texts and results that are missing, changed, or of no event."""
    async for text in stored_texts(store, fold.texts):
        size = None if text.value is None else f"{len(text.value)} bytes"
        where = f"offset {keys.offset_of(text.key)}"
        if text.sealed is None:
            yield Difference("text", where, text.key, None, f"{size} that no event has")
        elif text.fault:
            want = f"{text.sealed.size_bytes} bytes with digest {text.sealed.digest.hex()}"
            yield Difference("text", where, text.key, want, None if text.fault == MISSING_TEXT else text.fault)


async def value_differences(store: ReadStore, values: Mapping[str, SetValue]) -> AsyncIterator[Difference]:
    """The values that are missing, changed, of another version, or of no key."""
    async for stored in stored_values(store, values):
        if (difference := value_difference(stored)) is not None:
            yield difference


def value_difference(stored: StoredValue) -> Difference | None:
    """What differs in the row of a key."""
    name = f"key {stored.key[len(keys.VALUE_PREFIX) :].decode(errors='replace')!r}"
    if stored.wanted is None:
        size = None if stored.row is None else f"{len(stored.row)} bytes that no event has"
        return None if size is None else Difference("value", name, stored.key, None, size)
    if not stored.fault:
        return None
    want = f"{stored.wanted.size_bytes} bytes of version {stored.wanted.offset}, digest {stored.wanted.digest.hex()}"
    return Difference("value", name, stored.key, want, missing_text(stored.fault))
