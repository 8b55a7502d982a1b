"""The rebuild puts back the very same rows, whatever was wrong, records it, and then has nothing to do."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LogCorrupt, LogRolledBack, StoreNotFound
from ledgerq.eventlog.events import Event, Rebuilt
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.store import Anchor
from ledgerq.projections import replay as replay_module
from ledgerq.projections.audit import audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, pending_prefix, stats_key
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.repair import comparison as compare_module
from ledgerq.projections.repair import row_writer
from ledgerq.worker.options import QueueOptions
from tests.support.damaged_rows import (
    DAMAGES,
    Damage,
    Kinds,
    Ledger,
    copy_of,
    make_ledger,
    rows_in,
    with_projections,
)
from tests.support.histories import quick
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all
from tests.support.texts import with_texts


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


async def mend(ledger: Ledger, **arguments: Any) -> RebuildReport:
    """Rebuild what is durable."""
    given_here: dict[str, Any] = {"projections": with_projections(), **WHO, **arguments}
    return await rebuild(MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms), **given_here)


def log_of(disk: MemoryDisk) -> list[Event]:
    """The events that are there, with their texts."""
    stored = rows_in(disk, b"l/").items()
    return with_texts(disk.rows, (e for key, value in stored for e in decode_batch(keys.offset_of(key), value).events))


def user_rows(disk: MemoryDisk) -> dict[bytes, bytes]:
    """The rows of the users' projections, but for the count of rebuilds."""
    return {key: value for key, value in rows_in(disk, b"x/").items() if not key.endswith(b"Rebuilt")}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_each_kind_of_damage_is_mended_to_the_byte(pristine: Ledger, ledger: Ledger, damage: Damage) -> None:
    damage.do(ledger)
    wanted, found = rows_in(pristine.disk), rows_in(ledger.disk)
    put = sum(found.get(key) != value for key, value in wanted.items())
    removed = len(found.keys() - wanted.keys())
    report = await mend(ledger)
    assert rows_in(ledger.disk) == wanted
    assert user_rows(ledger.disk) == user_rows(pristine.disk)
    assert (report.rows_put, report.rows_deleted, report.changed) == (put, removed, True)
    events = log_of(ledger.disk)
    assert events[:-1] == log_of(pristine.disk)
    assert events[-1] == Rebuilt("ann", "because", ("jobs", "stats", "kinds", "states"), put, removed)
    if damage.name != "the rows of a swept job":  # its payload came back, too, which only a deep audit sees
        await check_ledger(ledger.disk)
    rows = dict(ledger.disk.rows)
    again = await mend(ledger)
    assert not again.changed
    assert dict(ledger.disk.rows) == rows, "a second rebuild writes nothing, not even to the log"
    report_ = await audit(MemoryReader(ledger.disk), clock=ManualClock(), projections=with_projections())
    assert report_.clean


async def test_a_clean_ledger_is_left_alone(ledger: Ledger) -> None:
    rows = dict(ledger.disk.rows)
    report = await mend(ledger)
    assert (report.changed, report.rows_put, report.rows_deleted) == (False, 0, 0)
    assert report.jobs == 16
    assert dict(ledger.disk.rows) == rows


def test_any_damage_at_all_is_mended(pristine: Ledger) -> None:
    index_keys = list(rows_in(pristine.disk))
    keys_ = st.sampled_from(index_keys) | st.binary(max_size=30).map(lambda tail: INDEX_PREFIX + tail)
    values = st.none() | st.binary(max_size=20) | st.sampled_from([*rows_in(pristine.disk).values()])

    @quick
    @given(st.dictionaries(keys_, values, min_size=1, max_size=30), st.integers(0, 5))
    def check(changes: dict[bytes, bytes | None], held_back: int) -> None:
        ledger = pristine._replace(disk=copy_of(pristine.disk))
        for key, value in changes.items():
            if value is None:
                ledger.disk.rows.pop(key, None)
            else:
                ledger.disk.rows[key] = value
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare_module, "_STRAY_ROWS", held_back)
            asyncio.run(mend(ledger))
        assert rows_in(ledger.disk) == rows_in(pristine.disk)

    check()


async def test_thousands_of_wrong_rows_are_mended_in_one_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_module, "_STRAY_ROWS", 100)
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 3000)
        await rig.queue.close()
        before = rows_in(rig.disk)
        for key in rows_in(rig.disk, pending_prefix("q")):
            rig.disk.rows[key] = bytes(16)
        ledger = Ledger(rig.disk, rig.clock.now_ms(), {}, {})
        report = await mend(ledger, projections=[])
        assert (report.rows_put, report.rows_deleted) == (3000, 0)
        assert rows_in(rig.disk) == before
        await rig.open()
        assert len(await claim_all(rig.queue)) == 3000


@pytest.mark.parametrize("bounds", [{"_BATCH_ROWS": 10}, {"_BATCH_BYTES": 500}])
async def test_what_is_set_at_once_is_written_in_batches_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch, bounds: dict[str, int]
) -> None:
    for name, bound in bounds.items():
        monkeypatch.setattr(row_writer, name, bound)
    disk = MemoryDisk()
    store = MemoryStore(disk)
    sizes: list[int] = []
    commit = store.commit

    async def counted(batch: Any, anchor: Anchor) -> None:
        before = len(disk.rows)
        await commit(batch, anchor)
        sizes.append(len(disk.rows) - before)

    monkeypatch.setattr(store, "commit", counted)
    writer = row_writer.RowWriter(store, Anchor(0, 0, bytes(32), 0, 0), b"marker")
    await writer.set_many({b"x/%d" % number: bytes(50) for number in range(100)})
    await writer.flush()
    assert sum(sizes) == 100 + 1
    assert max(sizes) <= 11
    assert (writer.rows_put, writer.rows_deleted) == (100, 0)


async def test_rows_are_made_while_those_before_are_being_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 10)
    may_end, under_way = asyncio.Event(), 0

    async def fault(call: str) -> None:
        nonlocal under_way
        if call == "write:before":
            under_way += 1
            assert under_way == 1, "one commit at a time"
            await may_end.wait()
        elif call == "sync:after":
            under_way -= 1

    disk = MemoryDisk()
    writer = row_writer.RowWriter(MemoryStore(disk, fault=fault), Anchor(0, 0, bytes(32), 0, 0), b"marker")
    async with writer:
        await writer.set_many({b"x/%d" % number: b"" for number in range(10)})
        await writer.set_many({b"y/%d" % number: b"" for number in range(9)})
        assert under_way == 1
        assert disk.rows == {}
        third = asyncio.create_task(writer.set(b"z", b""))
        await asyncio.sleep(0)
        assert not third.done(), "more than two batches are never held"
        may_end.set()
        await third
        await writer.flush()
        assert len(disk.rows) == 21


async def test_a_rebuild_that_fails_leaves_no_commit_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 10)

    async def fault(_: str) -> None:
        await asyncio.sleep(0)

    disk = MemoryDisk()
    writer = row_writer.RowWriter(MemoryStore(disk, fault=fault), Anchor(0, 0, bytes(32), 0, 0), b"marker")
    with pytest.raises(LookupError):
        async with writer:
            await writer.set_many({b"x/%d" % number: b"" for number in range(10)})
            assert disk.rows == {}
            raise LookupError
    assert len(disk.rows) == 11


async def test_a_queue_goes_on_from_what_was_rebuilt(ledger: Ledger) -> None:
    for key in rows_in(ledger.disk):
        del ledger.disk.rows[key]
    await mend(ledger)
    rig = Rig(projections=with_projections())
    rig.disk = ledger.disk
    rig.clock.set(ledger.clock_ms)
    async with rig:
        assert [c.payload for c in await claim_all(rig.queue, "mail")] == [b"0", b"1", b"2", b"claimed", b"u"]
        assert (await rig.queue.enqueue("other", b"again", unique_key="k")).created is False
        assert (await rig.queue.stats("other")).paused


# ---------------------------------------------------------------------- hints


async def test_a_hint_that_leads_is_removed_and_one_that_lags_stays(ledger: Ledger) -> None:
    right = rows_in(ledger.disk, keys.HINT_PREFIX)
    assert right.pop(keys.hint_key("bulk"))
    assert len(right) == 3
    ledger.disk.rows[keys.hint_key("bulk")] = b"\xff" * 12
    ledger.disk.rows[keys.HINT_PREFIX + b"\xff"] = bytes(12)
    report = await mend(ledger)
    assert (report.rows_put, report.rows_deleted) == (0, 2)
    assert rows_in(ledger.disk, keys.HINT_PREFIX) == right
    assert not (await mend(ledger)).changed


# ---------------------------------------------------------------------- one projection


def damage_all_kinds(ledger: Ledger) -> None:
    """A row of the jobs, the counters and of both of the user's projections is wrong."""
    del ledger.disk.rows[next(iter(rows_in(ledger.disk, pending_prefix("mail"))))]
    ledger.disk.rows[stats_key("mail")] = b"?"
    ledger.disk.rows[keys.projection_rows_prefix("kinds") + b"Acked"] = b"99"
    del ledger.disk.rows[next(iter(rows_in(ledger.disk, keys.projection_rows_prefix("states"))))]


RANGE_OF = {"jobs": "pending", "stats": "stats", "kinds": "projection kinds", "states": "projection states"}


@pytest.mark.parametrize("only", RANGE_OF)
async def test_one_projection_is_rebuilt_by_name_and_the_others_are_left(ledger: Ledger, only: str) -> None:
    damage_all_kinds(ledger)
    report = await mend(ledger, only=only)
    assert (report.names, report.rows_put, report.rows_deleted) == ((only,), 1, 0)
    assert log_of(ledger.disk)[-1] == Rebuilt("ann", "because", (only,), 1, 0)
    audited = await audit(MemoryReader(ledger.disk), clock=ManualClock(), projections=with_projections())
    assert {difference.range_name for difference in audited.differences} == set(RANGE_OF.values()) - {RANGE_OF[only]}
    assert not (await mend(ledger, only=only)).changed


async def test_a_projection_that_is_new_is_built_by_name(ledger: Ledger) -> None:
    for key in [*rows_in(ledger.disk, b"x/"), *rows_in(ledger.disk, keys.PROJECTION_PREFIX)]:
        del ledger.disk.rows[key]
    report = await mend(ledger, only="kinds", projections=[Kinds()])
    assert report.changed
    kinds = {key: value for key, value in rows_in(ledger.disk, b"x/").items() if key.startswith(b"x/kinds\0")}
    assert kinds[b"x/kinds\0Enqueued"] == b"17"
    assert kinds[b"x/kinds\0Rebuilt"] == b"1"
    assert not (await mend(ledger, only="kinds", projections=[Kinds()])).changed


@pytest.mark.parametrize("name", ["", "job", "kinds"])
async def test_an_unknown_name_is_refused_before_anything_is_written(ledger: Ledger, name: str) -> None:
    damage_all_kinds(ledger)
    rows = dict(ledger.disk.rows)
    with pytest.raises(InvalidArgument, match="there is no projection"):
        await mend(ledger, only=name, projections=[])
    assert dict(ledger.disk.rows) == rows


@pytest.mark.parametrize("only", ["jobs", "kinds"])
async def test_one_projection_alone_is_refused_where_all_are_concerned(ledger: Ledger, only: str) -> None:
    with pytest.raises(InvalidArgument, match="the log is to be cut"):
        await mend(ledger, only=only, until=5)
    ledger.disk.rows[keys.REBUILD_KEY] = b"\x91\xc0"
    rows = dict(ledger.disk.rows)
    with pytest.raises(InvalidArgument, match="must be finished"):
        await mend(ledger, only=only)
    assert dict(ledger.disk.rows) == rows


# ---------------------------------------------------------------------- the log


async def test_a_rebuild_has_an_epoch_of_its_own(ledger: Ledger) -> None:
    damage_all_kinds(ledger)
    before = [decode_batch(keys.offset_of(k), v) for k, v in rows_in(ledger.disk, b"l/").items()][-1]
    await mend(ledger)
    after = [decode_batch(keys.offset_of(k), v) for k, v in rows_in(ledger.disk, b"l/").items()][-1]
    assert (after.epoch, after.base_offset) == (before.epoch + 1, before.next_offset)
    assert ledger.disk.anchor is not None
    assert (ledger.disk.anchor.epoch, ledger.disk.anchor.next_offset) == (after.epoch, after.next_offset)


async def test_a_rebuild_fences_the_writer_before(ledger: Ledger) -> None:
    store = MemoryStore(ledger.disk)
    await mend(ledger)
    assert store.failure() is not None


async def test_a_log_that_does_not_verify_is_refused_with_its_offset_and_nothing_is_written(ledger: Ledger) -> None:
    damage_all_kinds(ledger)
    base = [key for key, value in rows_in(ledger.disk, keys.LOG_PREFIX).items() if b"mail" in value][1]
    ledger.disk.rows[base] = ledger.disk.rows[base].replace(b"mail", b"male")
    rows = dict(ledger.disk.rows)
    with pytest.raises(LogCorrupt) as caught:
        await mend(ledger)
    assert caught.value.offset == keys.offset_of(base)
    assert dict(ledger.disk.rows) == rows


async def test_a_log_that_was_rolled_back_is_refused(ledger: Ledger) -> None:
    assert ledger.disk.anchor is not None
    ledger.disk.anchor = ledger.disk.anchor._replace(next_offset=ledger.disk.anchor.next_offset + 5)
    with pytest.raises(LogRolledBack):
        await mend(ledger)


async def test_a_store_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StoreNotFound):
        await mend(ledger._replace(disk=MemoryDisk()))
    ledger.disk.rows[keys.FORMAT_KEY] = b"99"
    with pytest.raises(FormatTooNew):
        await mend(ledger)


# ---------------------------------------------------------------------- memory


@pytest.mark.parametrize("rounds", [10, 100])
async def test_memory_goes_with_the_live_jobs_not_with_the_logs_length(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 0

    class Watched(Fold):
        def apply_batch(self, batch: Any) -> None:
            nonlocal most
            super().apply_batch(batch)
            most = max(most, len(self.jobs))

    monkeypatch.setattr(replay_module, "Fold", Watched)
    async with Rig(default=QueueOptions(keep_done_s=1.0)) as rig:
        for _ in range(rounds):
            await rig.queue.enqueue_many("q", [b"x"] * 10)
            await rig.queue.ack_many(await claim_all(rig.queue))
            await rig.advance(1)
        await rig.queue.close()
        rig.disk.rows[stats_key("q")] = b"?"
        report = await mend(Ledger(rig.disk, rig.clock.now_ms(), {}, {}), projections=[])
        assert report.verified.events >= rounds * 40
        assert report.jobs == 0
        assert most <= 20
