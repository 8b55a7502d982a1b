"""The index rows of a job in each state, and that the changes of a commit are the difference between them."""

from collections.abc import Sequence
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.errors import ProjectionDrift
from ledgerq.eventlog.events import Cancelled, Claimed, JobEvent, LeaseExpired, Nacked, Requeued
from ledgerq.eventlog.keys import PAYLOAD_PREFIX, payload_key
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.index_keys import RANGES, job_key, unique_key
from ledgerq.projections.indexes import decode_job, index_entries
from ledgerq.projections.job import Job, born, evolve
from ledgerq.worker.engine.commit_rows import index_changes
from tests.support.histories import START_MS, enqueued, histories, job_id, quick, some

ID = job_id(1)
OFFSET = (5).to_bytes(8)
SWEEP_MS = (START_MS + 9).to_bytes(8)

Rows = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]

CLAIM = Claimed(ID, 1, 30_000, "w1")
RETRY = Nacked(ID, "scheduled", START_MS + 9, 0, False, "boom")
DEAD = Nacked(ID, "dead", 0, START_MS + 9, False, "boom")


def job_after(*events: JobEvent, **spec: Any) -> Job:
    """A job enqueued at offset 5, after these events."""
    job = born(enqueued(**spec), 5, START_MS)
    for offset, event in enumerate(events, 6):
        job = evolve(job, event, offset, START_MS) or job
    return job


@pytest.mark.parametrize(
    ("job", "places"),
    [
        (job_after(), {b"i/pending/mail\0\0\0\x03\xe8" + OFFSET: ID}),
        (job_after(due_ms=START_MS + 9), {b"i/scheduled/" + SWEEP_MS + OFFSET: ID}),
        (job_after(CLAIM), {b"i/claimed/" + ID: b""}),
        (job_after(CLAIM, RETRY), {b"i/scheduled/" + SWEEP_MS + OFFSET: ID}),
        (job_after(CLAIM, DEAD), {b"i/finished/" + SWEEP_MS + ID: b"", b"i/dead/mail\0" + OFFSET: ID}),
        (job_after(Cancelled(ID, START_MS + 9, "ann", "x")), {b"i/finished/" + SWEEP_MS + ID: b""}),
        # A retried job keeps its place, so that it comes before what was enqueued after it.
        (job_after(CLAIM, LeaseExpired(ID, "pending", 0, "x")), {b"i/pending/mail\0\0\0\x03\xe8" + OFFSET: ID}),
        (job_after(CLAIM, DEAD, Requeued(ID, "ann", "x")), {b"i/pending/mail\0\0\0\x03\xe8" + OFFSET: ID}),
    ],
)
def test_a_job_is_found_where_its_state_says(job: Job, places: Rows) -> None:
    assert index_entries(job) == {b"i/job/" + ID: pack(job)} | places


@quick
@given(histories())
def test_the_bytes_of_a_job_are_those_of_any_msgpack(history: Sequence[Transition]) -> None:
    for job in (transition.after for transition in history):
        if job is not None:
            spec, *rest = astuple(job)
            assert pack(job) == msgpack.packb((astuple(spec), *rest))
            assert decode_job(pack(job)) == job


@pytest.mark.parametrize(("events", "held"), [([], True), ([CLAIM], True), ([CLAIM, DEAD], False)])
def test_a_unique_key_is_found_while_it_is_held(events: list[JobEvent], held: bool) -> None:
    entries = index_entries(job_after(*events, unique_key=b"k\0k"))
    assert entries.get(b"i/unique/mail\0k\0k") == (ID if held else None)
    assert not [key for key in index_entries(job_after(*events)) if key.startswith(b"i/unique/")]


def changes_of(*pairs: tuple[Job | None, Job | None]) -> Changes:
    """The changes of a commit that touched these jobs, given before and after it."""
    return index_changes({(before or after).spec.id: (before, after) for before, after in pairs})  # type: ignore[union-attr]


def test_a_job_enqueued_and_claimed_in_one_commit_costs_only_its_last_state() -> None:
    job = job_after(CLAIM)
    assert changes_of((None, job)) == {job_key(ID): pack(job), b"i/claimed/" + ID: b""}


def test_a_claim_moves_a_job_from_one_range_to_another() -> None:
    before, after = job_after(), job_after(CLAIM)
    assert changes_of((before, after)) == {
        job_key(ID): pack(after),
        b"i/pending/mail\0\0\0\x03\xe8" + OFFSET: None,
        b"i/claimed/" + ID: b"",
    }


def test_a_swept_job_takes_all_its_rows_and_its_payload_along() -> None:
    dead = job_after(CLAIM, DEAD)
    assert changes_of((dead, None)) == dict.fromkeys([*index_entries(dead), payload_key(5)])


def test_a_job_swept_and_enqueued_anew_under_its_id_in_one_commit_leaves_no_payload() -> None:
    dead, new = job_after(CLAIM, DEAD), born(enqueued(), 9, START_MS)
    gone = dict.fromkeys(key for key in index_entries(dead) if key != job_key(ID))
    assert changes_of((dead, new)) == {**gone, payload_key(5): None, **index_entries(new)}


def test_what_stays_is_not_written_again() -> None:
    before, after = job_after(unique_key=b"k"), job_after(CLAIM, unique_key=b"k")
    assert unique_key("mail", b"k") not in changes_of((before, after))


@pytest.mark.parametrize("released_first", [True, False])
def test_a_unique_key_released_and_taken_in_one_commit_belongs_to_the_taker(released_first: bool) -> None:
    claimed, done = job_after(CLAIM, unique_key=b"k"), job_after(CLAIM, DEAD, unique_key=b"k")
    taker = born(enqueued(2, unique_key=b"k"), 9, START_MS)
    pairs: list[tuple[Job | None, Job | None]] = [(claimed, done), (None, taker)]
    changes = changes_of(*(pairs if released_first else reversed(pairs)))
    assert changes[unique_key("mail", b"k")] == job_id(2)


def commits(transitions: Sequence[Transition], sizes: Sequence[int]) -> list[list[Transition]]:
    """The transitions in groups of these sizes, the last one taking the rest."""
    groups, at = [], 0
    for size in sizes:
        groups.append(list(transitions[at : at + size]))
        at += size
    return [*groups, list(transitions[at:])]


def touched_by(transitions: Sequence[Transition]) -> dict[bytes, tuple[Job | None, Job | None]]:
    """Each job of a commit, before its first and after its last event."""
    touched: dict[bytes, tuple[Job | None, Job | None]] = {}
    for transition in transitions:
        if (one := transition.after or transition.before) is not None:
            first = touched.get(one.id, (transition.before, None))[0]
            touched[one.id] = (first, transition.after)
    return touched


@some
@given(histories(), st.lists(st.integers(1, 8), max_size=20))
def test_the_changes_of_commits_add_up_to_the_rows_of_the_fold(history: list[Transition], sizes: list[int]) -> None:
    fold = Fold()
    rows: dict[bytes, bytes | None] = {}
    for group in commits(history, sizes):
        changes = index_changes(touched_by(group))
        deleted_payloads = {key for key in changes if key.startswith(PAYLOAD_PREFIX)}
        left = [
            before
            for before, after in touched_by(group).values()
            if before is not None and (after is None or after.payload_offset != before.payload_offset)
        ]
        assert deleted_payloads == {payload_key(job.payload_offset) for job in left}
        for key, value in changes.items():
            if key not in deleted_payloads:
                assert rows.get(key) != value, "a change that changes nothing"
                rows[key] = value
        rows = {key: value for key, value in rows.items() if value is not None}
        for transition in group:
            fold.apply(transition.offset, transition.time_ms, transition.event)
        expected: Rows = {}
        for job in fold.jobs.values():
            expected |= index_entries(job)
        assert rows == expected


@quick
@given(histories())
def test_no_index_row_belongs_to_two_jobs(history: list[Transition]) -> None:
    fold = Fold()
    for transition in history:
        fold.apply(transition.offset, transition.time_ms, transition.event)
        keys = [key for job in fold.jobs.values() for key in index_entries(job)]
        assert len(set(keys)) == len(keys)
        assert all(key.startswith(tuple(RANGES.values())) for key in keys)


@quick
@given(histories())
def test_a_job_row_is_read_back_as_it_was(history: list[Transition]) -> None:
    for transition in history:
        if transition.after is not None:
            assert decode_job(pack(transition.after)) == transition.after


ROW = pack(job_after(CLAIM, DEAD))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        pack(5),
        pack([]),
        pack([1] * 15),
        pack([1] * 16),
        pack({"a": 1}),
        pack(unpack(ROW)[:14]),
        pack([*unpack(ROW), 1]),
        pack([unpack(ROW)[0][:-2], *unpack(ROW)[1:]]),
        ROW + b"\0",
    ],
)
def test_a_malformed_job_row_is_drift(value: bytes) -> None:
    with pytest.raises(ProjectionDrift, match="rebuild-projections"):
        decode_job(value)


def test_a_row_of_format_1_is_read_with_when_it_was_due_or_changed() -> None:
    for job in (job_after(), job_after(due_ms=START_MS + 9), job_after(CLAIM), job_after(CLAIM, RETRY)):
        rows = index_entries(job, 1)
        assert {key for key, value in rows.items() if value != index_entries(job)[key]} == {job_key(ID)}
        spec, *fields = unpack(pack(job))
        assert unpack(rows[job_key(ID)]) == (spec[:-1], *fields[:14])
        assert decode_job(rows[job_key(ID)]) == job


def test_a_row_of_format_2_is_read_with_nothing_for_what_came_later() -> None:
    for job in (job_after(), job_after(CLAIM), job_after(CLAIM, RETRY)):
        rows = index_entries(job, 2)
        spec, *fields = unpack(pack(job))
        assert unpack(rows.pop(job_key(ID))) == (spec[:-1], *fields[:15])
        assert decode_job(index_entries(job, 2)[job_key(ID)]) == job
        assert rows.items() <= index_entries(job).items()


def test_a_truncated_job_row_is_drift() -> None:
    for size in range(len(ROW)):
        with pytest.raises(ProjectionDrift):
            decode_job(ROW[:size])
