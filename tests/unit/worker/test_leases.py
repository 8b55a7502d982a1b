"""Leases: soonest first, renewals count, and old heap entries are cleared away."""

from hypothesis import given
from hypothesis import strategies as st

from ledgerq.worker.engine.leases import Lease, Leases
from tests.support.histories import job_id, some


def leases_of(*ends: tuple[int, int]) -> Leases:
    """Leases by (job number, end), each of the claim at the job's number."""
    leases = Leases()
    for number, expires_ms in ends:
        leases.hold(Lease(expires_ms, job_id(number), number))
    return leases


def numbers(leases: list[Lease]) -> list[int]:
    """The jobs' numbers."""
    return [lease.claim_offset for lease in leases]


def test_leases_of_nothing_have_nothing_that_ends() -> None:
    leases = Leases()
    assert (len(leases), leases.next_ms(), leases.expired(10**15, 10)) == (0, None, [])
    leases.drop(job_id(1))


def test_leases_end_soonest_first() -> None:
    leases = leases_of((1, 30), (2, 10), (3, 20))
    assert leases.next_ms() == 10
    assert numbers(leases.expired(9, 10)) == []
    assert numbers(leases.expired(10, 10)) == [2]
    assert numbers(leases.expired(30, 10)) == [2, 3, 1]
    assert numbers(leases.expired(30, 2)) == [2, 3]


def test_ended_leases_stay_until_they_are_dropped() -> None:
    leases = leases_of((1, 10), (2, 20))
    assert numbers(leases.expired(20, 10)) == numbers(leases.expired(20, 10)) == [1, 2]
    leases.drop(job_id(1))
    assert numbers(leases.expired(20, 10)) == [2]
    assert len(leases) == 1


def test_a_renewal_moves_the_end_both_ways() -> None:
    leases = leases_of((1, 10), (2, 20), (1, 30))
    assert (len(leases), leases.next_ms()) == (2, 20)
    assert leases.expires_ms(job_id(1), 1) == 30
    leases.hold(Lease(5, job_id(1), 1))
    assert (len(leases), leases.next_ms()) == (2, 5)
    assert numbers(leases.expired(20, 10)) == [1, 2]


def test_only_the_current_claim_has_a_lease() -> None:
    leases = leases_of((1, 10))
    assert leases.expires_ms(job_id(1), 2) is None
    assert leases.expires_ms(job_id(2), 1) is None
    leases.hold(Lease(50, job_id(1), 7))  # claimed again
    assert leases.expires_ms(job_id(1), 1) is None
    assert leases.expires_ms(job_id(1), 7) == 50


def test_renewals_without_end_leave_nothing_behind() -> None:
    leases = leases_of((1, 10), (2, 20))
    for expires_ms in range(30, 5000):
        leases.hold(Lease(expires_ms, job_id(1), 1))
    assert len(leases._heap) <= 4 * len(leases) + 64
    assert (leases.next_ms(), leases.expires_ms(job_id(1), 1)) == (20, 4999)


HOLD, DROP = "hold", "drop"
STEPS = st.tuples(st.sampled_from([HOLD, HOLD, DROP]), st.integers(0, 5), st.integers(0, 40))


@some
@given(
    st.lists(STEPS, min_size=20, max_size=90),
    st.integers(0, 40),
    st.integers(1, 8),
)
def test_leases_agree_with_a_plain_dictionary(steps: list[tuple[str, int, int]], now_ms: int, limit: int) -> None:
    leases, model = Leases(), dict[int, int]()
    for what, number, expires_ms in steps:
        if what == HOLD:
            leases.hold(Lease(expires_ms, job_id(number), number))
            model[number] = expires_ms
        else:
            leases.drop(job_id(number))
            model.pop(number, None)
        assert len(leases) == len(model)
        assert leases.next_ms() == min(model.values(), default=None)
    due = sorted(
        Lease(expires_ms, job_id(number), number) for number, expires_ms in model.items() if expires_ms <= now_ms
    )
    assert leases.expired(now_ms, limit) == due[:limit]
    assert {number: leases.expires_ms(job_id(number), number) for number in model} == model


def test_when_the_clock_was_set_back_each_lease_begins_anew() -> None:
    told = list[int]()
    leases = Leases()
    leases.hold(Lease(1_000_030, job_id(1), 1, 1_000_000))
    leases.hold(Lease(1_000_500, job_id(2), 2, 1_000_000))
    leases.on_hold = told.append
    leases.hold(Lease(500_010, job_id(3), 3, 500_000))
    assert told == [500_030, 500_010]
    assert [leases.expires_ms(job_id(number), number) for number in (1, 2, 3)] == [500_030, 500_500, 500_010]
    assert numbers(leases.expired(500_030, 10)) == [3, 1]
    assert numbers(leases.expired(400_000, 10)) == []
    assert numbers(leases.expired(400_030, 10)) == [3, 1]


def test_a_clock_that_is_slewed_leaves_leases_alone() -> None:
    leases = Leases()
    leases.hold(Lease(1_000_030, job_id(1), 1, 1_000_000))
    assert leases.expired(999_500, 10) == []
    assert leases.next_ms() == 1_000_030
