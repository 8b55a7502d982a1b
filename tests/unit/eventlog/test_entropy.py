"""Sources of chance, and the ids made from them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog.entropy import (
    Entropy,
    SeededEntropy,
    SystemEntropy,
    job_id_bytes,
    job_id_ms,
    job_id_text,
    new_job_id,
)
from ledgerq.eventlog.errors import InvalidArgument
from tests.support.histories import START_MS, quick

SOURCES: list[Entropy] = [SystemEntropy(), SeededEntropy(1)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_a_source_gives_as_many_bytes_as_asked_for_and_no_piece_twice(source: Entropy) -> None:
    pieces = [source.take(n_bytes) for n_bytes in itertools.islice(itertools.cycle(range(10, 65)), 2000)]
    assert [len(piece) for piece in pieces] == list(itertools.islice(itertools.cycle(range(10, 65)), 2000))
    assert len(set(pieces)) == len(pieces)
    assert source.take(0) == b""


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: type(source).__name__)
def test_fractions_are_spread_over_zero_to_one(source: Entropy) -> None:
    fractions = [source.fraction() for _ in range(2000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert {int(fraction * 10) for fraction in fractions} == set(range(10))


class Ones(SystemEntropy):
    """The largest that chance can come up with."""

    def take(self, n_bytes: int) -> bytes:
        """Nothing but ones."""
        return b"\xff" * n_bytes


def test_the_largest_fraction_is_below_one() -> None:
    assert Ones().fraction() == 1 - 2**-53


def test_the_same_seed_gives_the_same_sequence() -> None:
    one, same, other = SeededEntropy(1), SeededEntropy(1), SeededEntropy(2)
    assert [one.take(16), one.fraction(), one.take(3)] == [same.take(16), same.fraction(), same.take(3)]
    assert one.take(16) != other.take(16)


def test_a_job_id_is_its_time_and_ten_random_bytes() -> None:
    job_id = new_job_id(START_MS, SeededEntropy(1))
    assert job_id == START_MS.to_bytes(6) + SeededEntropy(1).take(10)
    assert job_id_ms(job_id) == START_MS


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("0" * 26, bytes(16)),
        ("7" + "Z" * 25, b"\xff" * 16),
        # The reference implementation's own test: 01ARYZ6S41 is 1469918176385 ms.
        ("01ARYZ6S41TSV4RRFFQ69G5FAV", (1469918176385).to_bytes(6) + bytes.fromhex("d6764c61efb99302bd5b")),
    ],
)
def test_an_id_is_written_in_crockfords_base_32(text: str, id: bytes) -> None:
    assert job_id_text(id) == text
    assert job_id_bytes(text) == id


@quick
@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16))
def test_ids_and_their_texts_are_in_the_same_order(a: bytes, b: bytes) -> None:
    assert (a < b) == (job_id_text(a) < job_id_text(b))
    assert job_id_bytes(job_id_text(a)) == a


@pytest.mark.parametrize(
    "text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "U" * 26, "-" * 26, "é" * 26, "0" * 26 + "\n", None, 5, b"0" * 26]
)
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not a job id"):
        job_id_bytes(text)
