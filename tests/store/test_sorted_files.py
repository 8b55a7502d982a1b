"""Sorted files and log files that SlateDB wrote, read without it: the same rows, and no wrong one after any damage."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.recovery.sorted_files import COMPRESSED, Part, SstRow, read_sst
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.stores import open_store
from tests.support.histories import quick, some
from tests.tiers import sampled

NOWHERE = Anchor(0, 0, bytes(32), 0, 0)
Change = tuple[bytes, bytes | None]


async def written(folder: Path, batches: Sequence[Sequence[Change]], **settings: Any) -> None:
    """A store with these batches, closed."""
    options = StoreOptions(fsync=False, settings=settings)
    store = await open_store(folder.as_uri(), clock=SystemClock(), options=options)
    for changes in batches:
        batch = store.batch()
        for key, value in changes:
            batch.put(key, value) if value is not None else batch.delete(key)
        await store.write(batch)
        await store.sync(NOWHERE)
    await store.close()


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(path for path in folder.glob(f"{kind}/*.sst") if path.stat().st_size)


def parts_of(data: bytes) -> list[Part]:
    return list(read_sst(data))


def rows_of(parts: Sequence[Part]) -> list[SstRow]:
    return [row for part in parts for row in part.rows]


keys = st.binary(min_size=1, max_size=40) | st.sampled_from([b"l/%08d" % n for n in range(40)])
values = st.none() | st.binary(max_size=60) | st.integers(0, 9000).map(lambda size: bytes(size))
batches = st.lists(st.lists(st.tuples(keys, values), min_size=1, max_size=40), min_size=1, max_size=4)


@pytest.mark.parametrize("examples", sampled([12, 60]))
def test_the_rows_are_those_that_were_written(tmp_path_factory: pytest.TempPathFactory, examples: int) -> None:
    @settings(quick, max_examples=examples)
    @given(batches)
    def are_read(wanted: list[Any]) -> None:
        rows_are_read(tmp_path_factory.mktemp("store"), wanted)

    are_read()


def rows_are_read(folder: Path, wanted: list[Any]) -> None:
    """Write these batches into a new store, and find each change in its log files and the sum in its sorted files."""
    asyncio.run(written(folder, wanted))
    logged: list[tuple[int, bytes, bytes | None]] = []
    for path in files(folder, "wal"):
        parts = parts_of(path.read_bytes())
        assert not any(part.problem for part in parts)
        logged += [(row.seq, row.key, row.value) for row in rows_of(parts)]
    # Of several changes of a key in one batch the last one counts; a batch has one sequence number.
    last = [dict(changes) for changes in wanted]
    numbers = sorted({seq for seq, _, _ in logged})
    assert [{key: value for seq, key, value in logged if seq == number} for number in numbers] == last
    state: dict[bytes, bytes | None] = {}
    for changes in last:
        state |= changes
    found: dict[bytes, tuple[int, bytes | None]] = {}
    for path in files(folder, "compacted"):
        for key, value, seq in rows_of(parts_of(path.read_bytes())):
            found[key] = max(found.get(key, (0, None)), (seq, value), key=lambda pair: pair[0])
    assert {key: value for key, (_, value) in found.items()} == state


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A sorted file of many blocks and a log file; among their values a large one, and one that is such a file."""
    folder = tmp_path_factory.mktemp("samples")
    rng = random.Random(1)
    many = [(b"k/%06d" % rng.randrange(10**6), rng.randbytes(rng.choice((0, 5, 90, 400)))) for _ in range(500)]
    asyncio.run(written(folder, [many, [*((key, None) for key, _ in many[:50]), (b"large", rng.randbytes(20_000))]]))
    (sorted_file,) = files(folder, "compacted")
    log_file = files(folder, "wal")[0]
    return {"sorted": sorted_file.read_bytes(), "log": log_file.read_bytes()}


@pytest.mark.parametrize("kind", ["sorted", "log"])
def test_without_an_index_the_same_rows_are_found(samples: dict[str, bytes], kind: str) -> None:
    data = samples[kind]
    whole = parts_of(data)
    assert not any(part.problem for part in whole)
    assert [part.stop for part in whole][:-1] == [part.start for part in whole][1:]
    (description,) = [part for part in whole if part.kind == "description"]
    cut = parts_of(data[: description.start])
    assert rows_of(cut) == rows_of(whole)
    assert [part.problem != "" for part in cut if part.kind == "description"] == [True]
    (index,) = [part for part in whole if part.kind == "index"]
    changed = bytearray(data)
    changed[index.start + 9] ^= 1
    again = parts_of(bytes(changed))
    assert rows_of(again) == rows_of(whole)
    assert [part.kind for part in again if part.problem] == ["index"]


@pytest.mark.parametrize("kind", ["sorted", "log"])
def test_a_flipped_bit_costs_the_rows_of_its_block_and_no_others(samples: dict[str, bytes], kind: str) -> None:
    data = samples[kind]
    whole = parts_of(data)
    rng = random.Random(2)
    places = {part.start + rng.randrange(part.stop - part.start) for part in whole for _ in range(3)}
    for place in sorted(places | set(range(len(data) - 12, len(data)))):
        changed = bytearray(data)
        changed[place] ^= 1 << rng.randrange(8)
        parts = parts_of(bytes(changed))
        (hit,) = [part for part in whole if part.start <= place < part.stop]
        assert any(part.problem for part in parts), place
        assert rows_of(parts) == [row for part in whole if part != hit for row in part.rows], place


@pytest.mark.proof
def test_random_damage_raises_nothing_and_makes_no_row(samples: dict[str, bytes]) -> None:
    rng = random.Random(3)
    for kind, data in samples.items():
        known = set(rows_of(parts_of(data)))
        for _ in range(150):
            changed = bytearray(data)
            for _ in range(rng.choice((1, 3, 10))):
                at = rng.randrange(len(changed))
                match rng.randrange(4):
                    case 0:
                        changed[at] ^= 1 << rng.randrange(8)
                    case 1:
                        changed[at : at + 100] = rng.randbytes(100)
                    case 2:
                        changed[at : at + 600] = bytes(600)
                    case _:
                        del changed[at : at + rng.randrange(2000)]
            assert set(rows_of(parts_of(bytes(changed)))) <= known, kind


@given(st.binary(max_size=300))
@some
def test_any_bytes_at_all_are_read_without_an_error(data: bytes) -> None:
    assert not rows_of(parts_of(data))
    assert any(part.problem for part in parts_of(data))


def test_ranges_leave_out_blocks_that_hold_none_of_their_keys(samples: dict[str, bytes]) -> None:
    data = samples["sorted"]
    whole = rows_of(parts_of(data))
    ranges = [(b"k/3", b"k/4"), (b"large", b"large\0")]
    some_rows = rows_of(list(read_sst(data, ranges)))
    wanted = [row for row in whole if any(start <= row.key < stop for start, stop in ranges)]
    assert [row for row in some_rows if any(start <= row.key < stop for start, stop in ranges)] == wanted
    assert len(wanted) <= len(some_rows) < len(whole)
    assert [part.problem for part in read_sst(data, ranges)] == [part.problem for part in read_sst(data)]


async def test_a_compressed_file_is_named_as_such(tmp_path: Path) -> None:
    await written(tmp_path, [[(b"k", bytes(1000))]], compression_codec="Zstd")
    for kind in ("wal", "compacted"):
        parts = parts_of(files(tmp_path, kind)[0].read_bytes())
        assert not rows_of(parts)
        assert [part.problem.startswith(COMPRESSED) for part in parts] == [True]


@pytest.mark.proof
def test_what_is_tried_in_vain_is_bounded() -> None:
    """Bytes that look like the beginning of a row at each place, in a file without an index."""
    parts = parts_of(b"\0\x01\0k" * 100_000 + bytes(50_000))
    assert not rows_of(parts)
