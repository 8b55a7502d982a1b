"""The shrinking of a run that broke a promise to the shortest one found that still does, by taking moves away.

The method is delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE
Transactions on Software Engineering 28(2), 2002.
"""

from collections.abc import Callable, Sequence
from typing import Final

from tests.simulation.plan import Plan
from tests.simulation.world import Outcome, run_plan

__all__ = ["keep_moves", "shrink"]

_MAX_RUNS: Final = 400


def keep_moves(plan: Plan, kept: Sequence[int]) -> Plan:
    """The plan with some of its moves only, by their numbers from 0."""
    return plan._replace(moves=tuple(plan.moves[number] for number in kept))


def shrink(plan: Plan, kind: str, *, run: Callable[[Plan], Outcome] = run_plan) -> tuple[list[int], Outcome]:
    """The moves that are needed to break the promise `kind`, and what happens with these alone."""
    kept = list(range(len(plan.moves)))
    best = run(plan)
    runs_left, parts = _MAX_RUNS, 2
    while len(kept) > 1 and runs_left > 0:
        size = -(-len(kept) // parts)
        for at in range(0, len(kept), size):
            fewer = kept[:at] + kept[at + size :]
            runs_left -= 1
            outcome = run(keep_moves(plan, fewer))
            if outcome.broken is not None and outcome.broken.kind == kind:
                kept, best = fewer, outcome
                parts = max(parts - 1, 2)
                break
            if runs_left <= 0:
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return kept, best
