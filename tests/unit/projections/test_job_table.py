"""The compiled table of rows: it does what a dict does, under keys that fill, meet and leave its slots."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.projections.job_table import Rows, is_built, new_rows

pytestmark = pytest.mark.skipif(not is_built(), reason="the compiled module was not built")

# Few enough that they come again.
ids = st.integers(0, 40).map(lambda number: number.to_bytes(16))
steps = st.lists(st.tuples(ids, st.none() | st.binary(max_size=300)), max_size=120)


def same(rows: Rows, wanted: dict[bytes, bytes]) -> None:
    assert len(rows) == len(wanted)
    assert sorted(rows) == sorted(wanted)
    assert {id: rows.get(id) for id in rows} == wanted
    assert all(id in rows for id in wanted)


@given(steps)
def test_rows_are_set_replaced_and_removed_as_in_a_dict(changes: list[tuple[bytes, bytes | None]]) -> None:
    rows, wanted = new_rows(), dict[bytes, bytes]()
    for id, row in changes:
        if row is not None:
            rows[id] = row
            wanted[id] = row
        elif id in wanted:
            del rows[id]
            del wanted[id]
        else:
            with pytest.raises(KeyError):
                del rows[id]
        assert rows.get(id) == wanted.get(id)
    same(rows, wanted)


def test_a_large_table_keeps_what_stays_while_half_of_it_is_removed() -> None:
    """Thousands of rows share the slots, so many stand behind others that are removed."""
    rows, wanted = new_rows(), dict[bytes, bytes]()
    for number in range(5000):
        id, row = number.to_bytes(16), b"%d" % number
        rows[id] = row
        wanted[id] = row
    for number in range(0, 5000, 2):
        del rows[number.to_bytes(16)]
        del wanted[number.to_bytes(16)]
    same(rows, wanted)
    assert rows.get(bytes(16)) is None


def test_what_is_no_key_is_found_nowhere_and_refused() -> None:
    rows = new_rows()
    assert rows.get(b"") is None
    assert rows.get(b"x" * 17) is None
    assert b"x" not in rows
    with pytest.raises(ValueError, match="16 bytes"):
        rows[b"x"] = b""
    for wrong in _wrong():
        with pytest.raises(TypeError):
            wrong(rows)
    assert len(rows) == 0


def _wrong() -> Iterator[Callable[[Any], object]]:
    yield lambda rows: rows.get("x" * 16)
    yield lambda rows: rows.__setitem__(bytes(16), "text")
    yield lambda rows: rows.__setitem__("x" * 16, b"")
    yield lambda rows: "x" in rows


def test_a_table_that_changes_its_size_is_not_iterated_over() -> None:
    rows = new_rows()
    for number in range(5000):
        rows[number.to_bytes(16)] = b""
    going = iter(rows)
    next(going)
    rows[b"x" * 16] = b""
    with pytest.raises(RuntimeError, match="changed"):
        list(going)
