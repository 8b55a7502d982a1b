"""The audit of what came since the last one: what it finds, what it leaves alone, and from where it does not start."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, LogRolledBack
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.eventlog.recorded_audit import RecordedAudit, read_recorded_audit
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.audit_recording import record_report
from ledgerq.projections.incremental_audit import audit_since
from ledgerq.projections.index_keys import job_key, pending_key, stats_key
from ledgerq.projections.indexes import decode_job
from ledgerq.worker.options import NewJob
from tests.support.damaged_rows import copy_of, rows_in, unique_row
from tests.support.rig import Rig

CLOCK = ManualClock()


async def recorded(report: AuditReport, folder: Path) -> RecordedAudit:
    """What is read back of a report that was recorded."""
    await record_report(str(folder), CLOCK, report, deep=False)
    found = await read_recorded_audit(str(folder))
    assert found is not None
    return found


async def full(disk: MemoryDisk) -> AuditReport:
    """An audit of everything."""
    return await audit(MemoryReader(disk), clock=CLOCK)


async def since(disk: MemoryDisk, last: RecordedAudit | None) -> AuditReport:
    """An audit of what came since; it changes nothing."""
    before = dict(disk.rows)
    report = await audit_since(MemoryReader(disk), last, clock=CLOCK)
    assert dict(disk.rows) == before
    return report


class Story:
    """A store in three states: `before` the first audit, `last`, and `after` more has happened."""

    before: MemoryDisk
    after: MemoryDisk
    last: RecordedAudit
    ids: dict[str, bytes]


@pytest.fixture
async def story(tmp_path: Path) -> AsyncIterator[Story]:
    told = Story()
    async with Rig() as rig:
        queue = rig.queue
        names = ["idle", "done", "given back", "dead", "swept"]
        made = await queue.enqueue_many("mail", [name.encode() for name in names])
        first = await queue.enqueue("mail", b"", unique_key=b"k")
        told.ids = dict(zip([*names, "unique"], [one.id for one in [*made, first]], strict=True))
        claims = {claim.payload: claim for claim in await queue.claim("mail", 5)}
        await queue.ack(claims[b"swept"])
        await queue.nack(claims[b"idle"], "later", delay=10_000_000.0)
        told.before = copy_of(rig.disk)
        told.last = await recorded(await full(told.before), tmp_path)
        await rig.advance(10)
        await queue.ack(claims[b"done"])
        await queue.nack(claims[b"given back"], "not now", delay=0.0)
        await queue.nack(claims[b"dead"], "no", dead=True)
        await queue.cancel(first.job_id, actor="ann", reason="why")
        again = await queue.enqueue("mail", b"", unique_key=b"k")
        await queue.enqueue_many("new", [NewJob(payload=b"x"), NewJob(payload=b"y", delay=60.0)])
        told.ids |= {"unique again": again.id}
        await rig.advance(86_395)
        await queue.close()
        told.after = copy_of(rig.disk)
        yield told


async def test_what_is_right_is_clean_and_the_next_one_starts_from_there(story: Story, tmp_path: Path) -> None:
    report = await since(story.after, story.last)
    assert report.differences == []
    assert report.clean
    assert report.since == story.last
    wanted = await full(story.after)
    assert report.verified.head == wanted.verified.head
    assert 0 < report.verified.batches < wanted.verified.batches
    assert report.counters == wanted.counters
    assert job_key(story.ids["swept"]) not in story.after.rows
    again = await recorded(report, tmp_path)
    assert again.start is not None
    assert story.last.start is not None
    assert again.start.full_ms == story.last.start.full_ms
    report = await since(story.after, again)
    assert (report.clean, report.jobs, report.verified.batches) == (True, 0, 0)


def _altered(name: str) -> Callable[[Story], bytes]:
    def do(story: Story) -> bytes:
        key = job_key(story.ids[name])
        story.after.rows[key] = pack(replace(decode_job(story.after.rows[key]), last_error="a lie"))
        return key

    return do


def _missing(prefix: bytes) -> Callable[[Story], bytes]:
    def do(story: Story) -> bytes:
        key = max(rows_in(story.after, prefix))
        del story.after.rows[key]
        return key

    return do


def _left_over(story: Story) -> bytes:
    key = b"i/claimed/" + story.ids["done"]
    story.after.rows[key] = b""
    return key


def _back_again(story: Story) -> bytes:
    key = job_key(story.ids["swept"])
    story.after.rows[key] = story.before.rows[key]
    return key


def _another_holder(story: Story) -> bytes:
    key = unique_row(story.after, "mail", "k")
    story.after.rows[key] = story.ids["unique"]
    return key


def _counted_wrong(story: Story) -> bytes:
    key = stats_key("mail")
    story.after.rows[key] = story.before.rows[key]
    return key


@pytest.mark.parametrize(
    "damage",
    [
        _altered("done"),
        _altered("given back"),
        _altered("unique again"),
        _missing(b"i/finished/"),
        _missing(b"i/dead/"),
        _missing(b"i/pending/new\0"),
        _missing(b"i/unique/"),
        _missing(b"i/stats/new"),
        _left_over,
        _back_again,
        _another_holder,
        _counted_wrong,
    ],
)
async def test_each_wrong_row_of_what_has_changed_since_is_found(
    story: Story, damage: Callable[[Story], bytes]
) -> None:
    key = damage(story)
    report = await since(story.after, story.last)
    assert [difference.raw_key for difference in report.differences] == [key]
    assert not report.clean
    wanted = next(difference for difference in (await full(story.after)).differences if difference.raw_key == key)
    assert report.differences == [wanted]


async def test_what_has_not_changed_since_is_not_looked_at(story: Story) -> None:
    key = job_key(story.ids["idle"])
    assert story.before.rows[key] == story.after.rows[key]
    del story.after.rows[key]
    story.after.rows[pending_key("mail", 0, 10_000)] = bytes(16)
    assert (await since(story.after, story.last)).clean
    assert (await full(story.after)).difference_count == 2


async def test_an_interrupted_rebuild_is_found(story: Story) -> None:
    story.after.rows[keys.REBUILD_KEY] = b"x"
    assert [row.range_name for row in (await since(story.after, story.last)).differences] == ["meta"]


async def test_a_batch_changed_since_is_named_by_its_offset(story: Story) -> None:
    new = sorted(set(rows_in(story.after, keys.LOG_PREFIX)) - set(rows_in(story.before, keys.LOG_PREFIX)))
    for key in (new[0], new[len(new) // 2]):
        disk = copy_of(story.after)
        disk.rows[key] = disk.rows[key][:-1] + bytes([disk.rows[key][-1] ^ 1])
        with pytest.raises(LogCorrupt) as caught:
            await since(disk, story.last)
        assert caught.value.offset == keys.offset_of(key)
        del disk.rows[key]
        with pytest.raises(LogCorrupt):
            await since(disk, story.last)


async def test_a_store_put_back_to_before_the_audit_is_rolled_back(story: Story, tmp_path: Path) -> None:
    last = await recorded(await full(story.after), tmp_path)
    with pytest.raises(LogRolledBack):
        await since(story.before, last)


async def test_the_commit_that_the_audit_ended_with_must_be_the_one_in_the_log(story: Story) -> None:
    assert story.last.start is not None
    base = story.last.start.head.base_offset
    key = keys.log_key(base)
    for value in (None, story.after.rows[key][:-1] + b"\x7f"):
        disk = copy_of(story.after)
        del disk.rows[key]
        if value is not None:
            disk.rows[key] = value
        with pytest.raises(LogRolledBack) as caught:
            await since(disk, story.last)
        assert caught.value.first_offset == base


async def test_it_starts_from_a_clean_and_recorded_audit_only(story: Story, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no audit"):
        await since(story.after, None)
    disk = copy_of(story.after)
    del disk.rows[job_key(story.ids["idle"])]
    unclean = await recorded(await full(disk), tmp_path)
    assert unclean.start is None
    with pytest.raises(InvalidArgument, match="not clean"):
        await since(story.after, unclean)
    assert story.last.start is not None
    start = story.last.start._replace(counters={"mail": b"junk"})
    with pytest.raises(InvalidArgument, match="can't be read"):
        await since(story.after, story.last._replace(start=start))


async def test_a_job_that_is_older_than_its_row_and_its_id_say_is_found_from_the_beginning(story: Story) -> None:
    """Its row was changed: enqueued later."""
    key = job_key(story.ids["done"])
    job = decode_job(story.after.rows[key])
    story.after.rows[key] = pack(replace(job, offset=job.offsets[-1]))
    report = await since(story.after, story.last)
    assert [difference.raw_key for difference in report.differences] == [key]
