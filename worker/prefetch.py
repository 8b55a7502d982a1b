"""The number of claims to fetch ahead: those that handlers will ask for before the next ones can be durable.

A claim takes a commit, so by the time that it comes, handlers that end quickly have waited for it. What they need then
is the rate at which they end times the time that a commit takes, both measured here, in ms of the worker's clock, and
smoothed. Handlers that take long end seldom, and nearly nothing is fetched ahead for them.
"""

from typing import Final

__all__ = ["Prefetch"]

# A claim waits for the commit that is on its way, then for its own; the answer to it is used up while the next one is
# asked for; and when claims are what the handlers wait for, each round must bring more than the last.
_COMMITS: Final = 3.0
# Of the shortest lease so much may be spent on waiting for a slot.
_WAITING_SHARE: Final = 0.25
_MAX_CLAIMS: Final = 5000
_MAX_BYTES: Final = 32 * 1024 * 1024
_WINDOW_MS: Final = 100
_SMOOTHING_MS: Final = 200
_SMOOTHING_COMMITS: Final = 0.2
_LEAST_PATIENCE_MS: Final = 1000


class Prefetch:
    """The estimate of one worker. `limit`: the most claims ahead (None: 5,000)."""

    def __init__(self, *, concurrency: int, limit: int | None) -> None:
        self._concurrency = concurrency
        self._limit = _MAX_CLAIMS if limit is None else limit
        self._longest_wait_ms = 0.0
        self._since_ms = 0
        self._ended = 0
        self._took_ms = 0
        self._bytes = 0
        self._rate = 0.0  # handlers that end, for each ms
        self._mean_took_ms = 0.0
        self._mean_bytes = 0.0
        self._commit_ms = 0.0

    def begin(self, now_ms: int, lease_ms: int) -> None:
        """Begin to measure. `lease_ms`: the shortest lease."""
        self._since_ms = now_ms
        self._longest_wait_ms = lease_ms * _WAITING_SHARE

    def ended(self, took_ms: int, payload_bytes: int) -> None:
        """Count a handler that has ended."""
        self._ended += 1
        self._took_ms += max(0, took_ms)
        self._bytes += payload_bytes

    def committed(self, took_ms: int) -> None:
        """Count a settlement that became durable after so many ms."""
        took_ms = max(0, took_ms)
        self._commit_ms += _SMOOTHING_COMMITS * (took_ms - self._commit_ms) if self._commit_ms else took_ms

    def claims(self, now_ms: int, waiting_bytes: float = 0.0) -> int:
        """How many claims to hold for slots that aren't free yet. `waiting_bytes`: the mean payload of those held."""
        if now_ms - self._since_ms >= _WINDOW_MS or now_ms < self._since_ms:
            self._measure(now_ms)
        rate = self._rate
        if self._mean_took_ms > self._longest_wait_ms:
            return 0  # each slot may be taken for longer than a claim may wait
        if self._mean_took_ms > 0:
            # Handlers that began together end together: what ends in a short while says little of what will.
            rate = min(rate, self._concurrency / self._mean_took_ms)
        claims = rate * min(_COMMITS * self._commit_ms, self._longest_wait_ms)
        # Large ones can follow small ones, and what waits is not among those that have ended.
        return int(min(claims, self._limit, _MAX_BYTES / max(1.0, self._mean_bytes, waiting_bytes)))

    def _measure(self, now_ms: int) -> None:
        elapsed_ms, ended = now_ms - self._since_ms, self._ended
        if elapsed_ms > 0:  # else the clock was set back: what ended meanwhile says nothing
            weight = elapsed_ms / (elapsed_ms + _SMOOTHING_MS)
            self._rate += weight * (ended / elapsed_ms - self._rate)
            if ended:
                self._mean_took_ms += weight * (self._took_ms / ended - self._mean_took_ms)
                self._mean_bytes += weight * (self._bytes / ended - self._mean_bytes)
        self._since_ms = now_ms
        self._ended = self._took_ms = self._bytes = 0

    @property
    def patience_ms(self) -> int:
        """After how many ms a claim that waits for a slot is given back: the estimate was wrong, others may be idle."""
        estimate_ms = max(_LEAST_PATIENCE_MS, 2 * _COMMITS * self._commit_ms, 2 * self._mean_took_ms)
        return max(1, round(min(estimate_ms, self._longest_wait_ms)))

    def was_wrong(self, now_ms: int) -> None:
        """Forget the rate, which no longer holds."""
        self._rate = 0.0
        self._since_ms = now_ms
        self._ended = self._took_ms = self._bytes = 0
