"""The two tiers: what `make test` runs of a test that has many cases, and what is left to `make proof`.

A test that is slow as a whole carries `pytest.mark.proof`. One that is slow since it has many cases is marked for all
but the first of them, so that each kind of test has a sample in the quick tier. A class of tests that is slow where it
runs (the contract of the stores, in a bucket) names its sample: `QUICK = {"test_one", ...}`.
"""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["is_left_to_the_proof", "sampled"]


def sampled(cases: Iterable[Any], *, quick: int = 1) -> list[Any]:
    """The cases for `parametrize`: the first `quick` of them in both tiers, the others in the proof alone."""
    return [
        case if number < quick else pytest.param(case, marks=pytest.mark.proof) for number, case in enumerate(cases)
    ]


def is_left_to_the_proof(item: pytest.Item) -> bool:
    """Whether this test is of a class that names its sample, and is not in it."""
    of_class = item.getparent(pytest.Class)
    quick = getattr(of_class.obj, "QUICK", None) if of_class is not None else None
    return quick is not None and getattr(item, "originalname", item.name) not in quick
