"""A user's projection in a simulated world: how many events of which kind each queue and each living job had.

It keeps its counts in memory, as a projection may, so it goes wrong for good when it is given a transition twice, not
at all, or rows that are not its own.
"""

from collections.abc import Mapping
from typing import Final

from ledgerq.eventlog.events import Deleted, Event, Swept
from ledgerq.projections.fold import Transition

__all__ = ["NAME", "Counts", "SimProjection"]

NAME: Final = "simulated"


class SimProjection:
    """The user's projection of a simulated world."""

    def __init__(self) -> None:
        self._counts: dict[bytes, int] = {}

    @property
    def name(self) -> str:
        """The name of its rows."""
        return NAME

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Begin from these."""
        self._counts = {key: int(value) for key, value in rows.items()}

    def apply(self, transition: Transition) -> Mapping[bytes, bytes | None]:
        """Count one event."""
        rows: dict[bytes, bytes | None] = {}
        for key, is_last in _keys(transition.event):
            count = 0 if is_last else self._counts.get(key, 0) + 1
            self._counts[key] = count
            rows[key] = None if is_last else b"%d" % count
            if is_last:
                del self._counts[key]
        return rows


def _keys(event: Event) -> list[tuple[bytes, bool]]:
    found = [(b"kind/" + type(event).__name__.encode(), False)]
    id = getattr(event, "id", None)
    return found if id is None else [*found, (b"job/" + id, type(event) in (Swept, Deleted))]


class Counts:
    """The rows that all events so far must have left, counted in another way."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}

    def take(self, event: Event) -> None:
        """Count one event."""
        for key, is_last in _keys(event):
            if is_last:
                del self.rows[key]
            else:
                self.rows[key] = self.rows.get(key, 0) + 1

    def wrong(self, found: Mapping[bytes, bytes]) -> bytes | None:
        """The first key whose row is not what it must be."""
        wanted = {key: b"%d" % count for key, count in self.rows.items()}
        return min((key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)), default=None)
