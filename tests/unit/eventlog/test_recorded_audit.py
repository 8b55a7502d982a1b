"""The note of the last audit: beside the anchor, replaced in one step, and never mistaken for another."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ledgerq import StoreUnavailable
from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import Head
from ledgerq.eventlog.errors import LogRolledBack
from ledgerq.eventlog.recorded_audit import (
    AuditStart,
    RecordedAudit,
    decode_recorded_audit,
    encode_recorded_audit,
    read_recorded_audit,
    write_recorded_audit,
)
from ledgerq.projections.audit_recording import record_failure
from ledgerq.projections.index_keys import stats_key
from ledgerq.projections.metrics.store_inspection import StoreInspection
from tests.s3.servers import both_servers, bucket, s3_server
from tests.support.cli_rig import Cli, change_rows, make_ledger

__all__ = ["bucket", "s3_server"]

NOTE = RecordedAudit(time_ms=1_700_000_000_000, offset=12, differences=0, log_intact=True, deep=False)


HEAD = Head(12, bytes(range(32)), 3, 1_699_999_999_000, 9)
WITH_START = NOTE._replace(start=AuditStart(HEAD, {"mail": b"\x01", "ä": b""}, 1_690_000_000_000))


def test_a_note_is_read_back_as_it_was() -> None:
    assert decode_recorded_audit(encode_recorded_audit(NOTE)) == NOTE


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"null",
        encode_recorded_audit(NOTE)[:-5],
        encode_recorded_audit(NOTE._replace(offset=-1)),
        encode_recorded_audit(NOTE).replace(b"12", b'"12"'),
        encode_recorded_audit(NOTE).replace(b"12", b"1e400"),
        encode_recorded_audit(NOTE).replace(b"true", b"1"),
        b"[" * 5000,
    ],
)
def test_what_is_no_note_counts_as_none(value: bytes) -> None:
    assert decode_recorded_audit(value) is None


def started(**changed: Any) -> bytes:
    """A note with a start, whose fields are right except those given."""
    start = json.loads(encode_recorded_audit(WITH_START))["start"]
    return json.dumps(json.loads(encode_recorded_audit(NOTE)) | {"start": start | changed}).encode()


def test_what_a_later_audit_starts_from_is_read_back(tmp_path: Path) -> None:
    assert decode_recorded_audit(encode_recorded_audit(WITH_START)) == WITH_START
    assert decode_recorded_audit(started()) == WITH_START
    # A note of an earlier version has none.
    fields = json.loads(encode_recorded_audit(NOTE))
    del fields["start"]
    assert decode_recorded_audit(json.dumps(fields).encode()) == NOTE


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": "xyz"},
        {"digest": "00"},
        {"next_offset": -1},
        {"next_offset": "5"},
        {"epoch": None},
        {"time_ms": 1e400},
        {"full_ms": None},
        {"full_ms": "x"},
        {"counters": None},
        {"counters": {"mail": "zz"}},
        {"counters": {"mail": 5}},
    ],
)
def test_a_start_that_is_none_makes_it_no_note(changed: dict[str, Any]) -> None:
    assert decode_recorded_audit(started(**changed)) is None


def test_with_very_many_queues_nothing_is_left_to_start_from() -> None:
    counters = {f"queue {number}": bytes(300) for number in range(2000)}
    many = WITH_START._replace(start=AuditStart(HEAD, counters, 5))
    assert decode_recorded_audit(encode_recorded_audit(many)) == NOTE


def test_a_field_of_a_later_version_is_passed_over() -> None:
    assert decode_recorded_audit(encode_recorded_audit(NOTE).replace(b"{", b'{"more": [1],', 1)) == NOTE


async def test_a_file_store_keeps_the_last_one(tmp_path: Path) -> None:
    url = str(tmp_path)
    assert await read_recorded_audit(url) is None
    await write_recorded_audit(url, NOTE)
    await write_recorded_audit(url, NOTE._replace(differences=4))
    assert await read_recorded_audit(url) == NOTE._replace(differences=4)
    assert [path.name for path in tmp_path.iterdir()] == ["audit"]


@pytest.mark.proof
@both_servers
async def test_a_bucket_keeps_it_beside_the_anchor(bucket: str) -> None:
    url = f"s3://{bucket}/jobs"
    assert await read_recorded_audit(url) is None
    await write_recorded_audit(url, NOTE)
    assert await read_recorded_audit(url) == NOTE
    assert await read_recorded_audit(f"s3://{bucket}/others") is None


async def test_a_store_in_memory_has_none() -> None:
    await write_recorded_audit("memory:///", NOTE)
    assert await read_recorded_audit("memory:///") is None


async def test_where_it_can_not_be_written_or_read_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="could not be recorded"):
        await write_recorded_audit(str(tmp_path / "nowhere"), NOTE)
    (tmp_path / "audit").mkdir()
    with pytest.raises(StoreUnavailable, match="can't be read"):
        await read_recorded_audit(str(tmp_path))


async def test_a_disk_that_hangs_is_asked_once_and_in_no_thread_of_the_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, asked = threading.Event(), list[str]()

    def hang(path: Path) -> bytes:
        asked.append(threading.current_thread().name)
        assert goes_on.wait(60)
        return encode_recorded_audit(NOTE)

    monkeypatch.setattr("ledgerq.eventlog.recorded_audit._read", hang)
    clock = ManualClock()
    look = StoreInspection(clock)
    for _ in range(3):
        await look.last_audit(str(tmp_path))
        clock.advance(seconds=60)
    assert [name.partition("-0")[0] for name in asked] == ["ledgerq-audit"]
    assert look.audit_ms is None
    goes_on.set()
    for thread in threading.enumerate():
        if thread.name in asked:
            thread.join(20)
    await look.last_audit(str(tmp_path))
    assert look.audit == NOTE


# The command line


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def noted(url: str) -> RecordedAudit:
    """The note, which must be there, and of just now."""
    note = asyncio.run(read_recorded_audit(url))
    assert note is not None
    assert 0 <= time.time() * 1000 - note.time_ms < 60_000
    return note


def test_an_audit_is_noted_when_that_is_asked_for(cli: Cli, tmp_path: Path) -> None:
    url = asyncio.run(make_ledger(tmp_path / "store")).url
    cli.ok("audit", url)
    assert asyncio.run(read_recorded_audit(url)) is None
    cli.ok("audit", url, "--record", "--deep")
    note = noted(url)
    assert note[:-1] == (note.time_ms, 11, 0, True, True)
    asyncio.run(change_rows(url, {stats_key("mail"): None}))
    assert cli("audit", url, "--record").code == 1
    note = noted(url)
    assert note == (note.time_ms, 11, 1, True, False, None)


def test_an_audit_of_a_damaged_log_is_noted_as_such(cli: Cli, tmp_path: Path) -> None:
    url = asyncio.run(make_ledger(tmp_path / "store")).url
    asyncio.run(change_rows(url, {keys.log_key(1): b"?"}))
    assert "corrupt at offset 1" in cli.fails(1, "audit", url, "--record")
    note = noted(url)
    assert note == (note.time_ms, 1, 0, False, False, None)


def test_an_audit_of_what_came_since_says_what_it_looked_at_and_what_not(cli: Cli, tmp_path: Path) -> None:
    url = asyncio.run(make_ledger(tmp_path / "store")).url
    assert "no audit of this store was recorded" in cli.fails(2, "audit", url, "--since-last")
    cli.ok("audit", url, "--record")
    full = noted(url)
    cli.ok("enqueue", url, "mail", "text")
    text = cli.ok("audit", url, "--since-last", "--record").out
    assert "which ended at offset 11\n" in text
    assert "log     3 events in 3 commits since, proven up to the head" in text
    assert "jobs    1 with an event since compared" in text
    assert "unseen  the log before, rows of other jobs, payloads, hints, projections of users, the blocks of" in text
    assert text.endswith("result  clean since then: what was looked at is what follows from the log\n")
    note = noted(url)
    assert (note.offset, note.differences, note.log_intact) == (14, 0, True)
    assert note.start is not None
    assert full.start is not None
    assert note.start.full_ms == full.start.full_ms == full.time_ms
    found = json.loads(cli.ok("audit", url, "--since-last", "--json").out)
    assert (found["clean"], found["jobs"], found["batches"], found["since"]["offset"]) == (True, 0, 0, 14)
    assert found["since"]["full_audit_time_ms"] == full.time_ms
    assert "payloads" in found["since"]["not_looked_at"]
    assert json.loads(cli.ok("audit", url, "--json").out)["since"] is None
    asyncio.run(change_rows(url, {stats_key("mail"): None}))
    assert "1 difference" in cli("audit", url, "--since-last").out
    for option in (["--deep"], ["--projection", "a:b"]):
        assert "leave out" in cli.fails(2, "audit", url, "--since-last", *option)


def test_where_a_note_can_not_be_written_the_report_is_given_all_the_same(cli: Cli, tmp_path: Path) -> None:
    url = asyncio.run(make_ledger(tmp_path / "store")).url
    (tmp_path / "store" / "audit").mkdir()
    ran = cli("audit", url, "--record")
    assert ran.code == 3
    assert ran.out.endswith("result  clean: the indexes are what follows from the log\n")
    assert "could not be recorded" in ran.message


async def test_a_log_that_holds_another_commit_is_proven_only_up_to_it(tmp_path: Path) -> None:
    for error, offset in ((LogRolledBack(5, 9, "x", first_offset=3), 3), (LogRolledBack(5, 2, "x"), 2)):
        await record_failure(str(tmp_path), ManualClock(), error, deep=False)
        note = await read_recorded_audit(str(tmp_path))
        assert note is not None
        assert (note.offset, note.log_intact) == (offset, False)
