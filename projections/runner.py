"""The runner of users' projections: applied in the same commit as the events, with the offset that each has reached.

A projection turns transitions into rows of its own range. It is given its rows when the queue opens, so it can keep its
state in memory; what it returns is written atomically with the events it follows from. One that raises is left behind
at its last good offset and reported; the queue goes on, and `rebuild-projections --only NAME` mends it.
"""

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import InvalidArgument, ProjectionFailed
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.store import Anchor, ReadStore, Store, check_key
from ledgerq.projections.fold import Fold, Transition

__all__ = ["BUILT_IN", "JOBS", "STATS", "Projection", "ProjectionHost"]

JOBS: Final = "jobs"
STATS: Final = "stats"
BUILT_IN: Final = (JOBS, STATS)
"""The projections that are always there: a rebuild names them, and no other projection may have their names."""

_log = logger("projections")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_FLUSH_ROWS: Final = 5000

Rows = Mapping[bytes, bytes | None]


class Projection(Protocol):
    """A projection of the user's own: rows that follow from the log, written in the same commit as their events.

    Give instances to `Queue.open(projections=[...])`. One that is new to a store gets the transitions of the whole log
    first. `apply` must be pure, since audit and rebuild call it again and compare: no clock, no chance, no input or
    output. It runs on the event loop within every commit, so it should be quick. One that raises is left out of commits
    from then on; after its code was mended, opening the queue again brings it up to date.
    """

    @property
    def name(self) -> str:
        """1 to 63 characters of a-z, 0-9, - and _; not `jobs` or `stats`, which are built in. It names the rows."""

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Start from these rows: all that it ever returned and did not remove; none before a rebuild."""

    def apply(self, transition: Transition) -> Rows:
        """The rows to set (or remove, with None) because of this transition. Pure: same transitions, same rows."""


class ProjectionHost:
    """The registered projections of one queue, and the offset that each has reached."""

    def __init__(self, projections: Iterable[Projection] = ()) -> None:
        self.projections: dict[str, Projection] = {}
        self.offsets: dict[str, int] = {}
        self.failures: dict[str, BaseException] = {}
        for projection in projections:
            name = projection.name
            if not isinstance(name, str) or not _NAME.fullmatch(name) or name in BUILT_IN or name in self.projections:
                raise InvalidArgument(
                    f"projection name {name!r}: use 1 to 63 characters of a-z, 0-9, - and _, each name once, "
                    f"not {' or '.join(BUILT_IN)}"
                )
            self.projections[name] = projection

    @property
    def active(self) -> bool:
        """Whether any projection still follows the log."""
        return len(self.projections) > len(self.failures)

    def project(self, transitions: Sequence[Transition], next_offset: int, changes: dict[bytes, bytes | None]) -> None:
        """Add to `changes` what follows from a commit's transitions."""
        for name, projection in self.projections.items():
            if name in self.failures:
                continue
            prefix = keys.projection_rows_prefix(name)
            rows: dict[bytes, bytes | None] = {}
            try:
                for transition in transitions:
                    for key, value in projection.apply(transition).items():
                        _check_row(prefix + key, value)
                        rows[prefix + key] = value
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also sys.exit(), which would end the event loop with every task in it
                self._leave_behind(name, error)
                continue
            changes.update(rows)
            changes[keys.projection_key(name)] = next_offset.to_bytes(8)
            self.offsets[name] = next_offset

    def _leave_behind(self, name: str, error: BaseException) -> None:
        """Drop a projection that raised: an error of the user's code must not end the queue."""
        self.failures[name] = error
        what = "projection %r failed and stays at offset %d; mend it and run: rebuild-projections --only %s"
        extra = about("projection_failed", projection=name)
        # On a later turn: a logging handler of the program's that raises must not end the commit this is a part of.
        say = partial(_log.error, what, name, self.offsets.get(name, 0), name, exc_info=error, extra=extra)
        asyncio.get_running_loop().call_soon(say)

    def require_sound(self, names: Iterable[str]) -> None:
        """Raise `ProjectionFailed` for the first of these projections that raised: its rows are unknown."""
        for name in names:
            if name in self.failures:
                error = self.failures[name]
                raise ProjectionFailed(
                    f"projection {name!r} raised at offset {self.offsets.get(name, 0)} or later ({error!r}): mend it"
                ) from error

    async def restore(self, store: ReadStore) -> None:
        """Read each projection's offset and hand it its rows."""
        for name, projection in self.projections.items():
            value = await store.get(keys.projection_key(name))
            self.offsets[name] = 0 if value is None else int.from_bytes(value)
            prefix = keys.projection_rows_prefix(name)
            rows: dict[bytes, bytes] = {}
            async for page in store.scan(prefix, keys.after_prefix(prefix)):
                rows.update((key[len(prefix) :], value) for key, value in page)
            try:
                projection.restore(rows)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self._leave_behind(name, error)

    async def catch_up(self, log: LogReader, store: Store, anchor: Anchor) -> None:
        """Bring projections that are new or were left behind up to the head: replays the log from its beginning."""
        behind = [name for name in self.projections if self.offsets[name] < anchor.next_offset]
        if not behind:
            return
        fold = Fold()
        changes: dict[bytes, bytes | None] = {}
        async for batch in log.batches():
            transitions = [fold.apply(offset, batch.time_ms, event, before) for offset, event, before in batch.steps()]
            late = [name for name in behind if self.offsets[name] <= batch.base_offset]
            ProjectionHost._project_some(self, late, transitions, batch.next_offset, changes)
            if len(changes) >= _FLUSH_ROWS:
                await _write(store, changes, anchor)
        await _write(store, changes, anchor)

    def _project_some(
        self, names: list[str], transitions: Sequence[Transition], next_offset: int, changes: dict[bytes, bytes | None]
    ) -> None:
        part = ProjectionHost()
        part.projections = {name: self.projections[name] for name in names}
        part.offsets, part.failures = self.offsets, self.failures
        part.project(transitions, next_offset, changes)


def _check_row(key: bytes, value: bytes | None) -> None:
    """Raise for a row that no store takes, before it is staged with all the others."""
    check_key(key)
    if value is not None and type(value) is not bytes:
        raise TypeError(f"a row's value is bytes or None, not {type(value).__name__}")


async def _write(store: Store, changes: dict[bytes, bytes | None], anchor: Anchor) -> None:
    if not changes:
        return
    batch = store.batch()
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    changes.clear()
    await store.write(batch)
    await store.sync(anchor)
