"""The check of a fence by the epochs in the manifests. With a service's answers: s3/test_s3_faults.py."""

import pytest

from ledgerq.eventlog.errors import Fenced
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.fencing import FenceCheck, own_epoch


@pytest.mark.parametrize(("before", "after", "own"), [(0, 1, 1), (4, 5, 5), (4, 6, None), (4, 4, None), (4, 3, None)])
def test_the_epoch_of_an_opener_is_known_if_only_one_was_given(before: int, after: int, own: int | None) -> None:
    assert own_epoch(before, after) == own


async def test_whoever_does_not_know_its_epoch_takes_a_fence_for_one() -> None:
    error = Fenced("fenced")
    check = FenceCheck(parse_location("s3://nowhere/jobs"), None)
    assert check.judged(error) is None
    assert await check.judge(error) is error
    assert check.judged(error) is error
    await check.close()
