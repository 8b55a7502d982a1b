"""Leases: when each current claim ends unless it is renewed. In memory only: a lease ends with its process."""

import heapq
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Lease", "Leases"]

# Wall clocks are set back a little all the time; that much longer a lease may hold.
_SET_BACK_MS: Final = 1000


class Lease(NamedTuple):
    """A claim's end, and when it was taken or renewed, in ms since the Unix epoch."""

    expires_ms: int
    id: bytes
    claim_offset: int
    began_ms: int = 0


class Leases:
    """All current leases, soonest first. Renewals leave old heap entries behind, which are skipped later."""

    def __init__(self) -> None:
        self.on_hold: Callable[[int], None] = lambda expires_ms: None  # called with each lease's end when it is held
        self._leases: dict[bytes, Lease] = {}
        self._heap: list[Lease] = []
        self._latest_ms = 0

    def __len__(self) -> int:
        return len(self._leases)

    def hold(self, lease: Lease) -> None:
        """Start or renew a lease."""
        if lease.began_ms >= self._latest_ms:
            self._latest_ms = lease.began_ms
        elif self._was_set_back(lease.began_ms) and (next_ms := self.next_ms()) is not None:
            self.on_hold(next_ms)
        self._leases[lease.id] = lease
        heapq.heappush(self._heap, lease)
        if len(self._heap) > 4 * len(self._leases) + 64:
            self._heap = sorted(self._leases.values())
        self.on_hold(lease.expires_ms)

    def drop(self, id: bytes) -> None:
        """Drop the lease of a claim that ended."""
        self._leases.pop(id, None)

    def expires_ms(self, id: bytes, claim_offset: int) -> int | None:
        """When the lease of this claim ends; None when the claim isn't current."""
        lease = self._leases.get(id)
        return lease.expires_ms if lease is not None and lease.claim_offset == claim_offset else None

    def next_ms(self) -> int | None:
        """When the soonest lease ends."""
        while self._heap and self._leases.get(self._heap[0].id) is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0].expires_ms if self._heap else None

    def expired(self, by_ms: int, limit: int, now_ms: int | None = None) -> list[Lease]:
        """At most `limit` leases that have ended by then, soonest first; they stay until they are dropped.

        `now_ms`: the clock's time, when that is later than `by_ms` (None: it is not).
        """
        self._was_set_back(by_ms if now_ms is None else now_ms)
        found: list[Lease] = []
        while len(found) < limit and (due_ms := self.next_ms()) is not None and due_ms <= by_ms:
            found.append(heapq.heappop(self._heap))
        for lease in found:
            heapq.heappush(self._heap, lease)
        return found

    def _was_set_back(self, now_ms: int) -> bool:
        """Whether the clock was set back. Then each lease begins anew, or it would hold longer by as much."""
        before_ms, self._latest_ms = self._latest_ms, now_ms
        if now_ms >= before_ms - _SET_BACK_MS:
            return False
        for id, lease in self._leases.items():
            anew_ms = now_ms + lease.expires_ms - lease.began_ms
            if anew_ms < lease.expires_ms:
                self._leases[id] = lease._replace(expires_ms=anew_ms, began_ms=now_ms)
        self._heap = sorted(self._leases.values())
        return True
