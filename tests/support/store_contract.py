"""The contract of every store: subclass `StoreContract`, give it `open` and `read`, and pytest runs it all."""

from collections.abc import AsyncIterator

import pytest

from ledgerq.eventlog.blobs import PIECE_BYTES
from ledgerq.eventlog.errors import Fenced, InvalidArgument, QueueClosed
from ledgerq.eventlog.slate.row_sums import RowSum, can_sum, sum_of, total
from ledgerq.eventlog.store import Anchor, ReadStore, Row, Store

ANCHOR = Anchor(7, 9, bytes(range(32)), 3, 1_700_000_000_000)

# What differs most from one kind of store to another: where the contract is slow, the quick tests are these.
SAMPLE = frozenset(
    {
        "test_a_reader_sees_what_is_durable_and_fences_nobody",
        "test_a_scan_does_not_see_later_writes",
        "test_blobs_are_streamed_in_and_out",
        "test_large_and_odd_values",
        "test_opening_fences_the_earlier_writer",
        "test_synced_data_and_the_anchor_survive_reopening",
    }
)


async def put_all(store: Store, rows: list[Row]) -> None:
    """Write `rows` in one batch and make them durable."""
    batch = store.batch()
    for key, value in rows:
        batch.put(key, value)
    await store.write(batch)
    await store.sync(ANCHOR)


async def scan_all(
    store: ReadStore, start: bytes, stop: bytes, *, reverse: bool = False, page_rows: int = 7
) -> list[Row]:
    """Every row of a scan, after checking its pages."""
    rows: list[Row] = []
    async for page in store.scan(start, stop, reverse=reverse, page_rows=page_rows):
        assert 1 <= len(page) <= page_rows
        rows += page
    return rows


class StoreContract:
    """The contract of `eventlog/store.py`. Two calls of `open`, or of `read`, in one test mean the same store."""

    async def open(self, *, take_over: bool = False) -> Store:
        """Open the test's store for writing."""
        raise NotImplementedError

    async def read(self, *, pinned: bool = False) -> ReadStore:
        """Open the test's store for reading."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self) -> AsyncIterator[Store]:
        """The test's store, open."""
        store = await self.open()
        yield store
        await store.close()

    async def test_a_write_is_read_back_before_it_is_durable(self, store: Store) -> None:
        batch = store.batch()
        batch.put(b"a", b"1")
        batch.put(b"nul\0key", b"\0value\0")
        batch.put(b"empty", b"")
        assert await store.get(b"a") is None
        await store.write(batch)
        assert await store.get(b"a") == b"1"
        assert await store.get(b"nul\0key") == b"\0value\0"
        assert await store.get(b"empty") == b""
        assert await store.get(b"none") is None

    async def test_the_last_change_of_a_key_in_a_batch_counts(self, store: Store) -> None:
        batch = store.batch()
        batch.put(b"a", b"1")
        batch.delete(b"a")
        batch.put(b"b", b"1")
        batch.put(b"b", b"2")
        batch.delete(b"c")
        batch.put(b"c", b"3")
        await store.write(batch)
        assert await scan_all(store, b"", b"z") == [(b"b", b"2"), (b"c", b"3")]

    async def test_blobs_are_streamed_in_and_out(self, store: Store) -> None:
        async def pieces(count: int, *, breaks: bool = False) -> AsyncIterator[bytes]:
            for number in range(count):
                yield bytes([number]) * PIECE_BYTES
            if breaks:
                raise ValueError("the sender is gone")

        # More than one part of a multipart upload.
        data = b"".join([piece async for piece in pieces(40)])
        await store.blobs.put("one", pieces(40))
        await store.blobs.put("two", pieces(1))
        with pytest.raises(ValueError, match="the sender"):
            await store.blobs.put("three", pieces(40, breaks=True))
        reader = await self.read()
        try:
            for reading in (store, reader):
                assert await reading.blobs.names() == ["one", "two"]
                assert b"".join([piece async for piece in reading.blobs.get("one")]) == data
                with pytest.raises(FileNotFoundError):
                    await anext(aiter(reading.blobs.get("three")))
        finally:
            await reader.close()
        for _ in range(2):
            await store.blobs.delete("one")
        assert await store.blobs.names() == ["two"]

    async def test_deleting_what_is_not_there_is_no_error(self, store: Store) -> None:
        batch = store.batch()
        batch.delete(b"a")
        await store.write(batch)
        await store.sync(ANCHOR)
        assert await store.get(b"a") is None

    async def test_an_empty_batch_changes_nothing(self, store: Store) -> None:
        await store.write(store.batch())
        await store.sync(ANCHOR)
        assert await scan_all(store, b"", b"\xff") == []

    async def test_large_and_odd_values(self, store: Store) -> None:
        rows = [
            (b"k" * 65_535, b"long key"),
            (bytes(range(256)), bytes(range(256)) * 4096),
            (b"\xff" * 9, b"\0" * 70_000),
        ]
        await put_all(store, rows)
        assert await store.get_many([key for key, _ in rows]) == [value for _, value in rows]
        assert await scan_all(store, b"\0", b"\xff" * 10) == sorted(rows)

    async def test_a_key_has_1_to_65535_bytes(self, store: Store) -> None:
        for key in (b"", b"k" * 65_536):
            batch = store.batch()
            with pytest.raises(InvalidArgument):
                batch.put(key, b"")
            with pytest.raises(InvalidArgument):
                batch.delete(key)
            batch.put(b"after", b"an error the batch still works")
            await store.write(batch)
            assert await store.get(b"after") is not None

    async def test_get_many_keeps_the_order_asked(self, store: Store) -> None:
        await put_all(store, [(b"%03d" % i, b"v%d" % i) for i in range(0, 200, 2)])
        dense = [b"%03d" % i for i in range(199, -1, -1)]
        assert await store.get_many(dense) == [b"v%d" % int(k) if int(k) % 2 == 0 else None for k in dense]
        sparse = [b"%03d" % i for i in range(0, 200, 20)] + [b"absent", b"000", b"000"]
        expected = [b"v%d" % i for i in range(0, 200, 20)] + [None, b"v0", b"v0"]
        assert await store.get_many(sparse) == expected
        assert await store.get_many([]) == []

    async def test_get_many_among_many_others(self, store: Store) -> None:
        await put_all(store, [(b"%05d" % i, b"%d" % i) for i in range(3000)])
        keys = [b"%05d" % i for i in range(100)] + [b"%05d" % i for i in range(100, 3000, 97)]
        assert await store.get_many(keys) == [b"%d" % int(key) for key in keys]

    @pytest.mark.parametrize("page_rows", [1, 3, 64, 1000])
    async def test_scans_are_in_order_and_half_open(self, store: Store, page_rows: int) -> None:
        rows = [(b"k%03d" % i, b"%d" % i) for i in range(150)]
        await put_all(store, [*rows, (b"j", b""), (b"l", b"")])
        for start, stop in ((b"k000", b"k150"), (b"k", b"l"), (b"k010", b"k011"), (b"k0100", b"k012\0")):
            expected = [row for row in rows if start <= row[0] < stop]
            assert await scan_all(store, start, stop, page_rows=page_rows) == expected
            assert await scan_all(store, start, stop, page_rows=page_rows, reverse=True) == expected[::-1]

    @pytest.mark.skipif(not can_sum(), reason="sums are not compiled")
    async def test_the_sum_of_a_range_is_that_of_its_rows(self, store: Store) -> None:
        rows = [(b"k%05d" % n, bytes([n % 251]) * (n % 40)) for n in range(2_345)]
        await put_all(store, [(b"a", b""), *rows, (b"z", b"")])
        secret = bytes(range(16))
        halves = [await store.sum_rows(*ends, secret) for ends in ((b"k", b"k01000"), (b"k01000", b"l"))]
        assert total([some for some in halves if some is not None]) == sum_of(dict(rows), secret)
        assert await store.sum_rows(b"k", b"k02000", secret) == sum_of(dict(rows[:2_000]), secret)
        assert await store.sum_rows(b"m", b"n", secret) == RowSum()

    async def test_an_empty_range_has_no_pages(self, store: Store) -> None:
        await put_all(store, [(b"a", b"1")])
        assert await scan_all(store, b"b", b"c") == []
        assert await scan_all(store, b"a", b"a") == []
        assert await scan_all(store, b"b", b"a", reverse=True) == []

    async def test_a_scan_does_not_see_later_writes(self, store: Store) -> None:
        await put_all(store, [(b"%03d" % i, b"old") for i in range(100)])
        pages = store.scan(b"0", b"1", page_rows=10)
        seen = await anext(pages)
        await put_all(store, [(b"%03d" % i, b"new") for i in range(110)])
        async for page in pages:
            seen += page
        assert seen == [(b"%03d" % i, b"old") for i in range(100)]

    async def test_a_scan_can_be_left_early(self, store: Store) -> None:
        await put_all(store, [(b"%03d" % i, b"") for i in range(300)])
        async for page in store.scan(b"0", b"9", reverse=True, page_rows=5):
            assert page[0][0] == b"299"
            break

    async def test_synced_data_and_the_anchor_survive_reopening(self) -> None:
        store = await self.open()
        assert await store.read_anchor() is None
        await put_all(store, [(b"a", b"1")])
        later = ANCHOR._replace(base_offset=9, next_offset=10, digest=b"\xff" * 32)
        await store.sync(later)
        await store.close()
        store = await self.open()
        assert await store.get(b"a") == b"1"
        assert await store.read_anchor() == later
        await store.close()

    async def test_opening_fences_the_earlier_writer(self) -> None:
        first = await self.open()
        await put_all(first, [(b"a", b"first")])
        second = await self.open(take_over=True)
        assert await second.get(b"a") == b"first"
        with pytest.raises(Fenced):
            await put_all(first, [(b"a", b"zombie")])
        assert isinstance(first.failure(), Fenced)
        with pytest.raises(Fenced):
            await put_all(first, [(b"a", b"zombie")])
        await put_all(second, [(b"b", b"second")])
        await first.close()
        assert await second.get(b"a") == b"first"
        assert second.failure() is None
        await second.close()

    async def test_closing_twice_is_fine_and_using_it_after_is_not(self) -> None:
        store = await self.open()
        await store.close()
        await store.close()
        with pytest.raises(QueueClosed):
            await store.sync(ANCHOR)
        assert isinstance(store.failure(), QueueClosed)

    async def test_a_reader_sees_what_is_durable_and_fences_nobody(self, store: Store) -> None:
        await put_all(store, [(b"a", b"1"), (b"b", b"2")])
        reader = await self.read()
        assert await reader.get(b"a") == b"1"
        assert await reader.get_many([b"b", b"x"]) == [b"2", None]
        assert await scan_all(reader, b"a", b"z", reverse=True) == [(b"b", b"2"), (b"a", b"1")]
        assert await reader.read_anchor() == ANCHOR
        await put_all(store, [(b"a", b"still the writer")])
        await reader.close()
        await reader.close()
        assert store.failure() is None

    async def test_a_pinned_reader_stays_at_its_commit(self, store: Store) -> None:
        await put_all(store, [(b"a", b"1")])
        reader = await self.read(pinned=True)
        await put_all(store, [(b"a", b"2"), (b"b", b"2")])
        assert await reader.get(b"a") == b"1"
        assert await scan_all(reader, b"", b"z") == [(b"a", b"1")]
        await reader.close()

    async def test_the_anchor_of_a_pinned_reader_is_in_its_view(self, store: Store) -> None:
        await put_all(store, [(b"a", b"1")])
        reader = await self.read(pinned=True)
        batch = store.batch()
        batch.put(b"a", b"2")
        await store.write(batch)
        await store.sync(ANCHOR._replace(base_offset=9, next_offset=10))
        assert await reader.get(b"a") == b"1"
        assert await reader.read_anchor() in (ANCHOR, None), "an anchor of what the view can't show"
        await reader.close()
