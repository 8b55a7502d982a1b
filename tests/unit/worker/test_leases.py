"""Leases: soonest first, renewals count, and old heap entries are cleared away."""

from hypothesis import given
from hypothesis import strategies as st

from ledgerq.worker.engine.leases import Lease, Leases
from tests.support.histories import job_id, some


def book_of(*leases: tuple[int, int]) -> Leases:
    """Leases by (job number, end), each of the claim at the job's number."""
    book = Leases()
    for number, expires_ms in leases:
        book.hold(Lease(expires_ms, job_id(number), number))
    return book


def numbers(leases: list[Lease]) -> list[int]:
    """The jobs' numbers."""
    return [lease.claim_offset for lease in leases]


def test_an_empty_book_has_nothing_that_ends() -> None:
    book = Leases()
    assert (len(book), book.next_ms(), book.expired(10**15, 10)) == (0, None, [])
    book.drop(job_id(1))


def test_leases_end_soonest_first() -> None:
    book = book_of((1, 30), (2, 10), (3, 20))
    assert book.next_ms() == 10
    assert numbers(book.expired(9, 10)) == []
    assert numbers(book.expired(10, 10)) == [2]
    assert numbers(book.expired(30, 10)) == [2, 3, 1]
    assert numbers(book.expired(30, 2)) == [2, 3]


def test_ended_leases_stay_until_they_are_dropped() -> None:
    book = book_of((1, 10), (2, 20))
    assert numbers(book.expired(20, 10)) == numbers(book.expired(20, 10)) == [1, 2]
    book.drop(job_id(1))
    assert numbers(book.expired(20, 10)) == [2]
    assert len(book) == 1


def test_a_renewal_moves_the_end_both_ways() -> None:
    book = book_of((1, 10), (2, 20), (1, 30))
    assert (len(book), book.next_ms()) == (2, 20)
    assert book.expires_ms(job_id(1), 1) == 30
    book.hold(Lease(5, job_id(1), 1))
    assert (len(book), book.next_ms()) == (2, 5)
    assert numbers(book.expired(20, 10)) == [1, 2]


def test_only_the_current_claim_has_a_lease() -> None:
    book = book_of((1, 10))
    assert book.expires_ms(job_id(1), 2) is None
    assert book.expires_ms(job_id(2), 1) is None
    book.hold(Lease(50, job_id(1), 7))  # claimed again
    assert book.expires_ms(job_id(1), 1) is None
    assert book.expires_ms(job_id(1), 7) == 50


def test_renewals_without_end_leave_nothing_behind() -> None:
    book = book_of((1, 10), (2, 20))
    for expires_ms in range(30, 5000):
        book.hold(Lease(expires_ms, job_id(1), 1))
    assert len(book._heap) <= 4 * len(book) + 64
    assert (book.next_ms(), book.expires_ms(job_id(1), 1)) == (20, 4999)


HOLD, DROP = "hold", "drop"
STEPS = st.tuples(st.sampled_from([HOLD, HOLD, DROP]), st.integers(0, 5), st.integers(0, 40))


@some
@given(
    st.lists(STEPS, min_size=20, max_size=90),
    st.integers(0, 40),
    st.integers(1, 8),
)
def test_a_book_agrees_with_a_plain_dictionary(steps: list[tuple[str, int, int]], now_ms: int, limit: int) -> None:
    book, model = Leases(), dict[int, int]()
    for what, number, expires_ms in steps:
        if what == HOLD:
            book.hold(Lease(expires_ms, job_id(number), number))
            model[number] = expires_ms
        else:
            book.drop(job_id(number))
            model.pop(number, None)
        assert len(book) == len(model)
        assert book.next_ms() == min(model.values(), default=None)
    due = sorted(
        Lease(expires_ms, job_id(number), number) for number, expires_ms in model.items() if expires_ms <= now_ms
    )
    assert book.expired(now_ms, limit) == due[:limit]
    assert {number: book.expires_ms(job_id(number), number) for number in model} == model


def test_when_the_clock_was_set_back_each_lease_begins_anew() -> None:
    told = list[int]()
    book = Leases()
    book.hold(Lease(1_000_030, job_id(1), 1, 1_000_000))
    book.hold(Lease(1_000_500, job_id(2), 2, 1_000_000))
    book.on_hold = told.append
    book.hold(Lease(500_010, job_id(3), 3, 500_000))
    assert told == [500_030, 500_010]
    assert [book.expires_ms(job_id(number), number) for number in (1, 2, 3)] == [500_030, 500_500, 500_010]
    assert numbers(book.expired(500_030, 10)) == [3, 1]
    assert numbers(book.expired(400_000, 10)) == []
    assert numbers(book.expired(400_030, 10)) == [3, 1]


def test_a_clock_that_is_slewed_leaves_leases_alone() -> None:
    book = Leases()
    book.hold(Lease(1_000_030, job_id(1), 1, 1_000_000))
    assert book.expired(999_500, 10) == []
    assert book.next_ms() == 1_000_030
