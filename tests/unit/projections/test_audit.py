"""The audit finds every way in which an index row can be wrong, names it, and finds nothing where nothing is."""

import asyncio
from collections.abc import Callable

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import FormatTooNew, LogCorrupt, StoreNotFound
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader
from ledgerq.projections import audit as audit_module
from ledgerq.projections.audit import AuditReport, Difference, audit
from ledgerq.projections.index_keys import RANGES, parse_key, pending_key, pending_prefix, stats_key
from ledgerq.projections.repair import comparison as compare_module
from tests.support.damaged_rows import (
    DAMAGES,
    Damage,
    Ledger,
    copy_of,
    make_ledger,
    rows_in,
    unique_row,
    with_projections,
)


@pytest.fixture(scope="module")
def pristine() -> Ledger:
    return asyncio.run(make_ledger(projections=with_projections()))


@pytest.fixture
def ledger(pristine: Ledger) -> Ledger:
    return pristine._replace(disk=copy_of(pristine.disk))


async def audited(disk: MemoryDisk, **arguments: object) -> AuditReport:
    """Audit what is durable; nothing of it may change."""
    before = dict(disk.rows)
    report = await audit(MemoryReader(disk), clock=ManualClock(), **arguments)  # type: ignore[arg-type]
    assert dict(disk.rows) == before
    return report


def changes(before: MemoryDisk, after: MemoryDisk) -> dict[bytes, tuple[bool, bool]]:
    """The index rows that differ: whether there should be one, whether there is one."""
    wanted, found = rows_in(before), rows_in(after)
    differ = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    return {key: (key in wanted, key in found) for key in differ}


async def test_a_clean_ledger_is_clean(ledger: Ledger) -> None:
    report = await audited(ledger.disk, deep=True, projections=with_projections())
    assert report.clean
    assert report.differences == []
    assert (report.jobs, report.payloads) == (16, 16)
    assert report.anchor == ledger.disk.anchor
    assert report.verified.events == report.verified.head.next_offset > 20
    assert report.location == "memory:///"
    assert {len(rows_in(ledger.disk, prefix)) > 0 for prefix in RANGES.values()} == {True}, "each range is tried"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_each_kind_of_damage_is_found_row_by_row(pristine: Ledger, ledger: Ledger, damage: Damage) -> None:
    damage.do(ledger)
    report = await audited(ledger.disk)
    wanted = changes(pristine.disk, ledger.disk)
    assert wanted
    found = {d.raw_key: (d.expected is not None, d.found is not None) for d in report.differences}
    assert found == wanted
    assert report.difference_count == len(report.differences) == len(wanted)
    assert not report.clean
    for difference in report.differences:
        assert difference.expected != difference.found
        assert difference.key
        prefix = RANGES.get(difference.range_name)
        assert difference.raw_key.startswith(prefix or b"i/elsewhere/")


def one(report: AuditReport) -> Difference:
    """The only difference."""
    (difference,) = report.differences
    return difference


async def test_a_difference_is_told_in_words(ledger: Ledger) -> None:
    del ledger.disk.rows[next(iter(rows_in(ledger.disk, pending_prefix("mail"))))]
    difference = one(await audited(ledger.disk))
    assert difference.range_name == "pending"
    assert difference.key.startswith("queue 'mail', priority 0, offset ")
    assert (difference.expected or "").startswith("job 01")
    assert difference.found is None


async def test_a_unique_key_in_other_hands_shows_both_jobs(ledger: Ledger) -> None:
    row = unique_row(ledger.disk, "mail", "k")
    ledger.disk.rows[row] = ledger.jobs["other unique"]
    difference = one(await audited(ledger.disk))
    assert (difference.range_name, difference.key) == ("unique", parse_key(row, b"").text)
    assert difference.expected != difference.found
    assert (difference.expected or "").startswith("job 01")
    assert (difference.found or "").startswith("job 01")


async def test_an_unreadable_key_is_shown_in_hexadecimal_digits(ledger: Ledger) -> None:
    ledger.disk.rows[b"i/pending/\xff\xfe"] = b"?"
    difference = one(await audited(ledger.disk))
    assert (difference.range_name, difference.key) == ("pending", "unreadable key fffe")
    assert difference.expected is None


# ---------------------------------------------------------------------- beside the indexes


async def test_a_hint_that_leads_is_found_and_one_that_lags_is_not(ledger: Ledger) -> None:
    hint = keys.hint_key("mail")
    first = next(iter(rows_in(ledger.disk, pending_prefix("mail"))))[-12:]
    ledger.disk.rows[hint] = first
    assert (await audited(ledger.disk)).clean, "it may point to the first pending job"
    ledger.disk.rows[hint] = first[:-1] + bytes((first[-1] + 1,))
    difference = one(await audited(ledger.disk))
    assert (difference.range_name, difference.key, difference.expected) == ("hint", "queue 'mail'", None)
    assert difference.found == ledger.disk.rows[hint].hex()


@pytest.mark.parametrize("value", [b"", b"x", bytes(11), bytes(13)])
async def test_a_malformed_hint_is_found(ledger: Ledger, value: bytes) -> None:
    ledger.disk.rows[keys.hint_key("other")] = value
    assert one(await audited(ledger.disk)).range_name == "hint"


async def test_a_hint_of_a_queue_whose_name_cant_be_read_is_found(ledger: Ledger) -> None:
    ledger.disk.rows[keys.HINT_PREFIX + b"\xff"] = bytes(12)
    assert one(await audited(ledger.disk)).range_name == "hint"


async def test_a_hint_for_a_queue_without_pending_jobs_is_no_damage(ledger: Ledger) -> None:
    ledger.disk.rows[keys.hint_key("quick")] = b"\xff" * 12
    assert (await audited(ledger.disk)).clean


async def test_the_marker_of_an_interrupted_rebuild_is_found(ledger: Ledger) -> None:
    ledger.disk.rows[keys.REBUILD_KEY] = b"\x91\xc0"
    difference = one(await audited(ledger.disk))
    assert (difference.range_name, difference.key) == ("meta", "m/rebuild")
    assert "rebuild-projections" in (difference.found or "")


@pytest.mark.parametrize("change", ["missing", "altered", "extra", "all gone"])
async def test_the_rows_of_a_users_projection_are_compared_when_it_is_given(ledger: Ledger, change: str) -> None:
    rows, prefix = ledger.disk.rows, keys.projection_rows_prefix("kinds")
    count = 1
    match change:
        case "missing":
            del rows[prefix + b"Acked"]
        case "altered":
            rows[prefix + b"Acked"] = b"99"
        case "extra":
            rows[prefix + b"Unheard"] = b"1"
        case _:
            count = len(rows_in(ledger.disk, prefix))
            for key in rows_in(ledger.disk, prefix):
                del rows[key]
    assert (await audited(ledger.disk)).clean, "nobody said what should be there"
    report = await audited(ledger.disk, projections=with_projections())
    assert report.difference_count == count
    assert {difference.range_name for difference in report.differences} == {"projection kinds"}


@pytest.mark.parametrize("offset", [None, 0, 3, 10_000])
async def test_a_users_projection_whose_offset_is_wrong_is_found(ledger: Ledger, offset: int | None) -> None:
    if offset is None:
        del ledger.disk.rows[keys.projection_key("kinds")]
    else:
        ledger.disk.rows[keys.projection_key("kinds")] = offset.to_bytes(8)
    difference = one(await audited(ledger.disk, projections=with_projections()))
    assert (difference.range_name, difference.key) == ("projection kinds", "the offset that it has applied")
    assert difference.expected == str(ledger.disk.anchor and ledger.disk.anchor.next_offset)
    assert difference.found == (None if offset is None else str(offset))


# ---------------------------------------------------------------------- payloads


def _change_payload(ledger: Ledger) -> None:
    key = next(iter(rows_in(ledger.disk, keys.PAYLOAD_PREFIX)))
    ledger.disk.rows[key] = ledger.disk.rows[key][:-1] + b"?"


def _remove_payload(ledger: Ledger) -> None:
    del ledger.disk.rows[next(iter(rows_in(ledger.disk, keys.PAYLOAD_PREFIX)))]


def _orphan_payload(ledger: Ledger) -> None:
    ledger.disk.rows[keys.payload_key(9999)] = b"whose?"


def _unreadable_payload(ledger: Ledger) -> None:
    """A copy of a job's payload under a key that means the same offset only to a careless reader."""
    key = next(iter(rows_in(ledger.disk, keys.PAYLOAD_PREFIX)))
    ledger.disk.rows[keys.PAYLOAD_PREFIX + b"\0" + key[2:]] = ledger.disk.rows[key]


def _overlong_payload(ledger: Ledger) -> None:
    ledger.disk.rows[keys.PAYLOAD_PREFIX + b"\xff" * 40] = b"whose?"


@pytest.mark.parametrize(
    ("change", "expected", "found"),
    [
        (_change_payload, True, True),
        (_remove_payload, True, False),
        (_orphan_payload, False, True),
        (_unreadable_payload, False, True),
        (_overlong_payload, False, True),
    ],
)
async def test_payloads_are_compared_on_request(
    pristine: Ledger, ledger: Ledger, change: Callable[[Ledger], None], expected: bool, found: bool
) -> None:
    change(ledger)
    assert (await audited(ledger.disk)).clean
    difference = one(await audited(ledger.disk, deep=True))
    assert difference.range_name == "payload"
    assert ("job 01" in difference.key) == expected
    assert (difference.expected is not None, difference.found is not None) == (expected, found)
    before, after = rows_in(pristine.disk, b"p/"), rows_in(ledger.disk, b"p/")
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {difference.raw_key}


# ---------------------------------------------------------------------- limits and refusals


async def test_differences_are_kept_up_to_a_bound_and_counted_beyond_it(ledger: Ledger) -> None:
    assert audit_module._MAX_DIFFERENCES == 1000
    for offset in range(1234):
        ledger.disk.rows[pending_key("mail", 0, 10_000 + offset)] = bytes(16)
    report = await audited(ledger.disk)
    assert len(report.differences) == 1000
    assert report.difference_count == 1234


@pytest.mark.parametrize("held_back", [1, 3])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
async def test_what_should_be_there_is_known_however_many_rows_are_wrong(
    pristine: Ledger, ledger: Ledger, damage: Damage, held_back: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_module, "_STRAY_ROWS", held_back)
    damage.do(ledger)
    report = await audited(ledger.disk)
    found = {d.raw_key: (d.expected is not None, d.found is not None) for d in report.differences}
    assert found == changes(pristine.disk, ledger.disk)
    assert report.difference_count == len(found)


async def test_a_log_that_does_not_verify_is_refused_with_its_offset(ledger: Ledger) -> None:
    base = [key for key, value in rows_in(ledger.disk, keys.LOG_PREFIX).items() if b"mail" in value][1]
    ledger.disk.rows[base] = ledger.disk.rows[base].replace(b"mail", b"male")
    with pytest.raises(LogCorrupt) as caught:
        await audited(ledger.disk)
    assert caught.value.offset == keys.offset_of(base)


async def test_a_store_of_nothing_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StoreNotFound):
        await audited(MemoryDisk())
    ledger.disk.rows[keys.FORMAT_KEY] = b"99"
    with pytest.raises(FormatTooNew):
        await audited(ledger.disk)


async def test_progress_is_told_up_to_the_end(ledger: Ledger) -> None:
    told: list[tuple[int, int]] = []
    report = await audited(ledger.disk, progress=lambda at, end: told.append((at, end)))
    assert told == sorted(told)
    assert told[-1] == (report.verified.events, report.verified.events)


async def test_a_stats_row_of_a_queue_that_never_was_is_found(ledger: Ledger) -> None:
    ledger.disk.rows[stats_key("nowhere")] = ledger.disk.rows[stats_key("mail")]
    difference = one(await audited(ledger.disk))
    assert (difference.range_name, difference.key, difference.expected) == ("stats", "queue 'nowhere'", None)
