"""A store of an older format is read as it is, not written, and brought to the present one by one rebuild."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.errors import InvalidArgument, NotRebuilt
from ledgerq.eventlog.events import STATES, Event, Rebuilt
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.repair import row_writer
from ledgerq.projections.repair.copying import copy_into
from ledgerq.projections.repair.row_writer import FORMAT
from ledgerq.projections.replay import fold_to
from ledgerq.projections.view import LedgerView
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli
from tests.support.crashes import ENDS, Crash, End, crashed_run
from tests.support.damaged_rows import Ledger, copy_of, rows_in
from tests.support.ledger_checks import check_ledger
from tests.support.operators import WHO
from tests.tiers import sampled
from tests.unit.projections.formats import format_1_rows, format_2_ledger


async def folded(disk: MemoryDisk) -> Fold:
    """The fold of the log on this disk."""
    return await fold_to(LogReader(MemoryReader(disk), clock=ManualClock()))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture(params=[1, 2])
async def old(request: pytest.FixtureRequest) -> Ledger:
    """A ledger as an earlier version left it."""
    ledger = format_2_ledger()
    if request.param == 1:
        ledger.disk.rows.update(format_1_rows(await folded(ledger.disk)))
    return ledger


@pytest.fixture
async def today(old: Ledger) -> Ledger:
    """The same ledger in the present format."""
    ledger = old._replace(disk=copy_of(old.disk))
    await rebuilt(ledger)
    return ledger


def as_a_writer_would(ledger: Ledger) -> Any:
    """Open it to write."""
    return Queue.open(store=MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms))


async def audited(disk: MemoryDisk) -> AuditReport:
    return await audit(MemoryReader(disk, pinned=True), clock=ManualClock(), deep=True)


async def rebuilt(ledger: Ledger, **arguments: Any) -> RebuildReport:
    return await rebuild(MemoryStore(ledger.disk), clock=ManualClock(ledger.clock_ms), **WHO, **arguments)


async def test_nobody_writes_a_store_of_an_older_format(old: Ledger) -> None:
    before = dict(old.disk.rows)
    with pytest.raises(NotRebuilt, match=r"has format [12].*run `rebuild-projections memory:///` once"):
        await as_a_writer_would(old)
    assert dict(old.disk.rows) == before


async def test_a_store_of_an_older_format_is_read_as_it_is(old: Ledger, today: Ledger) -> None:
    view, same = (LedgerView(LogReader(MemoryReader(disk), clock=ManualClock())) for disk in (old.disk, today.disk))
    for queue in await same.queues():
        assert await view.stats(queue) == await same.stats(queue)
        for state in STATES:
            found, wanted = await view.jobs(queue, state=state), await same.jobs(queue, state=state)
            assert [replace(job, since_ms=0) for job in found.jobs] == [replace(job, since_ms=0) for job in wanted.jobs]
            for job in found.jobs:
                assert await view.history(job.id) == await same.history(job.id)


async def test_the_audit_compares_a_store_with_what_its_format_holds(old: Ledger) -> None:
    report = await audited(old.disk)
    assert (report.clean, b"%d" % report.format_version) == (True, old.disk.rows[keys.FORMAT_KEY])
    key = next(iter(rows_in(old.disk, b"i/stats/")))
    old.disk.rows[key] = (await folded(old.disk)).counters_of("other").encode(report.format_version)
    assert (await audited(old.disk)).difference_count == 1


async def test_one_rebuild_brings_it_to_the_present_format(old: Ledger, today: Ledger) -> None:
    jobs, queues = len(rows_in(old.disk, b"i/job/")), len(rows_in(old.disk, b"i/stats/"))
    is_first_format = old.disk.rows[keys.FORMAT_KEY] == b"1"
    report = await rebuilt(old)
    # Rows of counters are those of format 2.
    assert (report.rows_put, report.rows_deleted) == (jobs + queues * is_first_format, 0)
    assert rows_in(old.disk, b"i/") == rows_in(today.disk, b"i/")
    assert old.disk.rows[keys.FORMAT_KEY] == FORMAT
    await check_ledger(old.disk)
    again = await rebuilt(old)
    assert not again.changed
    await (await as_a_writer_would(old)).close()


async def test_a_store_that_holds_no_job_yet_is_brought_to_it_too() -> None:
    disk = MemoryDisk()
    await (await Queue.open(store=MemoryStore(disk), clock=ManualClock())).close()
    disk.rows[keys.FORMAT_KEY] = b"1"
    ledger = Ledger(disk, 0, {}, {})
    with pytest.raises(NotRebuilt):
        await as_a_writer_would(ledger)
    await rebuilt(ledger)
    assert disk.rows[keys.FORMAT_KEY] == FORMAT
    await (await as_a_writer_would(ledger)).close()


async def test_a_part_of_it_alone_is_not_brought_to_it(old: Ledger) -> None:
    before = dict(old.disk.rows)
    with pytest.raises(InvalidArgument, match="older one, which concerns all projections"):
        await rebuilt(old, only="stats")
    assert dict(old.disk.rows) == before


@pytest.mark.parametrize("end", sampled(ENDS))
async def test_a_rebuild_that_ends_anywhere_leaves_it_to_the_next_one(
    old: Ledger, today: Ledger, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_writer, "_BATCH_ROWS", 4)

    async def work(store: MemoryStore) -> object:
        return await rebuild(store, clock=ManualClock(old.clock_ms), **WHO)

    count = Crash()
    assert await crashed_run(copy_of(old.disk), work, count)
    for at in range(len(count.calls)):
        ledger = old._replace(disk=copy_of(old.disk))
        await crashed_run(ledger.disk, work, Crash(at, end))
        if ledger.disk.rows[keys.FORMAT_KEY] == FORMAT:
            assert keys.REBUILD_KEY not in ledger.disk.rows
        else:
            with pytest.raises(NotRebuilt, match="rebuild-projections"):
                await as_a_writer_would(old._replace(disk=copy_of(ledger.disk)))
            await rebuilt(ledger)
        assert rows_in(ledger.disk, b"i/") == rows_in(today.disk, b"i/")
        await check_ledger(ledger.disk)


async def test_a_copy_of_a_store_of_an_older_format_is_of_the_present_format(old: Ledger, today: Ledger) -> None:
    disk = MemoryDisk()
    await copy_into(MemoryReader(old.disk), MemoryStore(disk), clock=ManualClock(old.clock_ms), **WHO)
    assert rows_in(disk, b"i/") == rows_in(today.disk, b"i/")
    assert disk.rows[keys.FORMAT_KEY] == FORMAT


def test_a_store_of_an_older_format_on_files_is_upgraded_by_the_command_line(
    old: Ledger, tmp_path: Path, cli: Cli
) -> None:
    url = str(tmp_path / "jobs")
    asyncio.run(_put(old.disk, url))
    assert "run `rebuild-projections" in cli.fails(3, "enqueue", url, "mail", "hello")
    assert cli.ok("stats", url, "--json").json
    assert "rebuild-projections brings it to format 3" in cli.ok("audit", url, "--deep").out
    checks = {check["name"]: check for check in cli("doctor", url, "--json").json["checks"]}
    assert "brings it to format 3" in checks["ledgerq store"]["advice"]
    assert cli("rebuild-projections", url, "--check").code == 1
    cli.ok("rebuild-projections", url)
    cli.ok("rebuild-projections", url, "--check")
    cli.ok("enqueue", url, "mail", "hello")
    assert cli.ok("audit", url, "--json").json["format"] == 3
    events = [event for event in asyncio.run(_events(url)) if isinstance(event, Rebuilt)]
    assert [event.names for event in events] == [("jobs", "stats")]


async def _put(disk: MemoryDisk, url: str) -> None:
    """A store on files that holds what this disk holds."""
    store = await open_store(url, clock=SystemClock())
    batch = store.batch()
    batch.update(dict(disk.rows))
    assert disk.anchor is not None
    await store.commit(batch, disk.anchor)
    await store.close()


async def _events(url: str) -> list[Event]:
    reader = await open_reader(url)
    events = [record.event async for record in LogReader(reader, clock=SystemClock()).read()]
    await reader.close()
    return events
