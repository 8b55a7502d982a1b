"""Receipts: the proofs of a job's events, made from the log and its published tree. verifier.py checks them."""

import struct
from base64 import b64encode
from collections.abc import Sequence
from typing import Final

from ledgerq.eventlog.errors import LogCorrupt, NotPublished, ProofRefused, TreeForked
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.trust.places import CHECKPOINT, Place
from ledgerq.eventlog.trust.published import PublishedTree
from ledgerq.eventlog.trust.publisher import KEY_FILE, log_secret, recorded_leaf
from ledgerq.eventlog.trust.tree import inclusion_path
from ledgerq.eventlog.trust.verifier import (
    PROOF_HEADER,
    Refused,
    VerifierKey,
    check_receipt,
    open_checkpoint,
    policy_of,
)

__all__ = ["make_receipt"]

_INNER: Final = struct.Struct(">IB")


async def make_receipt(log: LogReader, place: Place, offsets: Sequence[int]) -> bytes:
    """The receipt of a job whose events have these offsets.

    It is checked before it is given out, with the key that is published beside the tree: an auditor takes that from
    elsewhere. Raises `NotPublished` for events that no checkpoint covers, `TreeForked` when the log holds others than
    the tree, `ProofRefused` when what is published proves nothing.
    """
    note, key = await place.get(CHECKPOINT), await place.get(KEY_FILE)
    if note is None or key is None:
        raise NotPublished(f"nothing is published at {place.name}: run ledgerq publish, or name the place")
    try:
        policy = policy_of(VerifierKey.parse(key.decode()))
        tree = PublishedTree(place, open_checkpoint(note, policy))
        secret = await log_secret(log.store)
        proofs = [await _proof(log, tree, place, offset, secret) for offset in offsets]
        receipt = b"".join(proof + b"\n" + note for proof in proofs)
        check_receipt(receipt, policy)
    except (Refused, UnicodeDecodeError) as error:
        raise ProofRefused(f"no receipt can be made from what is published at {place.name}: {error}") from error
    return receipt


async def _proof(log: LogReader, tree: PublishedTree, place: Place, offset: int, secret: bytes) -> bytes:
    """The proof of one event, without the checkpoint."""
    number = await tree.find(offset)
    if number is None:
        first, last = await tree.entry(0), await tree.entry(tree.size - 1)
        if offset < first.base_offset:
            raise ProofRefused(
                f"the event at offset {offset} is of an old format: the tree begins at {first.base_offset}"
            )
        raise NotPublished(
            f"the event at offset {offset} is not published yet: the tree at {place.name} ends before offset "
            f"{last.next_offset}; run ledgerq publish, or wait for the one that runs"
        )
    entry = await tree.entry(number)
    leaf = await recorded_leaf(log.store, entry.base_offset, secret)
    if leaf is None:
        raise LogCorrupt(entry.base_offset, "a record batch is missing")
    if leaf.entry != entry:
        raise TreeForked(
            f"the log holds another record batch at offset {entry.base_offset} than the tree at {place.name}"
        )
    at = offset - entry.base_offset
    inner = inclusion_path(leaf.inner_hashes, at)
    extra = b"".join((entry.encode(), _INNER.pack(at, len(inner)), *inner, leaf.openings[at]))
    lines = [f"extra {b64encode(extra).decode()}", f"index {number}"]
    lines += [b64encode(one).decode() for one in await tree.inclusion(number)]
    return (PROOF_HEADER + "\n".join(lines) + "\n").encode()
