"""The check whether a writer was really fenced, or the object store only refused one of its writes.

SlateDB takes every refused creation of a log file for a fence, and an S3 service may refuse one with 409 while an equal
request, such as a first try whose answer was lost, is still being served. A later writer always writes a manifest with
a higher epoch before it touches the log, so the newest manifest decides which it was. The database handle is closed in
either case.
"""

import asyncio
from typing import Final

from slatedb.uniffi import AdminBuilder, ObjectStore

from ledgerq.eventlog.errors import Fenced, LedgerError, OutcomeUnknown
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS

__all__ = ["FenceCheck", "own_epoch", "writer_epoch"]

_LIMIT_S: Final = 10.0


async def writer_epoch(location: Location) -> int:
    """The epoch of the last writer that opened the store, as SlateDB counts them. Raises one of `SLATE_ERRORS`."""
    manifest = await AdminBuilder(location.database, ObjectStore.resolve(location.root)).build().read_manifest(None)
    return 0 if manifest is None else int(manifest.writer_epoch)


def own_epoch(before: int, after: int) -> int | None:
    """The epoch of a writer that opened the store in between: None when another one may have done so too."""
    return after if after == before + 1 else None


class FenceCheck:
    """The check of one store's `Fenced`; the manifest is read once, at the first."""

    def __init__(self, location: Location, epoch: int | None) -> None:
        """A writer of `epoch` has the store at `location` open; None: not known, so a fence is what it seems."""
        self._location = location
        self._epoch = epoch
        self._task: asyncio.Task[bool] | None = None

    def begin(self) -> None:
        """Begin to read the newest manifest, if that was not done yet."""
        if self._task is None:
            self._task = asyncio.create_task(self._is_fenced())

    def judged(self, error: Fenced) -> LedgerError | None:
        """The error as it really is, or None until the manifest is read."""
        self.begin()
        if self._task is None or not self._task.done():
            return None
        return error if self._task.cancelled() or self._task.result() else self._refused()

    async def judge(self, error: Fenced) -> LedgerError:
        """Wait for the error as it really is. When the manifest can't be read, it stays what SlateDB raised."""
        self.begin()
        if self._task is not None:
            # Another caller's cancellation must not take the answer from the rest.
            await asyncio.shield(self._task)
        return self.judged(error) or error

    async def close(self) -> None:
        """Wait for a read that is under way, which is not for long."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _is_fenced(self) -> bool:
        if self._epoch is None:
            return True
        try:
            async with asyncio.timeout(_LIMIT_S):
                return await writer_epoch(self._location) != self._epoch
        except (TimeoutError, *SLATE_ERRORS):
            return True

    def _refused(self) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{self._location.original}: the object store refused a new log file as if it were there (409), though "
            "no other writer has opened the store. The last commit may or may not be in the log: open it again to "
            "learn which"
        )
