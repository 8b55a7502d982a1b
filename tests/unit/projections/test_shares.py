"""Shares of the jobs: together they are the whole fold, and prove what an audit in one process finds to be clean."""

import asyncio
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import LedgerError, LogCorrupt
from ledgerq.eventlog.events import BulkBegan
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.slate.row_sums import can_sum, sum_of, total
from ledgerq.eventlog.store import Anchor
from ledgerq.projections import audit as audit_module
from ledgerq.projections import rebuild as rebuild_module
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, OF_NO_JOB
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.shares import proof as proof_module
from ledgerq.projections.shares import whole as whole_module
from ledgerq.projections.shares.proof import prove_clean
from ledgerq.projections.shares.share import Share, ShareTask, fold_share, include_counters, usable_jobs
from ledgerq.projections.shares.whole import fold_whole
from ledgerq.projections.stats import QueueCounters
from tests.support.damaged_rows import DAMAGES, Damage, Ledger, copy_of, make_ledger, rows_in, with_projections
from tests.unit.projections.formats import format_2_ledger

needs_sums = pytest.mark.skipif(not can_sum(), reason="sums are not compiled")
SECRET = bytes(range(16))


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


@pytest.fixture
def elsewhere(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> list[ShareTask]:
    """Have shares done in this process, of the ledger in memory; returns those that were asked for."""
    asked: list[ShareTask] = []

    async def share(task: ShareTask, take: Any = None) -> Share | None:
        asked.append(task)
        try:
            found, fold = await fold_share(LogReader(MemoryReader(ledger.disk), clock=ManualClock()), task)
        except LedgerError:
            return None
        if take is not None:
            take([(id, fold.jobs.rows.get(id)) for id in fold.jobs.rows])
        return found

    async def as_asked(log: LogReader, jobs: int | None) -> int:
        return jobs or 1

    for module in (proof_module, whole_module):
        monkeypatch.setattr(module, "share_elsewhere", share)
    for user in (audit_module, rebuild_module):
        monkeypatch.setattr(user, "usable_jobs", as_asked)
    return asked


def log_of(disk: MemoryDisk) -> LogReader:
    return LogReader(MemoryReader(disk), clock=ManualClock())


async def shares_of(
    disk: MemoryDisk, count: int, secret: bytes | None = SECRET, format_version: int = keys.FORMAT_VERSION
) -> Any:
    head = await log_of(disk).head()
    tasks = [ShareTask("memory:///", number, count, head, keys.FORMAT_VERSION, secret) for number in range(count)]
    return [await fold_share(log_of(disk), task) for task in tasks]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@needs_sums
async def test_shares_are_the_whole_fold_together(ledger: Ledger, count: int) -> None:
    verified, fold = await fold_verified(log_of(ledger.disk))
    fold.jobs.pack()
    found = await shares_of(ledger.disk, count)
    ids = [id for _, share in found for id in share.jobs]
    assert sorted(ids) == sorted(fold.jobs)
    assert {id: share.jobs.rows.get(id) for _, share in found for id in share.jobs} == {
        id: fold.jobs.rows.get(id) for id in fold.jobs
    }
    together = Fold()
    for share, _ in found:
        include_counters(together, share)
    assert {queue: counted.encode() for queue, counted in together.counters.items()} == {
        queue: counted.encode() for queue, counted in fold.counters.items()
    }
    assert {share.verified for share, _ in found} == {verified}


@needs_sums
@pytest.mark.parametrize("count", [1, 2, 5])
async def test_shares_expect_the_index_rows_that_are_there(ledger: Ledger, count: int) -> None:
    there = {key: row for key, row in rows_in(ledger.disk, INDEX_PREFIX).items() if not key.startswith(OF_NO_JOB)}
    found = await shares_of(ledger.disk, count)
    assert total([share.expected for share, _ in found]) == sum_of(there, SECRET)


async def test_a_share_of_a_log_that_goes_on_ends_where_it_should(ledger: Ledger) -> None:
    head = await log_of(ledger.disk).head()
    last = await log_of(ledger.disk).batch_at(head.base_offset)
    assert last is not None
    value = ledger.disk.rows[keys.log_key(last.base_offset)]
    ledger.disk.rows[keys.log_key(head.next_offset)] = value
    share, _ = await fold_share(log_of(ledger.disk), ShareTask("", 0, 1, head, keys.FORMAT_VERSION))
    assert share.verified.head == head
    with pytest.raises(LogCorrupt):
        await fold_share(log_of(ledger.disk), ShareTask("", 0, 1, head._replace(digest=bytes(32)), keys.FORMAT_VERSION))


# ---------------------------------------------------------------------- audits


async def audited(disk: MemoryDisk, jobs: int, **arguments: Any) -> AuditReport:
    return await audit(MemoryReader(disk), clock=ManualClock(), jobs=jobs, **arguments)


@needs_sums
@pytest.mark.parametrize("jobs", [2, 3])
async def test_a_clean_ledger_is_proven_without_comparing_rows(
    ledger: Ledger, jobs: int, elsewhere: list[ShareTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = await audited(ledger.disk, 1)
    monkeypatch.setattr(audit_module, "compare_jobs", None)
    assert await audited(ledger.disk, jobs) == alone
    assert [task.number for task in elsewhere] == [*range(1, jobs)]
    assert len({task.secret for task in elsewhere}) == 1


@needs_sums
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_of_each_kind_of_damage_the_report_is_the_same(
    ledger: Ledger, damage: Damage, elsewhere: list[ShareTask]
) -> None:
    damage.do(ledger)
    log = log_of(ledger.disk)
    assert await prove_clean(log, 2, await log.require_format()) is None
    alone, told = await audited(ledger.disk, 1), list[tuple[int, int]]()
    together = await audited(ledger.disk, 2, progress=lambda at, end: told.append((at, end)))
    assert together == alone
    assert not alone.clean
    assert told[-1] == (alone.verified.events, alone.verified.events)
    assert elsewhere


def _leading_hint(disk: MemoryDisk) -> None:
    disk.rows[keys.hint_key("mail")] = b"\xff" * keys.HINT_BYTES


def _marker(disk: MemoryDisk) -> None:
    disk.rows[keys.REBUILD_KEY] = b"\x91\xc0"


def _unreadable_row(disk: MemoryDisk) -> None:
    disk.damaged.add(next(iter(rows_in(disk, INDEX_PREFIX))))


def _no_secret(disk: MemoryDisk) -> None:
    del disk.rows[keys.SECRET_KEY]


@needs_sums
@pytest.mark.parametrize("change", [_leading_hint, _marker, _unreadable_row, _no_secret])
async def test_what_is_wrong_beside_the_rows_is_reported_the_same(
    ledger: Ledger, change: Any, elsewhere: list[ShareTask]
) -> None:
    change(ledger.disk)
    alone = await audited(ledger.disk, 1)
    assert not alone.clean
    assert await audited(ledger.disk, 3) == alone


@needs_sums
async def test_a_store_of_an_older_format_is_proven_by_the_rows_that_it_has(
    ledger: Ledger, elsewhere: list[ShareTask]
) -> None:
    older = format_2_ledger().disk
    ledger.disk.rows.clear()
    ledger.disk.rows.update(older.rows)
    log = log_of(ledger.disk)
    assert await prove_clean(log, 3, await log.require_format()) is not None
    assert await audited(older, 3) == await audited(older, 1)


@pytest.mark.parametrize("jobs", [1, 3])
async def test_a_changed_log_is_refused_with_the_same_offset(
    ledger: Ledger, jobs: int, elsewhere: list[ShareTask]
) -> None:
    base = [key for key, value in rows_in(ledger.disk, keys.LOG_PREFIX).items() if b"mail" in value][1]
    ledger.disk.rows[base] = ledger.disk.rows[base].replace(b"mail", b"male")
    with pytest.raises(LogCorrupt) as caught:
        await audited(ledger.disk, jobs)
    assert caught.value.offset == keys.offset_of(base)


async def test_payloads_and_projections_of_users_are_for_one_process(
    ledger: Ledger, elsewhere: list[ShareTask]
) -> None:
    assert (await audited(ledger.disk, 4, deep=True)).payloads == 16
    await audited(ledger.disk, 4, projections=with_projections())
    assert elsewhere == []


# ---------------------------------------------------------------------- rebuilds


async def rebuilt(disk: MemoryDisk, jobs: int) -> tuple[RebuildReport, dict[bytes, bytes], Anchor | None]:
    store = MemoryStore(disk)
    report = await rebuild(store, clock=ManualClock(), actor="test", reason="test", jobs=jobs)
    await store.close()
    return report, rows_in(disk, INDEX_PREFIX), disk.anchor


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_a_rebuild_by_several_processes_writes_the_same_rows(
    ledger: Ledger, damage: Damage, elsewhere: list[ShareTask]
) -> None:
    damage.do(ledger)
    alone = copy_of(ledger.disk)
    assert await rebuilt(ledger.disk, 3) == await rebuilt(alone, 1)
    assert [task.secret for task in elsewhere] == [None, None]


async def test_a_fold_by_several_processes_is_the_whole_one(ledger: Ledger, elsewhere: list[ShareTask]) -> None:
    verified, fold = await fold_verified(log_of(ledger.disk))
    told: list[tuple[int, int]] = []
    found, together = await fold_whole(log_of(ledger.disk), 3, progress=lambda at, end: told.append((at, end)))
    assert found == verified
    assert dict(together.jobs) == dict(fold.jobs)
    assert together.without_payload == fold.without_payload
    assert (together.next_offset, together.time_ms) == (fold.next_offset, fold.time_ms)
    assert told[-1] == (verified.events, verified.events)


def test_an_open_bulk_is_in_the_counters_of_all_shares_together() -> None:
    one, other = QueueCounters(3), QueueCounters(3)
    for counters in (one, other):
        counters.follow(BulkBegan("mail", "cancel", None, "", 0, 0, 0, 7, "ann", "because"), 7)
    one.include(other)
    assert one.bulk == 7


# ---------------------------------------------------------------------- how many


@pytest.mark.parametrize("asked", [None, 1, 5])
async def test_a_store_in_memory_is_for_one_process(ledger: Ledger, asked: int | None) -> None:
    assert await usable_jobs(log_of(ledger.disk), asked) == 1
