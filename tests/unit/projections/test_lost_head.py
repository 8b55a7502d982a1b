"""A store whose head row is gone, though the log is whole: nothing is written over it, and the way out is named."""

import asyncio

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch, decode_head, encode_head
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.log import Chain
from ledgerq.eventlog.memory import MemoryReader, MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.projections.rebuild import rebuild
from ledgerq.worker.queue import Queue
from tests.support.damaged_rows import Ledger, copy_of, make_ledger, rows_in
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger())


@pytest.fixture(params=[None, b"?"], ids=["gone", "unreadable"])
def headless(request: pytest.FixtureRequest, pristine: Ledger) -> Ledger:
    """Without an anchor, too, as on an object store that was never closed."""
    ledger = pristine._replace(disk=copy_of(pristine.disk))
    if request.param is None:
        del ledger.disk.rows[keys.HEAD_KEY]
    else:
        ledger.disk.rows[keys.HEAD_KEY] = request.param
    ledger.disk.anchor = None
    return ledger


@pytest.mark.parametrize("accept_rollback", [False, True])
async def test_a_queue_does_not_open_and_writes_nothing_over_the_log(headless: Ledger, accept_rollback: bool) -> None:
    before = dict(headless.disk.rows)
    with pytest.raises(LogCorrupt, match="head"):
        await Queue.open(
            store=MemoryStore(headless.disk),
            clock=ManualClock(headless.clock_ms),
            accept_rollback=accept_rollback,
        )
    assert dict(headless.disk.rows) == before


async def test_a_log_that_goes_on_after_its_head_is_not_opened(pristine: Ledger) -> None:
    ledger = pristine._replace(disk=copy_of(pristine.disk))
    ledger.disk.anchor = None
    head = decode_head(ledger.disk.rows[keys.HEAD_KEY])
    batches = list(rows_in(ledger.disk, keys.LOG_PREFIX).items())
    reader = MemoryReader(ledger.disk)
    chain = Chain()
    for key, value in batches[:-2]:
        chain.add(decode_batch(keys.offset_of(key), value))
    older = chain.so_far().head
    ledger.disk.rows[keys.HEAD_KEY] = encode_head(older)
    before = dict(ledger.disk.rows)
    assert older.next_offset < head.next_offset
    with pytest.raises(LogCorrupt, match="goes on") as caught:
        await Queue.open(store=MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms))
    assert caught.value.offset == older.next_offset
    assert dict(ledger.disk.rows) == before
    with pytest.raises(LogCorrupt):
        await audit(reader, clock=ManualClock())


async def test_the_error_names_the_logs_end_and_a_cut_there_loses_nothing(pristine: Ledger, headless: Ledger) -> None:
    end = decode_head(pristine.disk.rows[keys.HEAD_KEY]).next_offset
    with pytest.raises(LogCorrupt, match=f"--until {end}") as caught:
        await audit(MemoryReader(headless.disk), clock=ManualClock())
    assert caught.value.offset == end
    clock = ManualClock(headless.clock_ms)
    report = await rebuild(MemoryStore(headless.disk), clock=clock, until=caught.value.offset, **WHO)
    assert report.verified.events == end
    assert rows_in(headless.disk) == rows_in(pristine.disk)
    log = rows_in(headless.disk, keys.LOG_PREFIX)
    assert len(log) == len(rows_in(pristine.disk, keys.LOG_PREFIX)) + 1
    await check_ledger(headless.disk)
