"""The store on SlateDB: the contract on both lanes, and what only a store on files has."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from slatedb.uniffi import Settings

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.errors import (
    ClockWentBack,
    Fenced,
    InvalidArgument,
    LogPoisoned,
    OutcomeUnknown,
    QueueClosed,
    StoreNotFound,
    StoreUnavailable,
    WrongProcess,
)
from ledgerq.eventlog.files.upkeep import Upkeep
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.binding import Lane, PublicLane
from ledgerq.eventlog.slate.error_mapping import translate
from ledgerq.eventlog.slate.fast_binding import FastLane
from ledgerq.eventlog.slate.lanes import best_lane
from ledgerq.eventlog.slate.native_binding import NativeLane, is_built
from ledgerq.eventlog.slate.opening import open_slate
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.slate_reader import open_slate_reader
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.eventlog.store import ReadStore, Store
from ledgerq.eventlog.stores import open_reader, open_store
from tests.support.loops import set_forward
from tests.support.store_contract import ANCHOR, SAMPLE, StoreContract, put_all, scan_all


class TestSlateStoreFastLane(StoreContract):
    """The contract on the fast lane, with fsync."""

    QUICK: frozenset[str] | None = SAMPLE if is_built() else None
    lane: Lane = FastLane()
    options = StoreOptions()

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.location = parse_location(f"file://{tmp_path}/store")

    async def open(self, *, take_over: bool = False) -> Store:
        """A store in a folder."""
        return await open_slate(
            self.location, clock=SystemClock(), options=self.options, take_over=take_over, lane=self.lane
        )

    async def read(self, *, pinned: bool = False) -> ReadStore:
        """A reader of the same folder."""
        return await open_slate_reader(self.location, poll_interval_ms=20, pinned=pinned, lane=self.lane)


@pytest.mark.skipif(not is_built(), reason="the compiled module was not built")
class TestSlateStoreNativeLane(TestSlateStoreFastLane):
    """The contract on the native lane, with fsync."""

    QUICK = None

    @pytest.fixture(autouse=True)
    def _lane(self) -> None:
        self.lane = NativeLane()


class TestSlateStorePublicLane(TestSlateStoreFastLane):
    """The contract on the public lane, without fsync."""

    QUICK = SAMPLE
    lane = PublicLane()
    options = StoreOptions(fsync=False)


async def opened(folder: Path, *, take_over: bool = False, **options: object) -> SlateStore:
    """A store in `folder` with some options."""
    return await open_slate(
        parse_location(str(folder)),
        clock=SystemClock(),
        take_over=take_over,
        options=StoreOptions(**options),  # type: ignore[arg-type]
    )


def test_the_fastest_lane_is_used_here() -> None:
    assert type(best_lane()) is (NativeLane if is_built() else FastLane)


async def test_open_store_by_url(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/s"
    with pytest.raises(StoreNotFound, match="there is no store"):
        await open_store(url, clock=SystemClock(), create=False)
    with pytest.raises(StoreNotFound):
        await open_reader(url)
    assert not (tmp_path / "s").exists()
    store = await open_store(url, clock=SystemClock())
    assert store.location == url
    await put_all(store, [(b"a", b"1")])
    reader = await open_reader(url)
    assert await reader.get(b"a") == b"1"
    await reader.close()
    await store.close()
    memory = await open_store("memory:///", clock=SystemClock())
    await put_all(memory, [(b"a", b"1")])
    await memory.close()
    with pytest.raises(StoreNotFound):
        await open_reader("memory:///")


async def test_a_reader_follows_the_writer(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s")
    await put_all(store, [(b"a", b"0")])
    reader = await open_slate_reader(parse_location(str(tmp_path / "s")), poll_interval_ms=5)
    await put_all(store, [(b"a", b"1")])
    async with asyncio.timeout(60):
        while await reader.get(b"a") != b"1":
            await asyncio.sleep(0.002)
    await reader.close()
    await store.close()


async def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s")
    await put_all(store, [(b"a", b"0")])
    await store.close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    reader = await open_slate_reader(parse_location(str(tmp_path / "s")), poll_interval_ms=5)
    assert await scan_all(reader, b"", b"z") == [(b"a", b"0")]
    await reader.close()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


async def test_a_pinned_view_that_moved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path / "s")
    await put_all(store, [(b"a", b"0")])
    # A reader that follows, pinned by hand: SlateDB moves it as it might move one that was pinned too early.
    reader = await open_slate_reader(parse_location(str(tmp_path / "s")), poll_interval_ms=5)
    reader.pin(None)
    await put_all(store, [(b"a", b"1")])
    with pytest.raises(StoreUnavailable, match="moved"):
        async with asyncio.timeout(60):
            while True:
                assert await reader.get(b"a") == b"0"
                await asyncio.sleep(0.002)
    await reader.close()
    await store.close()


async def test_a_reader_whose_files_are_gone_says_so(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s")
    await put_all(store, [(b"a", b"0")])
    await store.close()
    reader = await open_slate_reader(parse_location(str(tmp_path / "s")), pinned=True)
    for path in (tmp_path / "s/compacted").iterdir():
        path.unlink()
    with pytest.raises(StoreUnavailable, match="open it again"):
        await reader.get(b"a")
    await reader.close()


async def test_closing_waits_for_a_commit_that_was_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path / "s")
    hangs, released = threading.Event(), threading.Event()
    fsync = os.fsync

    def hang(fd: int) -> None:
        hangs.set()
        assert released.wait(60)
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", hang)
        commit = asyncio.ensure_future(put_all(store, [(b"a", b"1")]))
        assert await asyncio.to_thread(hangs.wait, 60)
        set_forward(monkeypatch, 2 * StoreOptions().commit_timeout_s)
        with pytest.raises(OutcomeUnknown):
            await commit
    asyncio.get_running_loop().call_later(0.02, released.set)
    await store.close()
    # The commit was durable after all, which only opening again can tell.
    store = await opened(tmp_path / "s")
    assert await store.get(b"a") == b"1"
    assert await store.read_anchor() == ANCHOR
    await store.close()


async def test_each_commit_syncs_its_log_file_then_the_anchor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path / "s")
    await put_all(store, [(b"warm", b"up")])
    synced: list[str] = []

    def noted(kind: str, sync: Callable[[int], None]) -> Callable[[int], None]:
        def note(fd: int) -> None:
            synced.append(kind + " " + Path(f"/proc/self/fd/{fd}").resolve().relative_to(tmp_path / "s").as_posix())
            sync(fd)

        return note

    monkeypatch.setattr(os, "fsync", noted("fsync", os.fsync))
    monkeypatch.setattr(os, "fdatasync", noted("fdatasync", os.fdatasync))
    newest = max(int(path.stem) for path in (tmp_path / "s/wal").glob("*.sst"))
    await put_all(store, [(b"a", b"1")])
    assert synced == [f"fsync wal/{newest + 1:020d}.sst", "fsync wal", "fdatasync anchor"]
    await store.close()


async def test_without_fsync_nothing_is_synced_but_the_anchor_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise AssertionError("synced")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "fdatasync", refuse)
    store = await opened(tmp_path / "s", fsync=False)
    await put_all(store, [(b"a", b"1")])
    assert await store.read_anchor() == ANCHOR
    await store.close()


async def test_a_failed_fsync_poisons_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await opened(tmp_path / "s")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutcomeUnknown, match="may or may not be in the log"):
            await put_all(store, [(b"a", b"1")])
    # Another fsync would succeed and prove nothing.
    with pytest.raises(LogPoisoned):
        await put_all(store, [(b"b", b"1")])
    assert isinstance(store.failure(), OutcomeUnknown)
    await store.close()


async def test_what_a_killed_writer_left_unsynced_is_synced_at_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await opened(tmp_path / "s", fsync=False)
    await put_all(first, [(b"a", b"1")])
    left = {path.name for path in (tmp_path / "s/wal").iterdir()}
    synced: set[str] = set()
    fsync = os.fsync

    def note(fd: int) -> None:
        synced.add(Path(f"/proc/self/fd/{fd}").resolve().name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    second = await opened(tmp_path / "s", take_over=True)
    assert left | {"wal", "manifest", "s", tmp_path.name} <= synced
    await first.close()
    await second.close()


async def test_a_write_that_never_ends_has_an_unknown_outcome(tmp_path: Path) -> None:
    class StuckLane(FastLane):
        async def flush_wal(self, db: object) -> None:
            await asyncio.Event().wait()

    store = await open_slate(
        parse_location(str(tmp_path / "s")),
        clock=SystemClock(),
        options=StoreOptions(commit_timeout_s=0.05),
        lane=StuckLane(),
    )
    with pytest.raises(OutcomeUnknown, match="was not confirmed within"):
        await put_all(store, [(b"a", b"1")])
    with pytest.raises(LogPoisoned):
        await store.write(store.batch())
    await store.close()


async def test_a_batch_can_be_written_once(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s")
    batch = store.batch()
    batch.put(b"a", b"1")
    await store.write(batch)
    with pytest.raises(InvalidArgument, match="consumed"):
        await store.write(batch)
    assert store.failure() is None
    await store.close()


async def test_more_than_the_memory_limits_can_be_written_without_a_sync(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s", l0_sst_bytes=2**20, max_unflushed_bytes=2**21, fsync=False)
    value = os.urandom(2**17)
    async with asyncio.timeout(60):
        for i in range(40):
            batch = store.batch()
            batch.put(b"%03d" % i, value)
            await store.write(batch)
        await store.sync(ANCHOR)
    assert len(await scan_all(store, b"0", b"1", page_rows=9)) == 40
    await store.close()


async def test_many_commits_leave_few_log_files_to_read(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s", max_wal_flushes_before_l0_flush=10, fsync=False)
    for i in range(25):
        await put_all(store, [(b"%03d" % i, b"")])
    async with asyncio.timeout(60):
        while len(list((tmp_path / "s").glob("compacted/*.sst"))) < 2:
            await asyncio.sleep(0.002)
    await store.close()


async def test_upkeep_syncs_and_collects_by_the_clock(tmp_path: Path) -> None:
    clock = ManualClock()
    options = StoreOptions(gc_interval_s=1, gc_age_s=0.001)
    store = await open_slate(parse_location(str(tmp_path / "s")), clock=clock, options=options)
    for i in range(5):
        await put_all(store, [(b"%03d" % i, b"")])
    await store.close()
    store = await open_slate(parse_location(str(tmp_path / "s")), clock=clock, options=options)
    before = len(list((tmp_path / "s/wal").glob("*.sst")))
    async with asyncio.timeout(60):
        while len(list((tmp_path / "s/wal").glob("*.sst"))) >= before:
            clock.advance(seconds=1)
            await asyncio.sleep(0.005)
    assert len(await scan_all(store, b"0", b"1")) == 5
    await store.close()
    reopened = await opened(tmp_path / "s")
    assert len(await scan_all(reopened, b"0", b"1")) == 5
    await reopened.close()


async def test_the_upkeep_of_a_fenced_writer_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, place = ManualClock(), parse_location(str(tmp_path / "s"))
    store = await open_slate(place, clock=clock, options=StoreOptions(gc_interval_s=1))
    other = await open_slate(place, clock=SystemClock(), take_over=True)
    async with asyncio.timeout(60):
        while store.failure() is None:
            await asyncio.sleep(0.01)
    rounds: list[object] = []

    async def sync(self: Upkeep) -> None:
        rounds.append(self)

    monkeypatch.setattr(Upkeep, "sync", sync)
    async with asyncio.timeout(60):
        while store._tasks:
            clock.advance(seconds=1)
            await asyncio.sleep(0.005)
    assert rounds == []
    monkeypatch.undo()
    await store.close()
    await other.close()


async def test_a_writer_that_never_lives_for_a_whole_interval_removes_old_files_too(tmp_path: Path) -> None:
    clock = ManualClock()
    options = StoreOptions(gc_interval_s=60, gc_age_s=0.001)
    store = await open_slate(parse_location(str(tmp_path / "s")), clock=clock, options=options)
    for i in range(5):
        await put_all(store, [(b"%03d" % i, b"")])
    await store.close()
    store = await open_slate(parse_location(str(tmp_path / "s")), clock=clock, options=options)
    before = len(list((tmp_path / "s/wal").glob("*.sst")))
    await asyncio.sleep(0)  # the upkeep begins to wait
    clock.advance(seconds=10)
    async with asyncio.timeout(60):
        while len(list((tmp_path / "s/wal").glob("*.sst"))) >= before:
            await asyncio.sleep(0.005)
    await store.close()


async def test_an_idle_writer_notices_that_it_was_fenced(tmp_path: Path) -> None:
    settings = {"manifest_poll_interval": "10ms"}
    first = await opened(tmp_path / "s", settings=settings)
    second = await opened(tmp_path / "s", take_over=True)
    async with asyncio.timeout(60):
        while first.failure() is None:
            await asyncio.sleep(0.005)
    assert isinstance(first.failure(), Fenced)
    await first.close()
    await second.close()


async def test_a_forked_child_is_told_so(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.batch()
        except WrongProcess as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert "spawn" in message
    await store.close()


def test_clock_errors_carry_both_times() -> None:
    from slatedb.uniffi import CloseReason, Error, InternalError

    text = "Invalid error: invalid clock tick, must be monotonic. last_tick=`10`, next_tick=`5`"
    error = translate(Error.Invalid(text), "u")
    assert isinstance(error, ClockWentBack)
    assert (error.now_ms, error.last_ms) == (5, 10)
    assert isinstance(translate(Error.Closed(CloseReason.FENCED, "x"), "u"), Fenced)
    assert isinstance(translate(Error.Closed(CloseReason.CLEAN, "x"), "u"), QueueClosed)
    assert isinstance(translate(Error.Closed(CloseReason.PANIC, "x"), "u"), LogPoisoned)
    assert isinstance(translate(Error.Unavailable("x"), "u"), StoreUnavailable)
    assert isinstance(translate(InternalError("panicked"), "u"), LogPoisoned)
    assert isinstance(translate(Error.Data("x"), "u"), LogPoisoned)
    outrun = "Data error: transactional object (e.g. manifest) version already exists"
    assert isinstance(translate(Error.Data(outrun), "u"), Fenced)
    assert isinstance(translate(Error.Invalid("bad key"), "u"), InvalidArgument)


def test_our_settings_are_settings_of_slatedb() -> None:
    defaults = json.loads(Settings.default().to_json_string())
    for embedded_gc in (True, False):
        options = StoreOptions()
        ours = json.loads(options.slate_settings(embedded_gc=embedded_gc).to_json_string())
        assert ours["flush_interval"] is None
        assert ours["l0_sst_size_bytes"] == options.l0_sst_bytes
        for name in options.slate_values(embedded_gc=embedded_gc):
            place = defaults
            for part in name.split("."):
                assert part in place, name
                place = place[part]
    collected = json.loads(StoreOptions().slate_settings(embedded_gc=True).to_json_string())[
        "garbage_collector_options"
    ]
    assert collected["wal_options"] == {"interval": "60s", "min_age": "60s", "dry_run": False}
    assert collected["wal_fence_options"]["dry_run"] is True
    with pytest.raises(InvalidArgument, match="no setting 'l0_size'"):
        StoreOptions(settings={"l0_size": 1}).slate_settings(embedded_gc=True)


@pytest.mark.parametrize(
    "options",
    [
        {"open_timeout_s": 0},
        {"commit_timeout_s": -1},
        {"read_timeout_s": 0},
        {"cache_bytes": 10},
        {"max_wal_flushes_before_l0_flush": 0},
    ],
)
def test_options_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        StoreOptions(**options)  # type: ignore[arg-type]
