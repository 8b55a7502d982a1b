"""The fast and the native lane: the bytes of the public one, errors lifted, nothing leaked, and a way out of each."""

import asyncio
import contextlib
import functools
import logging
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slatedb.uniffi import Db, DbBuilder, Error, ObjectStore, Settings
from slatedb.uniffi._slatedb_uniffi import slatedb as binding

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.slate import fast_binding, native_binding
from ledgerq.eventlog.slate.binding import PublicLane, SlateBatch
from ledgerq.eventlog.slate.fast_binding import FastLane
from ledgerq.eventlog.slate.fast_rows import parse_rows
from ledgerq.eventlog.slate.lanes import best_lane
from ledgerq.eventlog.slate.native_binding import NativeLane, is_built
from ledgerq.eventlog.store import Row

_KEYS = st.binary(min_size=1, max_size=40)
_VALUES = st.binary(max_size=300)
_TIMES = st.integers(-(2**63), 2**63 - 1)

built = pytest.mark.skipif(not is_built(), reason="the compiled module was not built")
LANES = [FastLane, pytest.param(NativeLane, marks=built)]


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> FastLane:
    """Each of the lanes that know the binding's private parts."""
    made: FastLane = request.param()
    return made


@pytest.fixture
async def db(tmp_path: Path) -> Db:
    """A database of SlateDB's own, which flushes only when asked."""
    chosen = Settings.default()
    chosen.set("flush_interval", "null")
    builder = DbBuilder(str(tmp_path / "db").strip("/"), ObjectStore.resolve("file:///"))
    builder.with_settings(chosen)
    return await builder.build()


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Let `best_lane` choose again in this test."""
    best_lane.cache_clear()
    yield
    best_lane.cache_clear()


def encoded(rows: list[binding.KeyValue]) -> bytes:
    """Rows as the binding itself writes them."""
    return fast_binding._encoded(binding._UniffiFfiConverterSequenceTypeKeyValue, rows)


def commit(lane: FastLane, db: Db, batch: SlateBatch, limit_s: float) -> None:
    """Write and flush, as a store's thread does."""
    lane.write_blocking(db, batch, limit_s)
    lane.flush_wal_blocking(db, limit_s)


@functools.cache
def compiled_parser() -> Callable[[bytes], list[Row]]:
    """What the native lane reads pages with."""
    return NativeLane()._parse


@settings(deadline=None)
@given(st.lists(st.tuples(_KEYS, _VALUES, st.integers(0, 2**64 - 1), _TIMES, st.none() | _TIMES), max_size=20))
def test_rows_are_read_as_the_binding_wrote_them(rows: list[tuple[bytes, bytes, int, int, int | None]]) -> None:
    values = [
        binding.KeyValue(key=key, value=value, seq=seq, create_ts=made, expire_ts=ends)
        for key, value, seq, made, ends in rows
    ]
    data, expected = encoded(values), [(row[0], row[1]) for row in rows]
    assert parse_rows(data) == expected
    if is_built():
        assert compiled_parser()(data) == expected


@built
@settings(deadline=None)
@given(st.lists(st.tuples(_KEYS, _VALUES), min_size=1, max_size=3), st.data())
def test_the_compiled_parser_refuses_what_was_cut_off_or_changed(
    rows: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    whole = encoded([binding.KeyValue(key=k, value=v, seq=1, create_ts=1, expire_ts=None) for k, v in rows])
    parse = compiled_parser()
    cut = data.draw(st.integers(5, len(whole) - 1))
    ends = {4 + sum(len(k) + len(v) + 25 for k, v in rows[:number]) for number in range(len(rows))}
    if cut not in ends:
        with pytest.raises(ValueError, match="laid out"):
            parse(whole[:cut])
    at = data.draw(st.integers(4, len(whole) - 1))
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with contextlib.suppress(ValueError):
        assert sum(len(key) + len(value) for key, value in parse(changed)) < len(whole)


async def test_all_lanes_write_and_read_the_same(db: Db, lane: FastLane) -> None:
    public = PublicLane()
    rows = [(b"a\0b", b"\0"), (b"b" * 300, b""), (bytes(range(1, 256)), bytes(range(256)) * 100)]
    lanes: tuple[FastLane | PublicLane, ...] = (lane, public, lane)
    for number, writer in enumerate(lanes):
        batch = writer.batch()
        batch.put(b"gone", b"1")
        for key, value in rows:
            batch.put(key, value)
        batch.delete(b"gone")
        if number:
            await writer.write(db, batch)
            await writer.flush_wal(db)
        else:
            await asyncio.to_thread(commit, lane, db, batch, 10.0)
        for reader in (lane, public):
            assert [await reader.get(db, key) for key, _ in rows] == [value for _, value in rows]
            assert await reader.get(db, b"gone") is None
            for reverse in (False, True):
                found = await reader.next_rows(await reader.scan(db, b"", b"\xff", reverse=reverse), 10, 10.0)
                assert found == sorted(rows, reverse=reverse)
    await db.shutdown()


async def test_a_flushed_write_is_durable(db: Db, lane: FastLane) -> None:
    batch = lane.batch()
    batch.put(b"a", b"1")
    handle = await lane.write(db, batch)
    assert db.status().durable_seq < handle.seqnum()
    await lane.flush_wal(db)
    assert db.status().durable_seq >= handle.seqnum()
    await db.shutdown()


async def test_a_commit_is_durable_and_an_empty_one_flushes(db: Db, lane: FastLane) -> None:
    first, second = lane.batch(), lane.batch()
    first.put(b"a", b"1")
    handle = await lane.write(db, first)
    commit(lane, db, lane.batch(), 10.0)
    assert db.status().durable_seq >= handle.seqnum()
    second.update({b"a": None, b"b": b"2", b"c": b""})
    commit(lane, db, second, 10.0)
    assert db.status().durable_seq > handle.seqnum()
    assert [await lane.get(db, key) for key in (b"a", b"b", b"c")] == [None, b"2", b""]
    await db.shutdown()


async def test_errors_are_lifted(db: Db, lane: FastLane) -> None:
    batch = lane.batch()
    batch.put(b"a", b"1")
    await lane.write(db, batch)
    for _ in range(3):
        with pytest.raises(InvalidArgument, match="consumed"):
            batch.put(b"b", b"1")
        with pytest.raises(InvalidArgument, match="consumed"):
            batch.delete(b"b")
        with pytest.raises(InvalidArgument, match="consumed"):
            batch.update({b"b": b"1"})
    for _ in range(3):
        with pytest.raises(Error.Invalid, match="consumed"):
            await lane.write(db, batch)
        with pytest.raises(Error.Invalid, match="consumed"):
            commit(lane, db, batch, 10.0)
    with pytest.raises(Error.Invalid):
        await lane.scan(db, b"b", b"a", reverse=False)
    await db.shutdown()
    with pytest.raises(Error.Closed):
        await lane.get(db, b"a")
    with pytest.raises(Error.Closed):
        await lane.flush_wal(db)
    for changes in ({}, {b"c": b"1"}):
        batch = lane.batch()
        batch.update(changes)
        with pytest.raises(Error.Closed):
            commit(lane, db, batch, 10.0)


async def test_a_commit_of_which_nothing_is_heard_ends_at_its_limit(tmp_path: Path, db: Db, lane: FastLane) -> None:
    await lane.flush_wal(db)
    # SlateDB tries again without end while it can't write its log.
    shutil.rmtree(tmp_path / "db" / "wal")
    (tmp_path / "db" / "wal").write_bytes(b"no folder")
    for key in (b"a", b"b"):
        batch = lane.batch()
        batch.put(key, b"1")
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(commit, lane, db, batch, 0.05)
    (tmp_path / "db" / "wal").unlink()
    batch = lane.batch()
    batch.put(b"c", b"1")
    await asyncio.to_thread(commit, lane, db, batch, 60.0)
    assert [await lane.get(db, key) for key in (b"a", b"b", b"c")] == [b"1"] * 3
    await db.shutdown()


@pytest.mark.parametrize("argument", ["text", None, 7])
def test_what_is_not_bytes_is_refused(argument: object, lane: FastLane) -> None:
    batch = lane.batch()
    with pytest.raises(TypeError):
        batch.put(argument, b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        batch.put(b"a", argument)  # type: ignore[arg-type]
    assert batch.is_empty


@pytest.mark.parametrize("change", [{"text": b""}, {b"a": "text"}, {b"a": 7}])
async def test_what_is_not_bytes_is_refused_at_the_latest_when_it_is_written(
    change: dict[bytes, bytes], db: Db, lane: FastLane
) -> None:
    batch = lane.batch()
    batch.update({b"b": b"1", **change})
    with pytest.raises(TypeError):
        commit(lane, db, batch, 10.0)
    assert await lane.get(db, b"b") is None
    await db.shutdown()


def test_an_update_with_a_key_that_no_store_takes_changes_nothing(lane: FastLane) -> None:
    batch = lane.batch()
    for key in (b"", b"k" * 65_536):
        with pytest.raises(InvalidArgument):
            batch.update({b"a": b"1", key: b"2"})
    assert batch.is_empty


def test_buffers_are_taken_over_not_leaked(lane: FastLane) -> None:
    value = bytes(2**20)

    def fill() -> int:
        for _ in range(30):
            batch = lane.batch()
            batch.put(b"a", value)
            batch.put(b"b", value)
            lane._hand_over(batch)
            del batch
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = fill()
    assert fill() - before_kib < 50 * 1024


async def test_commits_leave_nothing_in_memory_but_what_was_written(db: Db, lane: FastLane) -> None:
    consumed = lane.batch()
    consumed.put(b"a", b"1")
    await lane.write(db, consumed)
    value = bytes(2**10)

    def commit_often(times: int) -> int:
        for _ in range(times):
            batch = lane.batch()
            batch.update({b"%d" % number: value for number in range(100)})
            lane._hand_over(batch)
            with pytest.raises(Error.Invalid, match="consumed"):
                commit(lane, db, consumed, 10.0)
            commit(lane, db, lane.batch(), 10.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = commit_often(100)
    # 100 KiB of rows and some handles, options and errors each time.
    assert commit_often(300) - before_kib < 10 * 1024
    await db.shutdown()


async def test_pages_of_any_size_follow_each_other(db: Db, lane: FastLane) -> None:
    batch, rows = lane.batch(), [(b"%05d" % number, b"%d" % number * 20) for number in range(2500)]
    batch.update(dict(rows))
    await lane.write(db, batch)
    scan = await lane.scan(db, b"0", b"9", reverse=False)
    pages = [await lane.next_rows(scan, limit, 10.0) for limit in (10, 1000, 400, 2000, 2000)]
    assert [len(page) for page in pages] == [10, 1000, 400, 1090, 0]
    assert [row for page in pages for row in page] == rows
    await db.shutdown()


async def test_read_buffers_are_freed(db: Db, lane: FastLane) -> None:
    batch = lane.batch()
    batch.put(b"a", bytes(2**20))
    await lane.write(db, batch)

    async def read() -> int:
        for _ in range(20):
            assert await lane.get(db, b"a") is not None
            for limit in (5, 500):
                assert len(await lane.next_rows(await lane.scan(db, b"", b"b", reverse=False), limit, 10.0)) == 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = await read()
    assert await read() - before_kib < 50 * 1024
    await db.shutdown()


@pytest.mark.usefixtures("forgotten")
def test_a_missing_symbol_means_the_public_lane(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fast_binding, "_PREFIX", "uniffi_renamed_")
    with caplog.at_level(logging.WARNING):
        assert isinstance(best_lane(), PublicLane)
        assert isinstance(best_lane(), PublicLane)
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert len(caplog.records) == 1 + is_built()


@pytest.mark.usefixtures("forgotten")
def test_a_changed_structure_means_the_public_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(binding._UniffiRustBuffer):  # type: ignore[misc]
        _fields_ = (("more", binding.ctypes.c_uint64),)

    monkeypatch.setattr(binding, "_UniffiRustBuffer", Changed)
    assert isinstance(best_lane(), PublicLane)


@pytest.mark.usefixtures("forgotten")
def test_rows_laid_out_otherwise_mean_the_public_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    converter = binding._UniffiFfiConverterTypeKeyValue
    write = converter.write
    monkeypatch.setattr(converter, "write", lambda value, buf: (write(value, buf), buf.write_u8(0)))
    assert isinstance(best_lane(), PublicLane)


@built
@pytest.mark.usefixtures("forgotten")
def test_a_function_declared_otherwise_means_the_fast_lane(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    function = binding._UniffiLib.uniffi_slatedb_uniffi_fn_method_writebatch_put
    monkeypatch.setattr(function, "argtypes", function.argtypes[:-1])
    with caplog.at_level(logging.WARNING):
        assert type(best_lane()) is FastLane
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@built
@pytest.mark.usefixtures("forgotten")
def test_other_sizes_of_structures_mean_the_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vars(native_binding)["_rows"], "STATUS_BYTES", 40)
    assert type(best_lane()) is FastLane


@pytest.mark.usefixtures("forgotten")
def test_without_the_compiled_module_the_fast_lane_is_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native_binding, "_rows", None)
    with caplog.at_level(logging.WARNING):
        assert type(best_lane()) is FastLane
    assert not caplog.records
