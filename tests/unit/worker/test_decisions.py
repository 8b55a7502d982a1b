"""Given a job, when something is asked, then these events follow or it is refused: every branch of every decision."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, InvalidState
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    CancelRequested,
    Claimed,
    JobEvent,
    LeaseExpired,
    Nacked,
    Promoted,
    Requeued,
    Swept,
)
from ledgerq.projections.fold import Transition
from ledgerq.projections.job import Job, born, evolve, may
from ledgerq.worker.engine import decisions
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.retry_rules import RetryRule, on
from tests.support.histories import START_MS, enqueued, histories, job_id, quick

ID = job_id(1)
NOW_MS = START_MS + 5000
OPTIONS = QueueOptions(
    backoff_base_s=1.0, backoff_cap_s=300.0, keep_done_s=10.0, keep_dead_s=20.0, keep_cancelled_s=30.0
)
CLAIM_OFFSET = 11
ASKED = CancelRequested(ID, "ann", "late")


def job_after(*events: JobEvent, **spec: Any) -> Job:
    """A job enqueued at offset 10, after these events."""
    job = born(enqueued(**spec), 10, START_MS)
    for offset, event in enumerate(events, 11):
        job = evolve(job, event, offset, START_MS) or job
    return job


def claimed(attempt: int = 1, *more: JobEvent, **spec: Any) -> Job:
    """A job claimed at offset 11 for its `attempt`-th try."""
    return job_after(Claimed(ID, attempt, 30_000, "w1"), *more, **spec)


PENDING = job_after()
SCHEDULED = job_after(due_ms=NOW_MS)
CLAIMED = claimed()
DONE = claimed(1, Acked(ID, NOW_MS))
DEAD = claimed(1, Nacked(ID, "dead", 0, NOW_MS, False, "boom"))
CANCELLED = job_after(Cancelled(ID, NOW_MS, "ann", "late"))
ALL = (PENDING, SCHEDULED, CLAIMED, DONE, DEAD, CANCELLED)


def but(*jobs: Job) -> pytest.MarkDecorator:
    """A parameter: the jobs in every other state."""
    return pytest.mark.parametrize("job", [job for job in ALL if job not in jobs], ids=lambda job: job.state)


def nack(job: Job | None, offset: int = CLAIM_OFFSET, **changed: Any) -> list[JobEvent]:
    """A nack with everything left open, but for what is given."""
    asked = {"error": "boom", "delay_ms": None, "dead": False, "fraction": 0.5}
    return decisions.nack(job, offset, options=OPTIONS, now_ms=NOW_MS, **(asked | changed))


# Claims


def test_a_pending_job_is_claimed_for_its_next_attempt() -> None:
    assert decisions.claim(PENDING, lease_ms=5, worker=None) == Claimed(ID, 1, 5, None)
    again = claimed(2, Nacked(ID, "pending", 0, 0, False, ""))
    assert decisions.claim(again, lease_ms=7, worker="w2") == Claimed(ID, 3, 7, "w2")


@but(PENDING)
def test_no_other_job_is_claimed(job: Job) -> None:
    with pytest.raises(InvalidState, match=r"must be pending"):
        decisions.claim(job, lease_ms=5, worker=None)


SETTLE: list[Callable[[Job | None, int], object]] = [
    lambda job, offset: decisions.ack(job, offset, options=OPTIONS, now_ms=NOW_MS),
    nack,
    lambda job, offset: decisions.release(job, offset, options=OPTIONS, now_ms=NOW_MS, error=""),
]


@pytest.mark.parametrize("settle", SETTLE, ids=["ack", "nack", "release"])
@pytest.mark.parametrize(
    ("job", "offset"),
    [
        (None, CLAIM_OFFSET),
        (CLAIMED, CLAIM_OFFSET - 1),
        (CLAIMED, CLAIM_OFFSET + 1),
        (DONE, CLAIM_OFFSET + 1),
        (DEAD, CLAIM_OFFSET),
        (claimed(1, Nacked(ID, "pending", 0, 0, False, "")), CLAIM_OFFSET),
        (claimed(1, Nacked(ID, "scheduled", NOW_MS, 0, False, "")), CLAIM_OFFSET),
        (claimed(1, LeaseExpired(ID, "pending", 0, ""), Claimed(ID, 2, 5, "w2")), CLAIM_OFFSET),
    ],
)
def test_a_claim_that_is_not_current_settles_nothing(
    settle: Callable[[Job | None, int], object], job: Job | None, offset: int
) -> None:
    with pytest.raises(ClaimLost, match=f"offset {offset}"):
        settle(job, offset)


def test_an_ack_that_is_repeated_needs_no_event() -> None:
    assert decisions.ack(DONE, CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS) is None


def test_an_ack_keeps_the_job_as_long_as_the_queue_says() -> None:
    assert decisions.ack(CLAIMED, CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS) == Acked(ID, NOW_MS + 10_000)


def test_an_ack_wins_over_a_request_to_cancel() -> None:
    asked = claimed(1, ASKED)
    assert decisions.ack(asked, CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS) == Acked(ID, NOW_MS + 10_000)


@pytest.mark.parametrize(
    ("attempt", "asked", "expected"),
    [
        (1, {}, Nacked(ID, "scheduled", NOW_MS + 500, 0, False, "boom")),
        (2, {}, Nacked(ID, "scheduled", NOW_MS + 1000, 0, False, "boom")),
        (1, {"delay_ms": 7}, Nacked(ID, "scheduled", NOW_MS + 7, 0, False, "boom")),
        (1, {"delay_ms": 0}, Nacked(ID, "pending", 0, 0, False, "boom")),
        (1, {"dead": True}, Nacked(ID, "dead", 0, NOW_MS + 20_000, False, "boom")),
        (1, {"dead": True, "delay_ms": 7}, Nacked(ID, "dead", 0, NOW_MS + 20_000, False, "boom")),
        (3, {}, Nacked(ID, "dead", 0, NOW_MS + 20_000, False, "boom")),
        (3, {"delay_ms": 0}, Nacked(ID, "dead", 0, NOW_MS + 20_000, False, "boom")),
        (4, {}, Nacked(ID, "dead", 0, NOW_MS + 20_000, False, "boom")),
    ],
)
def test_a_failed_try_is_retried_later_until_the_attempts_are_spent(
    attempt: int, asked: dict[str, Any], expected: Nacked
) -> None:
    assert nack(claimed(attempt, max_attempts=3), **asked) == [expected]


def test_without_backoff_a_failed_try_is_pending_at_once() -> None:
    options = QueueOptions(backoff_base_s=0)
    events = decisions.nack(
        CLAIMED, CLAIM_OFFSET, options=options, now_ms=NOW_MS, error="", delay_ms=None, dead=False, fraction=0.9
    )
    assert events == [Nacked(ID, "pending", 0, 0, False, "")]


@pytest.mark.parametrize("asked", [{}, {"dead": True}, {"delay_ms": 7}, {"delay_ms": 0}])
@pytest.mark.parametrize("attempt", [1, 3])
def test_a_failed_try_of_a_job_that_is_to_stop_is_its_last(attempt: int, asked: dict[str, Any]) -> None:
    assert nack(claimed(attempt, ASKED), **asked) == [
        Nacked(ID, "pending", 0, 0, False, "boom"),
        Cancelled(ID, NOW_MS + 30_000, "ann", "late"),
    ]


@pytest.mark.parametrize("attempt", [1, 3, 4])
def test_a_claim_given_back_is_pending_at_once_and_does_not_count(attempt: int) -> None:
    events = decisions.release(claimed(attempt), CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="bye")
    assert events == [Nacked(ID, "pending", 0, 0, True, "bye")]


def test_a_claim_given_back_of_a_job_that_is_to_stop_is_its_last() -> None:
    events = decisions.release(claimed(1, ASKED), CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="bye")
    assert events == [Nacked(ID, "pending", 0, 0, True, "bye"), Cancelled(ID, NOW_MS + 30_000, "ann", "late")]


def test_a_claim_may_be_given_back_for_later() -> None:
    events = decisions.release(
        claimed(3), CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="no such task", delay_ms=60_000
    )
    assert events == [Nacked(ID, "scheduled", NOW_MS + 60_000, 0, True, "no such task")]
    later = evolve(claimed(3), events[0], 12, NOW_MS)
    assert later is not None
    assert (later.state, later.attempt, later.due_ms) == ("scheduled", 2, NOW_MS + 60_000)
    stopped = decisions.release(
        claimed(1, ASKED), CLAIM_OFFSET, options=OPTIONS, now_ms=NOW_MS, error="bye", delay_ms=60_000
    )
    assert [type(event) for event in stopped] == [Nacked, Cancelled]


@pytest.mark.parametrize(
    ("rule", "attempt", "expected"),
    [
        (on(OSError), 2, ("scheduled", 1000)),
        (on(OSError), 3, ("dead", None)),
        (on(OSError, attempts=5), 4, ("scheduled", 4000)),
        (on(OSError, attempts=5), 5, ("dead", None)),
        (on(OSError, attempts=1), 1, ("dead", None)),
        (on(OSError, base=10), 2, ("scheduled", 10_000)),
        (on(OSError, cap=0.5), 2, ("scheduled", 250)),
        (on(OSError, base=0), 2, ("pending", None)),
        (on(OSError, dead=True), 1, ("dead", None)),
    ],
)
def test_a_rule_counts_before_the_job_and_its_queue(
    rule: RetryRule, attempt: int, expected: tuple[str, int | None]
) -> None:
    state, delay_ms = expected
    due_ms = 0 if delay_ms is None else NOW_MS + delay_ms
    sweep_at_ms = NOW_MS + 20_000 if state == "dead" else 0
    (event,) = nack(claimed(attempt), rule=rule, error_type="OSError")
    assert event == Nacked(ID, state, due_ms, sweep_at_ms, False, "boom", "OSError")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: on(),
        lambda: on("OSError"),  # type: ignore[arg-type]
        lambda: on(OSError, attempts=0),
        lambda: on(OSError, attempts=True),
        lambda: on(OSError, base=-1),
        lambda: on(OSError, cap=float("nan")),
        lambda: on(OSError, base=9, cap=3),
        lambda: on(OSError, dead=True, attempts=3),
        lambda: on(OSError, dead=1),  # type: ignore[arg-type]
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: Callable[[], RetryRule]) -> None:
    with pytest.raises(InvalidArgument):
        wrong()


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (claimed(1), [LeaseExpired(ID, "pending", 0, "lease expired")]),
        (claimed(2), [LeaseExpired(ID, "pending", 0, "lease expired")]),
        (claimed(3), [LeaseExpired(ID, "dead", NOW_MS + 20_000, "lease expired")]),
        (claimed(1, max_attempts=1), [LeaseExpired(ID, "dead", NOW_MS + 20_000, "lease expired")]),
        (
            claimed(3, ASKED),
            [LeaseExpired(ID, "pending", 0, "lease expired"), Cancelled(ID, NOW_MS + 30_000, "ann", "late")],
        ),
    ],
)
def test_a_lease_that_ends_gives_the_job_another_try_or_none(job: Job, expected: list[JobEvent]) -> None:
    assert decisions.expire(job, options=OPTIONS, now_ms=NOW_MS, reason=decisions.LEASE_EXPIRED) == expected


# Time


@pytest.mark.parametrize(("due_ms", "is_due"), [(NOW_MS - 1, True), (NOW_MS, True), (NOW_MS + 1, False)])
def test_a_scheduled_job_is_promoted_once_it_is_due(due_ms: int, is_due: bool) -> None:
    assert decisions.promote(job_after(due_ms=due_ms), now_ms=NOW_MS) == ([Promoted(ID)] if is_due else [])


@pytest.mark.parametrize(("sweep_at_ms", "is_over"), [(NOW_MS - 1, True), (NOW_MS, True), (NOW_MS + 1, False)])
def test_a_finished_job_is_swept_once_its_time_is_over(sweep_at_ms: int, is_over: bool) -> None:
    for job in (DONE, DEAD, CANCELLED):
        finished = replace(job, sweep_at_ms=sweep_at_ms)
        assert decisions.sweep(finished, now_ms=NOW_MS) == ([Swept(ID)] if is_over else [])


@but(SCHEDULED)
def test_no_other_job_is_promoted(job: Job) -> None:
    assert decisions.promote(job, now_ms=NOW_MS * 2) == []
    assert decisions.promote(None, now_ms=NOW_MS) == []


@but(DONE, DEAD, CANCELLED)
def test_no_other_job_is_swept(job: Job) -> None:
    assert decisions.sweep(job, now_ms=NOW_MS * 2) == []
    assert decisions.sweep(None, now_ms=NOW_MS) == []


# Operators


def cancel(job: Job, actor: Any = "bob", reason: Any = "typo") -> list[JobEvent]:
    """A cancellation."""
    return decisions.cancel(job, options=OPTIONS, now_ms=NOW_MS, actor=actor, reason=reason)


def test_a_waiting_job_is_cancelled_at_once() -> None:
    for job in (PENDING, SCHEDULED):
        assert cancel(job) == [Cancelled(ID, NOW_MS + 30_000, "bob", "typo")]


def test_the_worker_of_a_claimed_job_is_asked_to_stop_and_only_once() -> None:
    assert cancel(CLAIMED) == [CancelRequested(ID, "bob", "typo")]
    assert cancel(claimed(1, ASKED)) == []


@but(PENDING, SCHEDULED, CLAIMED)
def test_a_finished_job_is_not_cancelled(job: Job) -> None:
    with pytest.raises(InvalidState, match=f"is {job.state} already and can't be cancelled"):
        cancel(job)


def test_a_dead_job_is_requeued_unless_its_unique_key_is_taken() -> None:
    assert decisions.requeue(DEAD, now_ms=NOW_MS, unique_holder=None, actor="bob", reason="fixed") == Requeued(
        ID, "bob", "fixed"
    )
    with pytest.raises(InvalidState, match="THE-HOLDER holds its unique key"):
        decisions.requeue(DEAD, now_ms=NOW_MS, unique_holder="THE-HOLDER", actor="bob", reason="fixed")


@but(DEAD)
def test_no_other_job_is_requeued(job: Job) -> None:
    with pytest.raises(InvalidState, match="only a dead job"):
        decisions.requeue(job, now_ms=NOW_MS, unique_holder=None, actor="bob", reason="fixed")


@pytest.mark.parametrize("text", ["", " \n\t", "x" * 1001, None, 5, b"ann"])
def test_an_operator_says_who_and_why(text: Any) -> None:
    for name, asked in (("actor", {"actor": text}), ("reason", {"reason": text})):
        with pytest.raises(InvalidArgument, match=f"{name} must be text of 1 to 1000 characters"):
            cancel(PENDING, **asked)
        with pytest.raises(InvalidArgument, match=name):
            decisions.requeue(DEAD, now_ms=NOW_MS, unique_holder=None, **({"actor": "bob", "reason": "x"} | asked))


def test_an_operators_text_may_be_as_long_as_the_limit_and_hold_anything() -> None:
    assert decisions.operator("x" * 1000, "\ud800") == ("x" * 1000, "\\ud800")


# Backoff and texts


@pytest.mark.parametrize(
    ("attempt", "fraction", "expected_ms"),
    [
        (1, 0.0, 1),
        (1, 0.999, 999),
        (2, 0.999, 1998),
        (4, 0.5, 4000),
        (9, 0.999, 255_744),
        (10, 0.999, 299_700),
        (10_000, 0.999, 299_700),
    ],
)
def test_backoff_doubles_to_its_cap_with_full_jitter(attempt: int, fraction: float, expected_ms: int) -> None:
    assert decisions.backoff_ms(attempt, OPTIONS, fraction) == expected_ms


@quick
@given(st.integers(1, 1_000_000), st.floats(0, 1, exclude_max=True), st.floats(0, 1e6), st.floats(0, 1e6))
def test_backoff_is_never_above_its_ceiling(attempt: int, fraction: float, base_s: float, cap_s: float) -> None:
    options = QueueOptions(backoff_base_s=base_s, backoff_cap_s=cap_s)
    ceiling_ms = 1000 * min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    delay_ms = decisions.backoff_ms(attempt, options, fraction)
    assert 0 <= delay_ms <= max(1, ceiling_ms + 1)
    assert (delay_ms == 0) == (ceiling_ms == 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("boom", "boom"),
        ("", ""),
        ("x" * 4000, "x" * 4000),
        ("x" * 2000 + "y" * 2001, "..." + "x" * 1996 + "y" * 2001),
        ("a\ud800b\udc80", "a\\ud800b\\udc80"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_an_error_is_clipped_to_its_end_and_to_what_utf8_can_hold(text: str, expected: str) -> None:
    (nacked,) = nack(CLAIMED, error=text)
    assert isinstance(nacked, Nacked)
    assert nacked.error == expected


@pytest.mark.parametrize("error", [None, 5, b"boom", ValueError("boom")])
def test_an_error_is_text(error: Any) -> None:
    with pytest.raises(InvalidArgument, match="text"):
        nack(CLAIMED, error=error)


@quick
@given(histories(), st.integers(0, 60))
def test_whatever_is_decided_the_table_allows(history: list[Transition], later_ms: int) -> None:
    for transition in history:
        job, now_ms = transition.after, transition.time_ms + later_ms
        if job is None:
            continue
        decided = [decisions.promote(job, now_ms=now_ms), decisions.sweep(job, now_ms=now_ms)]
        if job.state == "claimed":
            decided.append(nack(job, job.claim_offset))
            decided.append(nack(job, job.claim_offset, delay_ms=0))
            decided.append(decisions.expire(job, options=OPTIONS, now_ms=now_ms, reason="x"))
        if job.state in ("pending", "scheduled", "claimed"):
            decided.append(cancel(job))
        for events in decided:
            now: Job | None = job
            for event in events:
                assert now is not None
                assert may(now.state, type(event))
                now = evolve(now, event, 1000, now_ms)
