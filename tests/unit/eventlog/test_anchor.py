"""The anchor: what survives a torn write, and which of two slots counts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog.anchor import SLOT_BYTES, FileAnchor, decode_slot, encode_slot
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.store import Anchor

_U64 = st.integers(0, 2**64 - 1)
_ANCHORS = st.builds(Anchor, _U64, _U64, st.binary(min_size=32, max_size=32), _U64, st.integers(-(2**63), 2**63 - 1))


def anchor(offset: int) -> Anchor:
    """An anchor that differs from others by its offset."""
    return Anchor(offset, offset + 1, offset.to_bytes(32, "big"), 1, offset)


@given(_U64, _ANCHORS)
def test_a_slot_gives_back_what_went_in(sequence: int, noted: Anchor) -> None:
    slot = encode_slot(sequence, noted)
    assert len(slot) == SLOT_BYTES
    assert decode_slot(slot) == (sequence, noted)


@given(_ANCHORS, st.integers(0, SLOT_BYTES * 8 - 1))
def test_any_flipped_bit_is_noticed(noted: Anchor, bit: int) -> None:
    slot = bytearray(encode_slot(3, noted))
    slot[bit // 8] ^= 1 << bit % 8
    assert decode_slot(bytes(slot)) is None


def test_what_is_no_slot() -> None:
    assert decode_slot(b"") is None
    assert decode_slot(bytes(SLOT_BYTES)) is None
    assert decode_slot(encode_slot(1, anchor(1))[:-1]) is None
    with pytest.raises(InvalidArgument, match="32 bytes"):
        encode_slot(1, anchor(1)._replace(digest=b"short"))


def test_the_newest_anchor_is_read_by_anyone(tmp_path: Path) -> None:
    keeper = FileAnchor(tmp_path, fsync=True)
    assert keeper.read() is None
    assert not list(tmp_path.iterdir())
    for offset in range(5):
        keeper.write(anchor(offset))
        assert FileAnchor(tmp_path, fsync=False).read() == anchor(offset)
    keeper.close()
    keeper.close()
    assert (tmp_path / "anchor").stat().st_size == 8192


def test_an_accepted_rollback_may_anchor_a_lower_offset(tmp_path: Path) -> None:
    keeper = FileAnchor(tmp_path, fsync=True)
    keeper.write(anchor(100))
    keeper.close()
    later = FileAnchor(tmp_path, fsync=True)
    later.write(anchor(7))
    assert later.read() == anchor(7)
    later.close()


@pytest.mark.parametrize("torn_bytes", [1, 16, 60, SLOT_BYTES - 1])
def test_a_torn_slot_leaves_the_one_before(tmp_path: Path, torn_bytes: int) -> None:
    keeper = FileAnchor(tmp_path, fsync=True)
    for offset in range(4):
        keeper.write(anchor(offset))
    keeper.close()
    path = tmp_path / "anchor"
    data = bytearray(path.read_bytes())
    # The fourth write went to the first slot; a power cut leaves some bytes of the fifth, in the second one.
    at = data.index(encode_slot(3, anchor(2)))
    data[at : at + torn_bytes] = encode_slot(5, anchor(4))[:torn_bytes]
    path.write_bytes(data)
    again = FileAnchor(tmp_path, fsync=True)
    assert again.read() == anchor(3)
    again.write(anchor(9))
    assert again.read() == anchor(9)
    again.close()


@pytest.mark.parametrize("damaged", ["the newer slot", "the older slot"])
@pytest.mark.parametrize("how", ["flipped", "zeroed"])
def test_a_slot_that_cant_be_read_may_have_been_the_newer_one(tmp_path: Path, damaged: str, how: str) -> None:
    keeper = FileAnchor(tmp_path, fsync=True)
    assert not keeper.is_in_doubt()
    for offset in range(4):
        keeper.write(anchor(offset))
        assert not keeper.is_in_doubt(), "also when there is only one"
    data = bytearray((tmp_path / "anchor").read_bytes())
    at = data.index(encode_slot(*((4, anchor(3)) if damaged == "the newer slot" else (3, anchor(2)))))
    data[at : at + SLOT_BYTES] = bytes(SLOT_BYTES) if how == "zeroed" else b"x" + data[at + 1 : at + SLOT_BYTES]
    (tmp_path / "anchor").write_bytes(data)
    assert keeper.is_in_doubt()
    keeper.write(anchor(4))
    keeper.write(anchor(5))
    assert not keeper.is_in_doubt()
    keeper.close()


@pytest.mark.parametrize("data", [b"", b"nonsense", bytes(8192), b"x" * 8192, encode_slot(0, anchor(1))])
def test_an_anchor_without_a_readable_slot_and_that_of_an_object_are_not_in_doubt(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "anchor").write_bytes(data)
    assert not FileAnchor(tmp_path, fsync=False).is_in_doubt()


def test_a_damaged_file_is_as_good_as_none_and_is_written_again(tmp_path: Path) -> None:
    (tmp_path / "anchor").write_bytes(b"nonsense")
    keeper = FileAnchor(tmp_path, fsync=True)
    assert keeper.read() is None
    keeper.write(anchor(1))
    assert keeper.read() == anchor(1)
    keeper.close()
