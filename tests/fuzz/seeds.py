"""Valid inputs of each fuzz target, to begin with."""

from ledgerq.eventlog.anchor import encode_slot
from ledgerq.eventlog.codec import EVENT_TYPES, KIND_OF, NO_DIGEST, Head, encode_batch, encode_head, pack
from ledgerq.eventlog.events import Event
from ledgerq.eventlog.side_records import encode_payload, encode_sealed
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.terms import Terms, encode_terms
from ledgerq.projections.fold import Fold
from ledgerq.projections.indexes import index_entries
from tests.support.histories import history_of

__all__ = ["seeds"]

DIGEST = bytes(range(32))
# Choices that lead through every state: see support/histories.py.
_CHOICES = [(i * i * 8351 + i * 104729) % 2**24 for i in range(60)]


def _batch(events: list[Event], distances: list[int] | None = None) -> bytes:
    kinds = bytes(KIND_OF[type(event)] for event in events)
    return encode_batch(7, NO_DIGEST, 1_700_000_000_000, kinds, events, distances or [0] * len(events))


def _old_batch(events: list[Event]) -> bytes:
    return pack((1, 7, NO_DIGEST, 1_700_000_000_000, bytes(KIND_OF[type(event)] for event in events), events))


def seeds(target: str) -> list[bytes]:
    """Some inputs that the target accepts."""
    history = history_of(_CHOICES)
    events = [transition.event for transition in history]
    fold = Fold()
    for transition in history:
        fold.apply(transition.offset, transition.time_ms, transition.event)
    distances = [0 if one.before is None else one.offset - one.before.last_offset for one in history]
    rows = {key: value for job in fold.jobs.values() for key, value in index_entries(job).items()}
    kinds = list(EVENT_TYPES)
    return {
        "batch": [_batch(events, distances), _old_batch(events), *(_batch([event]) for event in events[:20])],
        "events": [bytes([kinds.index(KIND_OF[type(event)])]) + b"\0" + pack(event) for event in events],
        "head": [encode_head(Head(9, DIGEST, 2, 1_700_000_000_000, 4))],
        "anchor": [encode_slot(5, Anchor(4, 9, DIGEST, 2, 1_700_000_000_000))],
        "payload": [
            encode_payload(bytes(16), headers, b"text", unique)
            for headers in (None, {}, {"a": "b"})
            for unique in (None, b"k")
        ],
        "terms": [encode_terms(Terms("send")), encode_terms(Terms("", 7)), encode_terms(Terms())],
        "text": [encode_sealed(bytes(16), value) for value in ("boom", "", b"\x80\x01", b"")],
        "job": [pack(job) for job in fold.jobs.values()],
        "stats": [counters.encode() for counters in fold.counters.values()],
        "key": [bytes([len(key)]) + key + value[:16] for key, value in rows.items()],
        "location": [
            *(
                b"memory:///",
                b"file:///tmp/a%20b",
                b"relative/../path",
                b"s3://bucket/prefix",
                b"gs://b",
                b"az://c/p/q",
            ),
            b"01ARZ3NDEKTSV4RRFFQ69G5FAV",
        ],
        "arguments": [
            bytes([command, word, 255, 0, 255, word + 1]) for command in range(15) for word in range(0, 44, 4)
        ],
    }[target]
