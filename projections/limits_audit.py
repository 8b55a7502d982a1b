"""The proof from the log alone that no limit was exceeded: `ledgerq audit --limits`.

It counts claims itself, and knows nothing of how the writer keeps a rate: after each claim no more jobs may be claimed
than the limit in force says, no half-open window of its period may have seen more than count + burst - 1 claims since
it was set, and nothing may be claimed of what is held. All times are those of commits.
"""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from ledgerq.eventlog.events import Claimed, Held, HoldReleased, LimitsSet
from ledgerq.eventlog.log import Chain, LogReader, Progress, Verified
from ledgerq.projections.fold import Fold, Transition

__all__ = ["LimitExceeded", "LimitsCheck", "LimitsReport", "audit_limits"]

_MAX_FOUND: Final = 1000


class LimitExceeded(NamedTuple):
    """A claim that should not have been: at this offset, of this queue, and why."""

    offset: int
    queue: str
    why: str


class LimitsReport(NamedTuple):
    """What a proof of the limits found: `claims` of all in the log were of queues that had limits then.

    `exceeded` has the first 1,000 claims that broke one, `exceeded_count` counts all.
    """

    verified: Verified
    claims: int
    queues: int
    exceeded: list[LimitExceeded]
    exceeded_count: int


class LimitsCheck:
    """The limits in force, and the claims that count, transition by transition."""

    def __init__(self) -> None:
        self.claims = 0
        self.limits: dict[str, LimitsSet] = {}
        self._held: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        # When the last claims under the limits in force were, as many as may be in a period.
        self._times: dict[str, deque[int]] = {}

    def see(self, transition: Transition) -> Iterator[LimitExceeded]:
        """Follow a transition; yields each limit that it breaks."""
        event, before, after = transition.event, transition.before, transition.after
        if isinstance(event, LimitsSet):
            self.limits[event.queue] = event
            self._times[event.queue] = deque(maxlen=event.count + event.burst - 1 if event.count else 0)
        elif isinstance(event, Held | HoldReleased):
            self._held[event.queue] = event.until_ms if isinstance(event, Held) else 0
        if before is not None and before.state == "claimed" and (after is None or after.state != "claimed"):
            self._running[before.queue] -= 1
        if after is not None and type(event) is Claimed:
            self._running[after.queue] += 1
            for why in self._broken(after.queue, transition.time_ms):
                yield LimitExceeded(transition.offset, after.queue, why)

    def _broken(self, queue: str, time_ms: int) -> Iterator[str]:
        if time_ms < (until_ms := self._held.get(queue, 0)):
            yield f"claimed at {time_ms} ms, held until {until_ms} ms"
        limits = self.limits.get(queue)
        if limits is None:
            return
        self.claims += 1
        if 0 < limits.max_running < self._running[queue]:
            yield f"{self._running[queue]} are claimed at a time, and {limits.max_running} may be"
        if limits.count:
            times, period = self._times[queue], limits.period_ms
            if len(times) == times.maxlen and (within := time_ms - times[0]) < period:
                most = len(times)
                yield f"{most + 1} were claimed within {within} ms, and {most} may be in {period} ms"
            times.append(time_ms)


async def audit_limits(log: LogReader, *, progress: Progress | None = None) -> LimitsReport:
    """Prove from the whole log, whose chain is verified on the way, that no limit was exceeded; raises `LogCorrupt`."""
    head = await log.head()
    chain, fold, check = Chain(), Fold(), LimitsCheck()
    found: list[LimitExceeded] = []
    count = 0
    async for batch in log.batches():
        chain.add(batch)
        for offset, event, distance in batch.steps():
            for one in check.see(fold.apply(offset, batch.time_ms, event, distance)):
                count += 1
                if len(found) < _MAX_FOUND:
                    found.append(one)
        if progress is not None:
            progress(chain.next_offset, head.next_offset)
    chain.end(head)
    return LimitsReport(chain.proven(), check.claims, len(check.limits), found, count)
