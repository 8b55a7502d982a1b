"""The requests of `ledgerq doctor` to a location, behind one small protocol: on a bucket, or on a local folder.

Everything happens in a folder (a prefix) of its own, which is removed at the end.
"""

import asyncio
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError, PreconditionError
from obstore.store import LocalStore, from_url

from ledgerq.eventlog.locations import Location

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["PROBE_ERRORS", "Probe", "Written", "open_probe"]

_REQUEST_LIMIT_S: Final = 10
# How these come depends on the kind of store.
PROBE_ERRORS: Final = (BaseError, OSError, NotImplementedError)


class Written(NamedTuple):
    """The tag of one version of an object, which no other has."""

    e_tag: str | None
    version: str | None


class Probe(Protocol):
    """The protocol of the few requests that SlateDB's safety rests on."""

    async def put(self, name: str, content: bytes, *, mark: str | None = None) -> Written:
        """Write an object, with `mark` in its metadata."""

    async def put_new(self, name: str, content: bytes) -> bool:
        """Write an object only if there is none (If-None-Match); whether it was written."""

    async def put_over(self, name: str, content: bytes, known: Written) -> bool:
        """Write an object only over this version (If-Match); whether it was written."""

    async def get(self, name: str) -> bytes | None:
        """Its content, or None."""

    async def mark(self, name: str) -> str | None:
        """What its metadata holds."""

    async def names(self) -> list[str]:
        """All objects of this probe."""

    async def modified_ms(self, name: str) -> int:
        """When it was written, by the store's clock."""

    async def delete(self, name: str) -> None:
        """Remove it."""


class ObjectProbe:
    """A probe through the object_store crate, SlateDB's own client.

    Its calls run in threads: a coroutine of the client's own that completes while the interpreter ends aborts it.
    """

    def __init__(self, store: "ObjectStore") -> None:
        """Use `store`, whose prefix is this probe's own."""
        self._store = store

    async def put(self, name: str, content: bytes, *, mark: str | None = None) -> Written:
        """Write an object, with `mark` in its metadata."""
        attributes = None if mark is None else {"ledgerqmark": mark}
        found = await asyncio.to_thread(obstore.put, self._store, name, content, attributes=attributes)
        return Written(found["e_tag"], found["version"])

    async def put_new(self, name: str, content: bytes) -> bool:
        """Write an object only if there is none; whether it was written."""
        try:
            await asyncio.to_thread(obstore.put, self._store, name, content, mode="create")
        except (AlreadyExistsError, FileExistsError, PreconditionError):
            return False
        return True

    async def put_over(self, name: str, content: bytes, known: Written) -> bool:
        """Write an object only over this version; whether it was written."""
        mode: Any = {part: value for part, value in known._asdict().items() if value is not None}
        try:
            await asyncio.to_thread(obstore.put, self._store, name, content, mode=mode)
        except (PreconditionError, AlreadyExistsError, FileExistsError):
            return False
        return True

    async def get(self, name: str) -> bytes | None:
        """Its content, or None."""
        try:
            found = await asyncio.to_thread(obstore.get, self._store, name)
            return bytes(await asyncio.to_thread(found.bytes))
        except (NotFoundError, FileNotFoundError):
            return None

    async def mark(self, name: str) -> str | None:
        """What its metadata holds."""
        found = await asyncio.to_thread(obstore.get, self._store, name)
        attributes: dict[str, str] = dict(found.attributes)
        return attributes.get("ledgerqmark")

    async def names(self) -> list[str]:
        """All objects of this probe."""
        pages = await asyncio.to_thread(list, obstore.list(self._store))
        return [found["path"] for page in pages for found in page]

    async def modified_ms(self, name: str) -> int:
        """When it was written, by the store's clock."""
        found = await asyncio.to_thread(obstore.head, self._store, name)
        return round(found["last_modified"].timestamp() * 1000)

    async def delete(self, name: str) -> None:
        """Remove it."""
        await asyncio.to_thread(obstore.delete, self._store, name)


@asynccontextmanager
async def open_probe(location: Location) -> AsyncIterator[Probe]:
    """A probe in a folder of its own under `location`, whose folder must exist; it leaves nothing behind."""
    if location.is_file:
        folder = Path(tempfile.mkdtemp(prefix=".ledgerq-doctor-", dir=location.folder))
        try:
            yield ObjectProbe(LocalStore(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    # Client options replace what obstore reads from the environment, so this variable must be handed on.
    allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
    limit = timedelta(seconds=_REQUEST_LIMIT_S)
    parts = (location.root, location.database, f"doctor-{secrets.token_hex(8)}")
    store = from_url(
        "/".join(part for part in parts if part),
        client_options={"timeout": limit, "connect_timeout": limit / 2, "allow_http": allow_http},
        retry_config={"max_retries": 1, "retry_timeout": limit},
    )
    probe = ObjectProbe(store)
    try:
        yield probe
    finally:
        for name in await probe.names():
            await probe.delete(name)
