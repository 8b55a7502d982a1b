"""The two tiers: what `make test` runs of a test that has many cases, and what is left to `make proof`.

A test that is slow as a whole carries `pytest.mark.proof`. One that is slow since it has many cases is marked for all
but the first of them, so that each kind of test has a sample in the quick tier.
"""

from collections.abc import Iterable
from typing import Any

import pytest

__all__ = ["sampled"]


def sampled(cases: Iterable[Any], *, quick: int = 1) -> list[Any]:
    """The cases for `parametrize`: the first `quick` of them in both tiers, the others in the proof alone."""
    return [
        case if number < quick else pytest.param(case, marks=pytest.mark.proof) for number, case in enumerate(cases)
    ]
