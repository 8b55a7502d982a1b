"""The values of keys in the fold, in each kind of audit, and in what a rebuild, a copy and a cut make of a loss."""

from collections.abc import Callable

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import KvDeleted, KvSet
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recorded_audit import AuditStart, RecordedAudit
from ledgerq.eventlog.side_records import encode_sealed, encode_value_row
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.incremental_audit import audit_since
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair.copying import copy_into
from ledgerq.worker.queue import Queue
from tests.support.damaged_rows import copy_of, rows_in
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.support.rig import Rig

Rows = dict[bytes, bytes]
CLOCK = ManualClock()


def _change(rows: Rows) -> None:
    rows[b"k/kept"] = rows[b"k/kept"][:-1] + b"!"


def _older(rows: Rows) -> None:
    rows[b"k/kept"] = encode_value_row(1, rows[b"k/kept"][8:])


DAMAGES: dict[str, tuple[Callable[[Rows], object], list[str]]] = {
    "missing": (lambda rows: rows.pop(b"k/kept"), ["kept"]),
    "changed": (_change, ["kept"]),
    "of another version": (_older, ["kept"]),
    "in another place": (lambda rows: rows.update({b"k/kept": rows[b"k/twice"]}), ["kept"]),
    "of no key": (lambda rows: rows.update({b"k/\xff": b"?"}), []),
    "deleted and there": (lambda rows: rows.update({b"k/deleted": encode_value_row(3, encode_sealed(b"s", b"v"))}), []),
    "all gone": (lambda rows: [rows.pop(key) for key in rows_of(rows)], ["kept", "twice"]),
}


def rows_of(rows: Rows) -> list[bytes]:
    return [key for key in rows if key.startswith(keys.VALUE_PREFIX)]


async def make() -> tuple[MemoryDisk, RecordedAudit]:
    """A disk with two keys, and the audit before they were set."""
    async with Rig() as rig:
        async with rig.queue.transaction() as t:
            t.kv.set("deleted", b"v")
            t.kv.set("twice", b"v")
            t.enqueue("mail", b"hello")
        await rig.reopen()
        before = await audit(MemoryReader(rig.disk), clock=CLOCK)
        assert before.clean
        start = AuditStart(before.verified.head, before.counters or {}, 0)
        async with rig.queue.transaction() as t:
            t.kv.set("kept", b"value")
            t.kv.set("twice", b"w")
            t.kv.delete("deleted")
        await rig.queue.close()
        return copy_of(rig.disk), RecordedAudit(0, before.verified.head.next_offset, 0, True, False, start)


async def found_by(disk: MemoryDisk, since: RecordedAudit) -> AuditReport:
    """The report of an audit, which all kinds of audit must agree with."""
    plain, deep = [await audit(MemoryReader(disk), clock=CLOCK, deep=deep) for deep in (False, True)]
    assert plain.differences == deep.differences
    incremental = await audit_since(MemoryReader(disk), since, clock=CLOCK)
    assert {d.raw_key for d in incremental.differences} == {d.raw_key for d in plain.differences} - {b"k/\xff"}
    return plain


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_value_that_is_not_what_was_set_is_found_and_a_rebuild_gives_it_up(name: str) -> None:
    disk, since = await make()
    assert (await found_by(disk, since)).clean
    damage, lost = DAMAGES[name]
    rows = dict(disk.rows)
    damage(rows)
    disk.rows.clear()
    disk.rows.update(rows)
    report = await found_by(disk, since)
    assert report.differences
    assert {d.range_name for d in report.differences} == {"value"}
    target = MemoryDisk()
    copied = await copy_into(MemoryReader(disk), MemoryStore(target), clock=CLOCK, **WHO)
    rebuilt = await rebuild(MemoryStore(disk), clock=CLOCK, **WHO)
    for one, made in ((disk, rebuilt), (target, copied)):
        assert [*made.lost_keys] == lost
        await check_ledger(one)
        assert (await audit(MemoryReader(one), clock=CLOCK, deep=True)).clean
        log = LogReader(MemoryReader(one), clock=CLOCK)
        events = [record.event async for record in log.read()]
        assert [event.key for event in events if isinstance(event, KvDeleted) and event.lost] == lost
        async with Queue.open(store=MemoryStore(one), clock=CLOCK) as queue:
            kept = await queue.kv.get("kept")
            assert (kept is None) == ("kept" in lost)
            assert kept is None or kept.value == b"value"
    assert not (await rebuild(MemoryStore(disk), clock=CLOCK, **WHO)).changed


async def test_a_cut_gives_up_what_was_overwritten_behind_it() -> None:
    disk, since = await make()
    report = await rebuild(MemoryStore(disk), clock=CLOCK, until=since.offset, **WHO)
    # Of what was set before the cut the values were overwritten, or deleted, behind it.
    assert sorted(report.lost_keys) == ["deleted", "twice"]
    await check_ledger(disk)
    assert not rows_in(disk, keys.VALUE_PREFIX)


def test_the_fold_refuses_what_no_writer_records() -> None:
    digest = bytes(32)
    for event in (KvSet("", 3, digest), KvSet("a\0", 3, digest), KvSet("x" * 1025, 3, digest), KvDeleted("k")):
        with pytest.raises(LogCorrupt, match=r"key|makes no sense"):
            Fold().apply(0, 0, event)
    fold = Fold()
    fold.apply(0, 0, KvSet("k", 3, digest))
    fold.apply(1, 0, KvDeleted("k"))
    with pytest.raises(LogCorrupt):
        fold.apply(2, 0, KvDeleted("k"))
    with pytest.raises(LogCorrupt):
        fold.apply(3, 0, KvSet("k", 3, digest), 1)
