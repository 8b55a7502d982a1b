"""The judge of a long run: does a series of samples drift upward? Pure: numbers in, a verdict out.

The rule, the same for each series:

- The first quarter of the run's time is warm-up and is left out, or more where a series is known to need it. Fewer than
  nine samples after it are not judged.
- The slope is Theil and Sen's: the median of the slopes between all pairs of samples, which a few wild samples don't
  move. Times the span of the judged samples it is the *projected* growth. (Sen, "Estimates of the regression
  coefficient based on Kendall's tau", 1968.)
- The *observed* growth is the median of the last third of the judged samples minus that of the first third. The middles
  of these thirds lie two thirds of the span apart, so half as much again is what it comes to over the span.
- The tolerance is a floor in the series' own unit plus a share of the median of the first third.
- It drifts when projected and observed growth over the span are both above the tolerance: that is a leak, however
  noisy. It has *stepped* when the observed growth is above twice the tolerance and every sample of the last third lies
  above every one of the first: that came once, but it stayed. Everything else is noise, a sawtooth included.

Falling is never a drift. A share of growth that belongs to the work (a log gets longer) must be taken off before.
"""

import itertools
import statistics
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Drift", "Tolerance", "judge", "theil_sen"]

_WARM_UP_PART: Final = 0.25
_MIN_SAMPLES: Final = 9
_SPAN_OF_THIRDS: Final = 1.5
_STEP_TOLERANCES: Final = 2
# All pairs of so many samples are half a million slopes; of more, evenly chosen ones are used.
_MAX_SAMPLES: Final = 1000


class Tolerance(NamedTuple):
    """How much a series may grow from after the warm-up to the end: `floor` (its own unit) plus `part` of its level."""

    floor: float
    part: float


class Drift(NamedTuple):
    """The judgement on a series. `verdict` is "steady", "drift", "step" or "too few samples"."""

    name: str
    unit: str
    verdict: str
    samples: int
    first: float
    last: float
    projected: float
    tolerance: float

    @property
    def failed(self) -> bool:
        """Whether it drifted or stepped upward."""
        return self.verdict in ("drift", "step")

    @property
    def text(self) -> str:
        """One line: what it was, what it became, and what was allowed."""
        if self.verdict == "too few samples":
            return f"{self.name}: {self.samples} samples after the warm-up are too few to judge"
        return (
            f"{self.name}: {self.verdict}, {_number(self.first)} to {_number(self.last)} {self.unit} "
            f"(median of the first and last third), trend {self.projected:+,.4g}, allowed {_number(self.tolerance)}"
        )


def judge(
    name: str, unit: str, samples: Sequence[tuple[float, float]], tolerance: Tolerance, *, warm_up_s: float = 0.0
) -> Drift:
    """Judge a series of (time in s, value), in order of time, by the rule above; `warm_up_s` is the least warm-up."""
    judged = _after_warm_up(samples, warm_up_s)
    if len(judged) < _MIN_SAMPLES:
        return Drift(name, unit, "too few samples", len(judged), 0.0, 0.0, 0.0, tolerance.floor)
    third = len(judged) // 3
    early, late = [value for _, value in judged[:third]], [value for _, value in judged[-third:]]
    first, last = statistics.median(early), statistics.median(late)
    allowed = tolerance.floor + tolerance.part * abs(first)
    projected = theil_sen(judged) * (judged[-1][0] - judged[0][0])
    if min(projected, (last - first) * _SPAN_OF_THIRDS) > allowed:
        verdict = "drift"
    elif last - first > _STEP_TOLERANCES * allowed and min(late) > max(early):
        verdict = "step"
    else:
        verdict = "steady"
    return Drift(name, unit, verdict, len(judged), first, last, projected, allowed)


def theil_sen(samples: Sequence[tuple[float, float]]) -> float:
    """The median slope between all pairs of (time, value) with different times; 0 when there is no such pair."""
    slopes = [
        (later - earlier) / (end - start)
        for (start, earlier), (end, later) in itertools.combinations(samples, 2)
        if end > start
    ]
    return statistics.median(slopes) if slopes else 0.0


def _after_warm_up(samples: Sequence[tuple[float, float]], warm_up_s: float) -> list[tuple[float, float]]:
    if not samples:
        return []
    begin_s = samples[0][0] + max((samples[-1][0] - samples[0][0]) * _WARM_UP_PART, warm_up_s)
    judged = [sample for sample in samples if sample[0] >= begin_s]
    if len(judged) <= _MAX_SAMPLES:
        return judged
    return [judged[at * len(judged) // _MAX_SAMPLES] for at in range(_MAX_SAMPLES)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
