"""Sums of rows: SipHash with 128 bits as published, in any order, and another sum for any other rows."""

import random
import struct

import pytest

from ledgerq.eventlog.slate.row_sums import RowSum, can_sum, sum_of, total

pytestmark = pytest.mark.skipif(not can_sum(), reason="sums are not compiled")

SECRET = bytes(range(16))
_MASK = 2**64 - 1


def _turn(number: int, bits: int) -> int:
    return (number << bits | number >> (64 - bits)) & _MASK


def _round(v: list[int]) -> None:
    v[0] = (v[0] + v[1]) & _MASK
    v[1] = _turn(v[1], 13) ^ v[0]
    v[0] = _turn(v[0], 32)
    v[2] = (v[2] + v[3]) & _MASK
    v[3] = _turn(v[3], 16) ^ v[2]
    v[0] = (v[0] + v[3]) & _MASK
    v[3] = _turn(v[3], 21) ^ v[0]
    v[2] = (v[2] + v[1]) & _MASK
    v[1] = _turn(v[1], 17) ^ v[2]
    v[2] = _turn(v[2], 32)


def siphash(data: bytes, key: bytes) -> tuple[int, int]:
    """SipHash-2-4 with 128 bits, written from its description."""
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D ^ 0xEE, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]
    padded = data + bytes(7 - len(data) % 8) + bytes([len(data) % 256])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        _round(v)
        _round(v)
        v[0] ^= word
    halves = []
    for at, mark in ((2, 0xEE), (1, 0xDD)):
        v[at] ^= mark
        for _ in range(4):
            _round(v)
        halves.append(v[0] ^ v[1] ^ v[2] ^ v[3])
    return halves[0], halves[1]


@pytest.mark.parametrize(
    ("size", "published"),
    # The first vectors of 128 bits in the reference implementation of the hash's authors.
    [(0, "a3817f04ba25a8e66df67214c7550293"), (1, "da87c1d86b99af44347659119b22fc45")],
)
def test_the_hash_of_the_test_is_the_published_one(size: int, published: str) -> None:
    assert struct.pack("<QQ", *siphash(bytes(range(size)), SECRET)).hex() == published


@pytest.mark.parametrize("size", [*range(20), 255, 256, 5000])
def test_a_row_is_hashed_with_its_lengths(size: int) -> None:
    key, value = b"k" * (size % 7 + 1), bytes(n % 256 for n in range(size))
    data = len(key).to_bytes(4) + key + len(value).to_bytes(4) + value
    assert sum_of({key: value}, SECRET) == RowSum(1, *siphash(data, SECRET))


def test_the_order_and_the_parts_make_no_difference() -> None:
    rows = [(b"k%d" % n, b"v" * n) for n in range(500)]
    whole = sum_of(dict(rows), SECRET)
    random.Random(7).shuffle(rows)
    assert sum_of(dict(rows), SECRET) == whole
    assert total([sum_of(dict(rows[:123]), SECRET), sum_of(dict(rows[123:]), SECRET), RowSum()]) == whole
    assert max(whole.low, whole.high) < 2**64


@pytest.mark.parametrize(
    "other",
    [{b"a": b"bc"}, {b"ab": b"c", b"": b""}, {b"abc": b""}, {b"ab": b"C"}, {b"b": b"c", b"a": b""}, {}],
)
def test_other_rows_have_another_sum(other: dict[bytes, bytes]) -> None:
    rows = {b"ab": b"c"}
    assert sum_of(other, SECRET) != sum_of(rows, SECRET)
    assert sum_of(rows, SECRET) != sum_of(rows, SECRET[::-1])


@pytest.mark.parametrize("wrong", [b"", bytes(15), bytes(17)])
def test_a_secret_of_another_size_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        sum_of({b"a": b"b"}, wrong)


def test_what_is_not_bytes_is_refused() -> None:
    with pytest.raises(TypeError):
        sum_of({b"a": "b"}, SECRET)  # type: ignore[dict-item]
