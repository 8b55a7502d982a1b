"""The schedules that a writer keeps in memory: all of them, as the staged events leave them, durable or not yet.

There are ten thousand at most, so a decision about one needs no look-up. Their rows go with the commit of their events.
"""

from collections.abc import Callable
from typing import Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.commit import Commit
from ledgerq.eventlog.events import ScheduleEvent, ScheduleSet
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.index_keys import SCHEDULE
from ledgerq.projections.indexes import decode_schedule, schedule_rows
from ledgerq.projections.schedule import Schedule, evolve_schedule

__all__ = ["MAX_SCHEDULES", "KeptSchedules"]

MAX_SCHEDULES: Final = 10_000


class KeptSchedules:
    """The schedules by name, and those that an event of the open commit concerns, with their state before it."""

    def __init__(self) -> None:
        self.by_name: dict[str, Schedule] = {}
        self.on_change: Callable[[Schedule], None] = lambda after: None
        self._before: dict[str, Schedule | None] = {}
        self._outdated_texts: list[int] = []

    async def read(self, store: ReadStore) -> None:
        """Take them over from the store; raises `ProjectionDrift` for a row that can't be read."""
        async for rows in store.scan(SCHEDULE, keys.after_prefix(SCHEDULE)):
            for key, value in rows:
                schedule = decode_schedule(key, value)
                self.by_name[schedule.name] = schedule

    def apply(self, event: ScheduleEvent, offset: int, commit: Commit) -> None:
        """Follow an event that was just staged in this commit."""
        name = event.name
        before = self.by_name.get(name)
        after = evolve_schedule(before, event, offset, commit.time_ms)
        self._before.setdefault(name, before)
        if before is not None and before.text_at is not None and (after is None or isinstance(event, ScheduleSet)):
            # Of this very commit, or a stored one.
            commit.payloads.pop(keys.text_key(before.text_at), None)
            self._outdated_texts.append(before.text_at)
        if after is None:
            del self.by_name[name]
        else:
            self.by_name[name] = after
            self.on_change(after)

    def add_changes(self, changes: dict[bytes, bytes | None]) -> None:
        """Add the rows that the events of the open commit change; called when it closes."""
        if not self._before:
            return
        for name, before in self._before.items():
            after = self.by_name.get(name)
            if before is not None:
                changes |= dict.fromkeys(schedule_rows(before))
            if after is not None:
                changes |= schedule_rows(after)
        changes |= {keys.text_key(at): None for at in self._outdated_texts}
        self._before, self._outdated_texts = {}, []
