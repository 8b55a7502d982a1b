"""A rebuild that ends at any call of its store, in any way, is finished by the next one as if nothing had happened."""

import asyncio
from functools import partial
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import NotRebuilt
from ledgerq.eventlog.events import Rebuilt
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair import row_writer
from ledgerq.worker.queue import Queue
from tests.support.crashes import ENDS, Crash, End, crashed_run
from tests.support.damaged_rows import DAMAGES, Ledger, copy_of, make_ledger, rows_in, with_projections
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.tiers import sampled


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 4)


def damaged(pristine: Ledger) -> Ledger:
    """Something is wrong in every range."""
    ledger = pristine._replace(disk=copy_of(pristine.disk))
    for name in ("pending: the whole range is gone", "a job in an older state", "unique: a row of nobody"):
        next(damage for damage in DAMAGES if damage.name == name).do(ledger)
    for name in ("wrong counters", "claimed: a row of nobody", "finished: a row is missing"):
        next(damage for damage in DAMAGES if damage.name == name).do(ledger)
    ledger.disk.rows[keys.hint_key("other")] = b"\xff" * 12
    ledger.disk.rows[keys.projection_rows_prefix("kinds") + b"Acked"] = b"99"
    for key in rows_in(ledger.disk, keys.projection_rows_prefix("states")):
        del ledger.disk.rows[key]
    return ledger


async def work(store: MemoryStore, ledger: Ledger, **arguments: Any) -> object:
    """Rebuild."""
    given: dict[str, Any] = {"projections": with_projections(), **WHO, **arguments}
    return await rebuild(store, clock=ManualClock(ledger.clock_ms), **given)


def all_but_the_log(disk: MemoryDisk) -> dict[bytes, bytes]:
    """What must be the same however often it took: the numbers in the log's last event may not be."""
    return {key: value for key, value in disk.rows.items() if key[:2] != b"l/" and key != keys.HEAD_KEY}


def rebuilt_events(disk: MemoryDisk) -> list[Rebuilt]:
    """The events of finished rebuilds."""
    batches = [decode_batch(keys.offset_of(key), value) for key, value in rows_in(disk, b"l/").items()]
    return [event for batch in batches for event in batch.events if isinstance(event, Rebuilt)]


async def check_between(disk: MemoryDisk, ledger: Ledger) -> None:
    """A queue opens before the rebuild or after it, never on a part of it."""
    copy = copy_of(disk)
    opening = Queue.open(store=MemoryStore(copy), clock=ManualClock(ledger.clock_ms))
    if keys.REBUILD_KEY in disk.rows:
        with pytest.raises(NotRebuilt, match="rebuild-projections"):
            await opening
        assert dict(copy.rows) == dict(disk.rows)
    else:
        await (await opening).close()


async def crash_everywhere(pristine: Ledger, end: End, again: list[dict[str, Any]], **arguments: Any) -> None:
    """Crash at each call of a rebuild with these arguments, then run it once more with each of the others."""
    whole = damaged(pristine)
    count = Crash()
    assert await crashed_run(whole.disk, lambda store: work(store, whole, **arguments), count)
    assert len(count.calls) > 15
    written = halfway = 0
    for at, call in enumerate(count.calls):
        ledger = damaged(pristine)
        before = dict(ledger.disk.rows)
        await crashed_run(ledger.disk, partial(work, ledger=ledger, **arguments), Crash(at, end))
        written += dict(ledger.disk.rows) != before
        halfway += keys.REBUILD_KEY in ledger.disk.rows
        await check_between(ledger.disk, ledger)
        for more in again:
            # What was not begun is asked for again as it was.
            next_arguments = more if keys.REBUILD_KEY in ledger.disk.rows else arguments
            copy = ledger._replace(disk=copy_of(ledger.disk))
            await work(MemoryStore(copy.disk), copy, **next_arguments)
            assert all_but_the_log(copy.disk) == all_but_the_log(whole.disk), f"after {end} at call {at}, {call}"
            assert len(rebuilt_events(copy.disk)) == 1
            await check_ledger(copy.disk)
            rows = dict(copy.disk.rows)
            await work(MemoryStore(copy.disk), copy)
            assert dict(copy.disk.rows) == rows, "and then there is nothing to do"
    assert written > halfway > 4


@pytest.mark.parametrize("end", sampled(ENDS))
async def test_a_rebuild_that_is_interrupted_anywhere_is_finished_by_the_next(pristine: Ledger, end: End) -> None:
    await crash_everywhere(pristine, end, [{}])


@pytest.mark.proof
@pytest.mark.parametrize("end", sampled(ENDS))
async def test_a_cut_that_is_interrupted_anywhere_is_finished_by_the_next(pristine: Ledger, end: End) -> None:
    until = list(rows_in(pristine.disk, b"l/"))[-9]
    offset = keys.offset_of(until)
    await crash_everywhere(pristine, end, [{}, {"until": offset}, {"until": offset + 5}], until=offset)


@pytest.mark.parametrize("end", sampled(ENDS))
async def test_a_cut_within_a_commit_is_finished_by_the_next(pristine: Ledger, end: End) -> None:
    batches = [decode_batch(keys.offset_of(key), value) for key, value in rows_in(pristine.disk, b"l/").items()]
    batch = next(batch for batch in batches[5:] if len(batch.events) > 1)
    await crash_everywhere(pristine, end, [{}, {"until": batch.base_offset + 1}], until=batch.base_offset + 1)


@pytest.mark.parametrize("end", sampled(ENDS))
async def test_one_projection_that_is_interrupted_is_finished_with_all(pristine: Ledger, end: End) -> None:
    count = Crash()
    whole = damaged(pristine)
    await crashed_run(whole.disk, lambda store: work(store, whole, only="jobs"), count)
    for at in range(len(count.calls)):
        ledger = damaged(pristine)
        await crashed_run(ledger.disk, partial(work, ledger=ledger, only="jobs"), Crash(at, end))
        await check_between(ledger.disk, ledger)
        await work(MemoryStore(ledger.disk), ledger)
        assert rows_in(ledger.disk) == rows_in(pristine.disk)
        await check_ledger(ledger.disk)
