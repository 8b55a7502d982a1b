"""The calls of one process at a shared store: to its own queue while it is the writer, else over the store's socket.

When nobody listens there, the process tries to become the writer itself. The store's lock decides who does: the others
find the new writer's socket in the same place. Every call may be sent again (see remote/transport.py), so those that
were on their way to a writer that ends reach the next one.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp

from ledgerq.eventlog.errors import LedgerError, QueueClosed, StoreInUse
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.transport import UNIX, Answer, Transport
from ledgerq.worker.sharing.owner import Owner, Settings

__all__ = ["SharedTransport"]

_log = logger("queue")
_LONGEST_PAUSE_S: Final = 0.1
_FOLLOW_S: Final = 25.0


class _NoWriter(ConnectionError):
    """There is no writer now that could answer, or not any more."""


class SharedTransport(Transport):
    """The calls of one process, which is the writer or a client of it. `wait_s`: for one that does not share."""

    def __init__(self, settings: Settings, folder: Path, wait_s: float | None, patience_s: float) -> None:
        super().__init__([UNIX + str(folder)], None, patience_s, _LONGEST_PAUSE_S)
        self.owner: Owner | None = None
        """The writer, while it is in this process."""
        self._settings = settings
        self._begins = True
        self._over_s = None if wait_s is None else self._loop.time() + wait_s
        self._seen: tuple[int | None, int | None] | None = None
        self._refusal: LedgerError | None = None
        self._why = ""
        self._opening: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def begun(self) -> None:
        """Called after the first answer: from now on what can't be done is tried again."""
        self._begins = False

    @property
    def waits(self) -> bool:
        """Whether a writer that does not share is still waited for."""
        return self._over_s is None or self._loop.time() < self._over_s

    async def _send(
        self,
        method: str,
        address: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, Any] | None,
        wait_s: float,
    ) -> Answer:
        if self.owner is None:
            try:
                return await super()._send(method, address, path, data, query, wait_s)
            except (aiohttp.ClientConnectorError, FileNotFoundError) as error:
                await self._take_over()
                if self.owner is None:
                    raise _NoWriter(self._why or str(error)) from error
        owner = self.owner
        try:
            return 200, owner.epoch, await owner.call(method, path, data, query)
        except LedgerError as error:
            if self._is_closed or not owner.over.is_set():
                raise
            raise _NoWriter(str(error)) from error

    async def _take_over(self) -> None:
        """Become the writer, if there is none; raises what keeps this process from it for good."""
        if self._is_closed:
            raise QueueClosed(f"the queue on {self._settings.url} was closed")
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="ledgerq-take-over")
        await asyncio.shield(self._opening)
        if self._refusal is not None:
            raise self._refusal

    async def _open(self) -> None:
        self._refusal, self._why = None, ""
        try:
            owner = await Owner.open(self._settings)
        except StoreInUse as error:
            self._refusal, self._why = self._refused(error), str(error)
        except LedgerError as error:
            self._refusal, self._why = error if self._begins or error.permanent else None, str(error)
        else:
            self.owner, self.epoch = owner, max(self.epoch, owner.epoch)
            self._writing = asyncio.create_task(self._write(owner), name="ledgerq-writer")
            words = self._settings.url, owner.epoch
            _log.info("%s: this process is its writer from now on (epoch %d)", *words, extra=about("shared_writer"))

    def _refused(self, error: StoreInUse) -> StoreInUse | None:
        """The error, where a writer that does not share the store is there for longer than it is waited for."""
        seen, self._seen = self._seen, (error.pid, error.since_ms)
        if error.shares or not self._begins or seen != self._seen:
            return None  # (what the lock's file names may be the writer before, for a moment)
        return None if self.waits else error

    async def _write(self, owner: Owner) -> None:
        """Close the writer when it can write no more, or this is closed."""
        await owner.over.wait()
        self.owner = None
        failure = owner.queue.failure
        try:
            await owner.close()
        except LedgerError:
            if failure is None:
                raise
        if failure is not None:
            words = self._settings.url, failure
            _log.warning("%s: this process is its writer no more: %s", *words, extra=about("shared_writer"))

    async def follow(self) -> None:
        """Wait for the writer's end, or for half a minute; the call that follows finds the next writer, or is it."""
        if (owner := self.owner) is not None:
            await owner.over.wait()
        else:
            query = {"wait": f"{_FOLLOW_S:g}"}
            await self.call("GET", "/v1/writer", wire.WriterAnswer, query=query, wait_s=_FOLLOW_S)

    async def close(self) -> None:
        """End all connections; a writer of this process closes its store, and another process takes it over."""
        self._is_closed = True
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.gather(self._opening, return_exceptions=True)
        if self.owner is not None:
            self.owner.over.set()
        try:
            if self._writing is not None:
                await asyncio.shield(self._writing)
        finally:
            await super().close()
