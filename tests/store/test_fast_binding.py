"""The fast lane: the same bytes as the public one, errors lifted, nothing leaked, and a way out when it is no use."""

import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slatedb.uniffi import Db, DbBuilder, Error, ObjectStore, Settings
from slatedb.uniffi._slatedb_uniffi import slatedb as binding

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.slate import fast_binding
from ledgerq.eventlog.slate.binding import PublicLane
from ledgerq.eventlog.slate.fast_binding import FastLane, best_lane
from ledgerq.eventlog.slate.fast_rows import parse_rows

_KEYS = st.binary(min_size=1, max_size=40)
_VALUES = st.binary(max_size=300)
_TIMES = st.integers(-(2**63), 2**63 - 1)


@pytest.fixture
async def db(tmp_path: Path) -> Db:
    """A database of SlateDB's own, which flushes only when asked."""
    settings = Settings.default()
    settings.set("flush_interval", "null")
    builder = DbBuilder(str(tmp_path / "db").strip("/"), ObjectStore.resolve("file:///"))
    builder.with_settings(settings)
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


@given(st.lists(st.tuples(_KEYS, _VALUES, st.integers(0, 2**64 - 1), _TIMES, st.none() | _TIMES), max_size=20))
def test_rows_are_read_as_the_binding_wrote_them(rows: list[tuple[bytes, bytes, int, int, int | None]]) -> None:
    values = [
        binding.KeyValue(key=key, value=value, seq=seq, create_ts=made, expire_ts=ends)
        for key, value, seq, made, ends in rows
    ]
    assert parse_rows(encoded(values)) == [(row[0], row[1]) for row in rows]


async def test_both_lanes_write_and_read_the_same(db: Db) -> None:
    fast, public = FastLane(), PublicLane()
    rows = [(b"a\0b", b"\0"), (b"b" * 300, b""), (bytes(range(1, 256)), bytes(range(256)) * 100)]
    for lane in (fast, public):
        batch = lane.batch()
        batch.put(b"gone", b"1")
        for key, value in rows:
            batch.put(key, value)
        batch.delete(b"gone")
        await lane.write(db, batch)
        await lane.flush_wal(db)
        for reader in (fast, public):
            assert [await reader.get(db, key) for key, _ in rows] == [value for _, value in rows]
            assert await reader.get(db, b"gone") is None
            for reverse in (False, True):
                found = await reader.next_rows(await reader.scan(db, b"", b"\xff", reverse=reverse), 10)
                assert found == sorted(rows, reverse=reverse)
    await db.shutdown()


async def test_a_flushed_write_is_durable(db: Db) -> None:
    lane = FastLane()
    batch = lane.batch()
    batch.put(b"a", b"1")
    handle = await lane.write(db, batch)
    assert db.status().durable_seq < handle.seqnum()
    await lane.flush_wal(db)
    assert db.status().durable_seq >= handle.seqnum()
    await db.shutdown()


async def test_errors_are_lifted(db: Db) -> None:
    lane = FastLane()
    batch = lane.batch()
    batch.put(b"a", b"1")
    await lane.write(db, batch)
    for _ in range(3):
        with pytest.raises(InvalidArgument, match="consumed"):
            batch.put(b"b", b"1")
        with pytest.raises(InvalidArgument, match="consumed"):
            batch.delete(b"b")
    with pytest.raises(Error.Invalid, match="consumed"):
        await lane.write(db, batch)
    with pytest.raises(Error.Invalid):
        await lane.scan(db, b"b", b"a", reverse=False)
    await db.shutdown()
    with pytest.raises(Error.Closed):
        await lane.get(db, b"a")
    with pytest.raises(Error.Closed):
        await lane.flush_wal(db)


@pytest.mark.parametrize("argument", ["text", None, 7])
def test_what_is_not_bytes_is_refused(argument: object) -> None:
    batch = FastLane().batch()
    with pytest.raises(TypeError):
        batch.put(argument, b"")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        batch.put(b"a", argument)  # type: ignore[arg-type]
    assert batch.is_empty


def test_buffers_are_taken_over_not_leaked() -> None:
    lane = FastLane()
    value = bytes(2**20)

    def fill() -> int:
        for _ in range(50):
            batch = lane.batch()
            batch.put(b"a", value)
            batch.put(b"a", value)
            del batch
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = fill()
    assert fill() - before_kib < 50 * 1024


async def test_read_buffers_are_freed(db: Db) -> None:
    lane = FastLane()
    batch = lane.batch()
    batch.put(b"a", bytes(2**20))
    await lane.write(db, batch)

    async def read() -> int:
        for _ in range(50):
            assert await lane.get(db, b"a") is not None
            assert len(await lane.next_rows(await lane.scan(db, b"", b"b", reverse=False), 5)) == 1
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
    assert [record.levelname for record in caplog.records] == ["WARNING"]


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
