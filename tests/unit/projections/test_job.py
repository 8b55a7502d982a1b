"""The job's state machine, walked state by state and event by event along its one table."""

import itertools
from typing import Any, get_args

import pytest
from hypothesis import given
from msgspec.structs import replace

from ledgerq.eventlog.codec import EVENT_TYPES
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import (
    STATES,
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    DeadLettered,
    Deleted,
    Enqueued,
    Expired,
    JobEvent,
    LeaseExpired,
    LimitEvent,
    LogEvent,
    Moved,
    Nacked,
    Promoted,
    QueueEvent,
    QueuePaused,
    QueueResumed,
    Rebuilt,
    Replaced,
    Requeued,
    ScheduleEvent,
    StepDone,
    Swept,
    UniqueReleased,
    UniqueUntil,
    ValueEvent,
    WriterClosed,
    WriterOpened,
)
from ledgerq.eventlog.terms import JSON, Terms, encode_terms
from ledgerq.projections.fold import Fold, Transition
from ledgerq.projections.job import FINISHED, TRANSITIONS, Job, born, evolve, holds_key, may
from tests.support.histories import DIGEST, START_MS, enqueued, histories, job_id, quick

ID = job_id(1)
DUE_MS = START_MS + 1000
SWEEP_MS = START_MS + 9000
EXPIRES_MS = START_MS + 50
# Its unique key is free from that time on, too.
EXPIRES = encode_terms(Terms("", JSON, EXPIRES_MS, 0, EXPIRES_MS))

# One event for each way in which its type can go on.
EVENTS: list[JobEvent] = [
    enqueued(),
    enqueued(due_ms=DUE_MS),
    Promoted(ID),
    Claimed(ID, 1, 30_000, "w1"),
    Acked(ID, SWEEP_MS),
    Nacked(ID, "scheduled", DUE_MS, 0, False, "boom"),
    Nacked(ID, "pending", 0, 0, False, "boom"),
    Nacked(ID, "pending", 0, 0, True, "shutting down"),
    Nacked(ID, "dead", 0, SWEEP_MS, False, "boom"),
    LeaseExpired(ID, "pending", 0, "lease expired"),
    LeaseExpired(ID, "dead", SWEEP_MS, "lease expired"),
    CancelRequested(ID, "ann", "late"),
    Cancelled(ID, SWEEP_MS, "ann", "late"),
    Requeued(ID, "ann", "fixed"),
    Swept(ID),
    DeadLettered(ID, SWEEP_MS, "ann", "the payload is lost"),
    Deleted(ID, "ann", "as asked"),
    Expired(ID, SWEEP_MS),
    Moved(ID, "elsewhere", "ann", "as asked"),
    StepDone(ID, "charge", None),
    Replaced(ID, 5, 0, 22, DIGEST, EXPIRES),
    Replaced(ID, 5, DUE_MS, 22, DIGEST, EXPIRES),
    UniqueReleased(ID),
]


def time_of(event: JobEvent) -> int:
    """A time at which it can happen."""
    return EXPIRES_MS if isinstance(event, Expired | UniqueReleased) else START_MS


SPEC = enqueued(unique_key=b"k", unique_until="period", terms=EXPIRES)

# The shortest way to each state.
PATHS: dict[str, list[JobEvent]] = {
    "new": [],
    "pending": [SPEC],
    "scheduled": [replace(SPEC, due_ms=DUE_MS)],
    "claimed": [SPEC, EVENTS[3]],
    "done": [SPEC, EVENTS[3], EVENTS[4]],
    "dead": [SPEC, EVENTS[3], EVENTS[8]],
    "cancelled": [SPEC, EVENTS[12]],
    "gone": [SPEC, EVENTS[12], Swept(ID)],
}


def folded(events: list[JobEvent]) -> Fold:
    """The fold of these events, one offset and one ms each."""
    fold = Fold()
    for offset, event in enumerate(events):
        fold.apply(offset, START_MS + offset, event)
    return fold


def after(*events: JobEvent, spec: Enqueued | None = None) -> Job:
    """The job after these events; the first is its enqueued event, at offset 10."""
    job = born(spec or enqueued(), 10, START_MS)
    for offset, event in enumerate(events, 11):
        evolved = evolve(job, event, offset, START_MS + offset)
        assert evolved is not None
        job = evolved
    return job


def state_of(job: Job | None) -> str:
    """The state by its name in the table."""
    return "gone" if job is None else job.state


CASES = list(itertools.product(PATHS, EVENTS))


@pytest.mark.parametrize(("state", "event"), CASES, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_every_event_in_every_state_goes_where_the_table_says_or_nowhere(state: str, event: JobEvent) -> None:
    fold = folded(PATHS[state])
    offset = fold.next_offset
    # A job that is gone is like one that never was: its id may be used again.
    allowed = TRANSITIONS[type(event)].get("new" if state == "gone" else state)
    assert (allowed is not None) == may("new" if state == "gone" else state, type(event))
    if allowed is None:
        with pytest.raises(LogCorrupt, match=type(event).__name__) as caught:
            fold.apply(offset, time_of(event), event)
        assert caught.value.offset == offset
    else:
        assert state_of(fold.apply(offset, time_of(event), event).after) in allowed


def test_the_events_above_reach_all_of_the_table() -> None:
    reached = {
        (type(event), state, state_of(folded(PATHS[state]).apply(99, time_of(event), event).after))
        for state, event in CASES
        if state != "gone" and may(state, type(event))
    }
    assert reached == {
        (event_type, state, to)
        for event_type, allowed in TRANSITIONS.items()
        for state, targets in allowed.items()
        for to in targets
    }


def test_the_table_knows_every_job_event_and_every_state() -> None:
    no_job = {
        *get_args(QueueEvent),
        *get_args(ScheduleEvent),
        *get_args(ValueEvent),
        *get_args(LimitEvent),
        *get_args(LogEvent),
    }
    assert set(TRANSITIONS) == set(EVENT_TYPES.values()) - no_job == {type(event) for event in EVENTS}
    left = {state for allowed in TRANSITIONS.values() for state in allowed}
    entered = {state for allowed in TRANSITIONS.values() for states in allowed.values() for state in states}
    assert left == {"new", *STATES}
    assert entered == {"gone", *STATES}
    assert set(PATHS) == {"new", "gone", *STATES}
    assert {state for state in STATES if may(state, Swept)} == FINISHED


@pytest.mark.parametrize(
    "event",
    [
        Nacked(ID, "done", 0, 0, False, ""),
        Nacked(ID, "claimed", 0, 0, False, ""),
        Nacked(ID, "no state", 0, 0, False, ""),  # type: ignore[arg-type]
        LeaseExpired(ID, "scheduled", 0, ""),
        LeaseExpired(ID, "no state", 0, ""),  # type: ignore[arg-type]
    ],
)
def test_an_event_that_leads_to_a_state_outside_the_table_is_rejected(event: JobEvent) -> None:
    fold = folded(PATHS["claimed"])
    before = fold.jobs[ID]
    with pytest.raises(LogCorrupt) as caught:
        fold.apply(2, START_MS, event)
    assert caught.value.offset == 2
    assert fold.jobs[ID] == before


def test_a_new_job_says_what_its_event_says() -> None:
    job = born(enqueued(queue="mail", priority=7, max_attempts=4, unique_key=b"k"), 10, START_MS)
    assert (job.id, job.queue, job.priority, job.max_attempts) == (ID, "mail", 7, 4)
    assert job.job_id == "01HF7YAT000000000000000001"
    assert (job.offset, job.enqueued_ms, job.changed_ms, job.state, job.attempt) == (
        10,
        START_MS,
        START_MS,
        "pending",
        0,
    )
    assert (job.due_ms, job.claim_offset, job.lease_ms, job.sweep_at_ms, job.error) == (0, 0, 0, 0, "")
    assert (job.worker, job.cancel_request, job.unique_held, job.offsets) == (None, None, True, ())


CLAIM, NACK, RELEASE = EVENTS[3], EVENTS[6], EVENTS[7]


@pytest.mark.parametrize(
    ("events", "attempt"),
    [
        ([CLAIM], 1),
        ([CLAIM, NACK], 1),
        ([CLAIM, NACK, Claimed(ID, 2, 1, None)], 2),
        ([CLAIM, EVENTS[9]], 1),
        ([CLAIM, RELEASE], 0),
        ([CLAIM, NACK, Claimed(ID, 2, 1, None), RELEASE], 1),
        ([CLAIM, EVENTS[8]], 1),
        ([CLAIM, EVENTS[8], EVENTS[13]], 0),
        ([CLAIM, EVENTS[4]], 1),
    ],
)
def test_attempts_count_claims_that_were_not_given_back(events: list[JobEvent], attempt: int) -> None:
    assert after(*events).attempt == attempt


def test_a_claim_sets_the_worker_and_the_lease_which_end_with_it() -> None:
    claimed = after(CLAIM)
    assert (claimed.claim_offset, claimed.lease_ms, claimed.worker) == (11, 30_000, "w1")
    nacked = after(CLAIM, NACK)
    assert (nacked.claim_offset, nacked.lease_ms, nacked.worker) == (11, 0, "w1")  # who had it last
    again = after(CLAIM, NACK, Claimed(ID, 2, 5, None))
    assert (again.claim_offset, again.lease_ms, again.worker) == (13, 5, None)


@pytest.mark.parametrize(
    ("events", "due_ms", "sweep_at_ms", "error"),
    [
        ([CLAIM, EVENTS[5]], DUE_MS, 0, "boom"),
        ([CLAIM, EVENTS[5], Promoted(ID)], 0, 0, "boom"),
        ([CLAIM, EVENTS[8]], 0, SWEEP_MS, "boom"),
        ([CLAIM, EVENTS[10]], 0, SWEEP_MS, "lease expired"),
        ([CLAIM, EVENTS[8], EVENTS[13]], 0, 0, "boom"),
        ([CLAIM, EVENTS[4]], 0, SWEEP_MS, ""),
        ([Cancelled(ID, SWEEP_MS, "ann", "late")], 0, SWEEP_MS, ""),
    ],
)
def test_times_belong_to_their_state_and_the_last_error_stays(
    events: list[JobEvent], due_ms: int, sweep_at_ms: int, error: str
) -> None:
    job = after(*events)
    assert (job.due_ms, job.sweep_at_ms, job.error) == (due_ms, sweep_at_ms, error)


@pytest.mark.parametrize(
    ("events", "until_finished", "until_claimed"),
    [
        ([], True, True),
        ([CLAIM], True, False),
        ([CLAIM, NACK], True, False),
        ([CLAIM, EVENTS[5]], True, False),
        ([CLAIM, EVENTS[9]], True, False),
        ([CLAIM, RELEASE], True, False),
        ([CLAIM, EVENTS[11]], True, False),
        ([CLAIM, EVENTS[4]], False, False),
        ([CLAIM, EVENTS[8]], False, False),
        ([CLAIM, EVENTS[10]], False, False),
        ([CLAIM, EVENTS[8], EVENTS[13]], True, False),
        ([EVENTS[12]], False, False),
    ],
)
def test_a_unique_key_is_held_as_long_as_asked(
    events: list[JobEvent], until_finished: bool, until_claimed: bool
) -> None:
    assert after(*events, spec=enqueued(unique_key=b"k")).unique_held == until_finished
    assert after(*events, spec=enqueued(unique_key=b"k", unique_until="claimed")).unique_held == until_claimed
    assert not after(*events).unique_held


def test_a_request_to_cancel_stays_until_the_claim_ends() -> None:
    asked = after(CLAIM, EVENTS[11])
    assert (asked.state, asked.cancel_request, asked.lease_ms) == ("claimed", ("ann", "late"), 30_000)
    assert (asked.claim_offset, asked.worker, asked.attempt) == (11, "w1", 1)
    assert after(CLAIM, EVENTS[11], NACK).cancel_request is None


def test_a_job_remembers_where_its_events_stand_and_when_it_changed() -> None:
    job = after(CLAIM, NACK, Claimed(ID, 2, 1, None))
    assert (job.offset, job.offsets, job.enqueued_ms, job.changed_ms) == (10, (11, 12, 13), START_MS, START_MS + 13)


def test_events_of_queues_and_of_the_log_touch_no_job() -> None:
    fold = folded(PATHS["claimed"])
    before = dict(fold.jobs)
    others: list[Any] = [QueuePaused("q", "ann", "x"), WriterOpened("w", "1", None), WriterClosed("w")]
    for offset, event in enumerate([*others, Rebuilt("ann", "x", (), 0, 0)], 2):
        assert fold.apply(offset, START_MS + 9, event) == Transition(offset, START_MS + 9, event, None, None)
    assert fold.jobs == before
    assert (fold.next_offset, fold.time_ms) == (6, START_MS + 9)
    assert fold.counters_of("q").paused
    fold.apply(6, START_MS, QueueResumed("q", "ann", "x"))
    assert not fold.counters_of("q").paused


@quick
@given(histories())
def test_any_valid_history_is_gapless_for_each_job(transitions: list[Transition]) -> None:
    last: dict[bytes, Job | None] = {}
    for transition in transitions:
        job_id_ = getattr(transition.event, "id", None)
        if job_id_ is not None:
            assert last.get(job_id_) == transition.before
            last[job_id_] = transition.after
            if transition.before is not None and transition.after is not None:
                assert transition.after.offsets == (*transition.before.offsets, transition.offset)


def test_a_job_that_expires_can_not_be_claimed_from_then_on_nor_expire_before() -> None:
    claimed, expired = Claimed(ID, 1, 30_000, None), Expired(ID, SWEEP_MS)
    folded(PATHS["pending"]).apply(5, EXPIRES_MS - 1, claimed)
    for event, time_ms in ((claimed, EXPIRES_MS), (expired, EXPIRES_MS - 1)):
        with pytest.raises(LogCorrupt, match="is to start before"):
            folded(PATHS["pending"]).apply(5, time_ms, event)
    with pytest.raises(LogCorrupt, match="is to start before no time"):
        folded([enqueued(terms=encode_terms(Terms("send")))]).apply(5, EXPIRES_MS, expired)


@pytest.mark.parametrize(
    ("expires", "deadline", "first"), [(0, 0, 0), (7, 0, 7), (0, 7, 7), (5, 7, 5), (9, 7, 7)], ids=str
)
def test_a_job_starts_before_it_expires_and_before_its_deadline(expires: int, deadline: int, first: int) -> None:
    assert after(spec=enqueued(terms=encode_terms(Terms("", JSON, expires, deadline)))).starts_before_ms == first


def test_a_moved_job_begins_anew_in_its_queue_without_its_key() -> None:
    claimed, dead = Claimed(ID, 2, 30_000, "w1"), Nacked(ID, "dead", 0, SWEEP_MS, False, "boom", "OSError")
    moved = after(claimed, dead, Moved(ID, "other", "ann", "there"), spec=enqueued(unique_key=b"k"))
    assert (moved.queue, moved.moved_from, moved.state, moved.attempt) == ("other", "mail", "pending", 0)
    assert (moved.unique_held, moved.sweep_at_ms, moved.since_ms) == (False, 0, START_MS + 13)
    assert (moved.error, moved.error_type, moved.offsets) == ("boom", "OSError", (11, 12, 13))
    waiting = after(Moved(ID, "other", "ann", "there"), spec=enqueued(due_ms=DUE_MS))
    assert (waiting.state, waiting.due_ms, waiting.since_ms) == ("scheduled", DUE_MS, DUE_MS)


@pytest.mark.parametrize("queue", ["mail", "", "a\0b", "x" * 256])
def test_a_job_is_moved_to_another_queue_that_can_be_one(queue: str) -> None:
    with pytest.raises(LogCorrupt, match="can't be moved"):
        folded(PATHS["pending"]).apply(5, START_MS, Moved(ID, queue, "ann", "there"))


def held_at(job: Job, time_ms: int) -> tuple[bool, bool]:
    """Whether the key is the job's at this time in the index, and against others."""
    return job.unique_held, holds_key(job, time_ms)


HOLD_MS = START_MS + 20
LATE_ACK, LATE_NACK = (25, Acked(ID, SWEEP_MS)), (25, NACK)


@pytest.mark.parametrize(
    ("until", "events", "early", "late"),
    [
        ("finished", [], True, True),
        ("finished", [(5, CLAIM), (6, EVENTS[4])], True, False),
        ("finished", [(5, CLAIM), LATE_ACK], False, False),
        ("finished", [(5, CLAIM), (6, EVENTS[8]), (7, EVENTS[13])], True, True),
        ("claimed", [], True, True),
        ("claimed", [(5, CLAIM)], True, False),
        ("claimed", [(5, CLAIM), (6, NACK)], True, False),
        ("claimed", [(25, CLAIM)], False, False),
        ("period", [], True, False),
        ("period", [(5, CLAIM)], True, False),
        ("period", [(25, CLAIM)], True, False),
        ("period", [(5, CLAIM), LATE_ACK], False, False),
        ("period", [(5, CLAIM), (6, EVENTS[8]), (7, EVENTS[13])], True, False),
    ],
)
def test_a_unique_key_is_held_for_its_period_and_as_long_as_asked(
    until: UniqueUntil, events: list[tuple[int, JobEvent]], early: bool, late: bool
) -> None:
    job = born(enqueued(unique_key=b"k", unique_until=until, terms=encode_terms(Terms(hold_ms=HOLD_MS))), 0, START_MS)
    for offset, (ms, event) in enumerate(events, 1):
        evolved = evolve(job, event, offset, START_MS + ms)
        assert evolved is not None
        job = evolved
    assert (job.unique_held, holds_key(job, HOLD_MS - 1), holds_key(job, HOLD_MS)) == (early, early, late)
    gone = evolve(job, UniqueReleased(ID), 9, HOLD_MS)
    assert gone is not None
    assert held_at(gone, START_MS) == (False, False)
    assert (gone.state, gone.since_ms, gone.sweep_at_ms, gone.due_ms) == (
        job.state,
        job.since_ms,
        job.sweep_at_ms,
        job.due_ms,
    )


@pytest.mark.parametrize(
    "event", [UniqueReleased(ID), Replaced(ID, 3, 0, 1, DIGEST), Replaced(ID, 3, 0, 1, DIGEST, b"")]
)
def test_a_period_is_not_ended_early_nor_changed(event: JobEvent) -> None:
    with pytest.raises(LogCorrupt, match=r"unique key|not msgpack"):
        folded(PATHS["pending"]).apply(5, EXPIRES_MS - 1, event)
    if event != UniqueReleased(ID):
        return
    for spec in (enqueued(), enqueued(unique_key=b"k")):
        with pytest.raises(LogCorrupt, match="gave up its unique key"):
            folded([spec]).apply(5, EXPIRES_MS, event)


def test_a_replaced_job_begins_anew_with_its_new_payload_in_its_place() -> None:
    nacked = Nacked(ID, "scheduled", DUE_MS, 0, False, "boom", "OSError")
    before = after(CLAIM, nacked, spec=enqueued(unique_key=b"k"))
    new = after(CLAIM, nacked, Replaced(ID, 9, 0, 77, b"d" * 32), spec=enqueued(unique_key=b"k"))
    assert (new.state, new.attempt, new.max_attempts, new.due_ms) == ("pending", 0, 9, 0)
    assert (new.payload_at, new.payload_offset, new.spec.payload_bytes, new.spec.payload_digest) == (
        13,
        13,
        77,
        b"d" * 32,
    )
    assert (new.offset, new.enqueued_ms, new.id, new.priority) == (before.offset, START_MS, ID, before.priority)
    assert (before.payload_at, before.payload_offset, new.since_ms, new.offsets) == (0, 10, START_MS + 13, (11, 12, 13))
