"""What the tree holds of a record batch: an entry of 81 bytes, in it the root of a tree of commitments to the events.

An event's entry is msgpack `[1, offset, time ms, epoch, kind, offset of the job's event before or nil, fields]`, with
kind and fields byte for byte as they are stored. Its commitment is the SHA-256 of a prefix, a salt of 16 bytes, and the
entry. The salt follows from the store's secret, so a published tree shows nothing of the events, and a receipt shows
one of them without its neighbours.
"""

from hashlib import blake2b, sha256
from typing import Final, NamedTuple

from ledgerq.eventlog.codec import KIND_OF, digest_of, pack, stored_batch
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import Checkpointed
from ledgerq.eventlog.trust.tree import root_of
from ledgerq.eventlog.trust.verifier import COMMITMENT_PREFIX, TlogEntry

__all__ = ["BatchLeaf", "batch_leaf", "event_salt"]

_HEADER: Final = b"\x97\x01"  # an array of seven, the first of which is the entry's version
_NIL: Final = b"\xc0"
_NOTE: Final = KIND_OF[Checkpointed]


def event_salt(secret: bytes, offset: int) -> bytes:
    """The salt of the event at `offset`: it can't be had without the store's secret."""
    return blake2b(offset.to_bytes(8), key=secret, digest_size=16).digest()


class BatchLeaf(NamedTuple):
    """A record batch as a leaf: its entry, the digest of the batch before, and what its events' proofs are made of."""

    entry: TlogEntry
    previous: bytes
    openings: list[bytes]
    """Of each event the salt and its entry: what its commitment hides."""
    inner_hashes: list[bytes]
    has_notes: bool
    """Whether one of the events is a `Checkpointed`."""


def batch_leaf(base_offset: int, value: bytes, secret: bytes) -> BatchLeaf:
    """The leaf of the record batch with this stored value; raises `LogCorrupt`, also for one of version 1."""
    outer, rows = stored_batch(base_offset, value)
    if outer.distances is None:
        raise LogCorrupt(base_offset, "a record batch of version 1 has no place in the tree")
    middle = pack(outer.time_ms) + pack(outer.epoch)
    copy_keyed = blake2b(key=secret, digest_size=16).copy
    openings, offset = [], base_offset
    for kind, row, distance in zip(outer.kinds, rows, outer.distances, strict=True):
        salt = copy_keyed()
        salt.update(offset.to_bytes(8))
        before = pack(offset - distance) if distance else _NIL
        openings.append(b"".join((salt.digest(), _HEADER, pack(offset), middle, pack(kind), before, row)))
        offset += 1
    # As `leaf_hash` has it, without the cost of its call.
    commitments = [sha256(COMMITMENT_PREFIX + opening).digest() for opening in openings]
    hashes = [sha256(b"\0" + commitment).digest() for commitment in commitments]
    entry = TlogEntry(base_offset, offset, digest_of(value), root_of(hashes))
    return BatchLeaf(entry, outer.previous, openings, hashes, _NOTE in outer.kinds)
