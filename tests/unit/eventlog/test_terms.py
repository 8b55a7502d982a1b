"""The further terms of a job: what is not used costs nothing, and what a newer version added is refused by name."""

import pytest
from msgspec.structs import astuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt
from ledgerq.eventlog.events import Enqueued
from ledgerq.eventlog.terms import Terms, decode_terms, encode_terms
from ledgerq.projections.fold import Fold

NEWER = pack((*astuple(Terms("send")), "more"))


@pytest.mark.parametrize(
    "terms", [Terms(), Terms("send"), Terms("send", 7), Terms("", 7), Terms("", 0, 5), Terms("send", 0, 0, 9)]
)
def test_terms_come_back(terms: Terms) -> None:
    assert decode_terms(encode_terms(terms)) == terms


def test_defaults_at_the_end_are_not_written() -> None:
    assert unpack(encode_terms(Terms("send"))) == ("send",)
    assert unpack(encode_terms(Terms())) == ()


def test_terms_of_a_newer_version_are_refused() -> None:
    known = Terms.__struct_fields__
    match = rf"a job has {len(known) + 1} terms, this ledgerq knows task, .*, {known[-1]}: upgrade it"
    with pytest.raises(FormatTooNew, match=match):
        decode_terms(NEWER)


@pytest.mark.parametrize(
    "value", [b"", b"\xc1", pack("send"), pack((1,)), pack(("send", "json")), pack(("send", 0, -1))]
)
def test_malformed_terms_are_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"terms can't be decoded|not msgpack"):
        decode_terms(value)


@pytest.mark.parametrize(("terms", "error"), [(b"\xc1", LogCorrupt), (NEWER, FormatTooNew)])
def test_the_fold_knows_the_terms_of_each_job(terms: bytes, error: type[Exception]) -> None:
    fold = Fold()
    job = Enqueued(bytes(16), "q", 1, 3, 0, None, "finished", 1, bytes(32), terms)
    with pytest.raises(error):
        fold.apply(0, 1, job)
