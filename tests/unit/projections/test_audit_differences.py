"""An audit's text about a row that differs: the fields that differ, by their names, and ids as people know them."""

import pytest
from msgspec.structs import replace

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.events import Enqueued
from ledgerq.projections.audit import describe
from ledgerq.projections.index_keys import dead_key, finished_key, job_key, pending_key, stats_key
from ledgerq.projections.job import born
from ledgerq.projections.repair.comparison import Mismatch
from ledgerq.projections.stats import QueueCounters

ID = bytes(range(16))
JOB = born(Enqueued(ID, "mail", 5, 3, 0, None, "finished", 10, b"\xff" * 32), 7, 1000)


def sides(key: bytes, expected: bytes | None, found: bytes | None) -> tuple[str | None, str | None]:
    difference = describe(Mismatch(key, expected, found))
    return difference.expected, difference.found


def test_of_an_altered_job_only_the_fields_that_differ_are_shown() -> None:
    dead, lie = replace(JOB, state="dead", last_error="boom " * 200), replace(JOB, state="done")
    expected, found = sides(job_key(ID), pack(dead), pack(lie))
    assert expected is not None
    assert expected.startswith("state='dead', last_error='boom boom")
    assert len(expected) == 400
    assert found == "state='done', last_error=''"
    other = replace(JOB, spec=replace(JOB.spec, priority=1, payload_digest=b"\0" * 32))
    assert sides(job_key(ID), pack(JOB), pack(other)) == (
        f"priority=5, payload_digest={'ff' * 32}",
        f"priority=1, payload_digest={'00' * 32}",
    )


def test_a_missing_job_is_shown_with_its_state_first() -> None:
    expected, found = sides(job_key(ID), pack(JOB), None)
    assert (expected or "").startswith("state='pending', last_error='', offset=7, ")
    assert found is None


def test_counters_are_shown_by_name() -> None:
    right, wrong = QueueCounters(), QueueCounters()
    right.now[3], right.totals[0] = 5, 9
    wrong.now[3], wrong.totals[0] = 6, 8
    assert sides(stats_key("mail"), right.encode(), wrong.encode()) == (
        "done=5, enqueued in all=9",
        "done=6, enqueued in all=8",
    )


@pytest.mark.parametrize("key", [pending_key("mail", 5, 7), dead_key("mail", 7)])
def test_a_row_that_names_a_job_is_shown_with_the_text_of_its_id(key: bytes) -> None:
    assert sides(key, None, ID) == (None, f"job {job_id_text(ID)}")
    assert sides(key, ID, b"") == (f"job {job_id_text(ID)}", "(empty)")


@pytest.mark.parametrize("value", [b"\xc1", b"\x00", pack((1, 2)), pack(JOB)[:-2], b"\x93\x01\x02\x03", b"junk"])
@pytest.mark.parametrize("key", [job_key(ID), stats_key("mail"), finished_key(9, ID)])
def test_whatever_lies_there_instead_is_shown(key: bytes, value: bytes) -> None:
    expected, found = sides(key, pack(JOB) if key == job_key(ID) else QueueCounters().encode(), value)
    assert expected
    assert found


def test_the_same_fields_in_other_bytes_are_shown_as_they_are() -> None:
    now, totals, *others = unpack(QueueCounters().encode())
    expected, found = sides(stats_key("mail"), QueueCounters().encode(), pack((now, [*totals, 0], *others)))
    rest = (False, 0, ((0,) * 20, (0,) * 20, (0,) * 20, (0,) * 9))
    assert (expected, found) == (repr(((0,) * 6, (0,) * 12, *rest)), repr(((0,) * 6, (0,) * 13, *rest)))
