"""Plain objects in the bucket that holds a store, with bounded waits: for the preflight and for the anchor.

SlateDB has its own client, which takes its settings from the environment; this one reads the same variables:
AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION or AWS_DEFAULT_REGION, AWS_ENDPOINT or
AWS_ENDPOINT_URL (or AWS_ENDPOINT_URL_S3), AWS_ALLOW_HTTP; GOOGLE_* and AZURE_* likewise.
"""

import asyncio
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, GCSStore, S3Store

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.redaction import redact_urls

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

__all__ = ["Objects", "Version"]

_T = TypeVar("_T")
_MAX_RETRIES: Final = 2
_NOT_FOUND: Final = (NotFoundError, FileNotFoundError)
_REFUSED: Final = (PermissionDeniedError, UnauthenticatedError, PermissionError)
_REFUSALS: Final = ("403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class Version(NamedTuple):
    """A version of an object as it was read or written: its content, and the tag that no other version has."""

    content: bytes
    e_tag: str | None
    version: str | None
    modified_ms: int | None
    """When it was written, by the service's clock, often in whole seconds; None when that was not asked for."""


class Objects:
    """The objects under a store's prefix; every call ends within about `limit_s` seconds or raises."""

    def __init__(self, location: Location, *, limit_s: float) -> None:
        """Use the prefix of `location`; nothing is requested yet."""
        self._location = location
        request_s = timedelta(seconds=limit_s / (_MAX_RETRIES + 1))
        # Client options replace what obstore reads from the environment, so this variable must be handed on.
        allow_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
        client: ClientConfig = {"timeout": request_s, "connect_timeout": request_s / 2, "allow_http": allow_http}
        retry: RetryConfig = {"max_retries": _MAX_RETRIES, "retry_timeout": timedelta(seconds=limit_s)}
        prefix = location.database or None
        self._store: ObjectStore
        if location.scheme == "s3":
            self._store = S3Store(location.bucket, prefix=prefix, client_options=client, retry_config=retry)
        elif location.scheme == "gs":
            self._store = GCSStore(location.bucket, prefix=prefix, client_options=client, retry_config=retry)
        else:
            self._store = AzureStore(location.bucket, prefix=prefix, client_options=client, retry_config=retry)

    @property
    def store(self) -> "ObjectStore":
        """The client below, whose calls block."""
        return self._store

    async def get(self, name: str) -> bytes | None:
        """The content of an object, or None. Raises `StoreUnavailable` with the cause."""
        return await self.run(self._get, name)

    def _get(self, name: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, name).bytes())
        except _NOT_FOUND as error:
            if "NoSuchBucket" in str(error):
                raise
            return None

    async def read(self, name: str) -> Version | None:
        """An object with its version, or None. Raises `StoreUnavailable` with the cause."""
        return await self.run(self.read_now, name)

    def read_now(self, name: str) -> Version | None:
        """Like `read`; blocks, and raises an error of the client's or the system's."""
        try:
            found = obstore.get(self._store, name)
            meta, content = found.meta, bytes(found.bytes())
        except _NOT_FOUND as error:
            if "NoSuchBucket" in str(error):
                raise
            return None
        modified_ms = round(meta["last_modified"].timestamp() * 1000)
        return Version(content, meta["e_tag"], meta["version"], modified_ms)

    def replace_now(self, name: str, content: bytes, over: Version | None) -> Version | None:
        """Write an object if it is still this version (None: if there is none); None when it is not.

        Blocks, and raises an error of the client's or the system's.
        """
        mode: Any = "create"
        if over is not None:
            known = {"e_tag": over.e_tag, "version": over.version}
            mode = {part: value for part, value in known.items() if value is not None}
        try:
            written = obstore.put(self._store, name, content, mode=mode)
        except (AlreadyExistsError, FileExistsError, PreconditionError, *_NOT_FOUND):
            # The answer to a first try may have been lost, and a service may refuse what is only under way.
            found = self.read_now(name)
            return found if found is not None and found.content == content else None
        return Version(content, written["e_tag"], written["version"], None)

    async def put(self, name: str, content: bytes) -> None:
        """Write an object, replacing it. Raises `StoreUnavailable` with the cause."""
        await self.run(obstore.put, self._store, name, content)

    async def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none of that name; False if there is. Raises `StoreUnavailable`."""
        return await self.run(self._create, name, content)

    def _create(self, name: str, content: bytes) -> bool:
        try:
            obstore.put(self._store, name, content, mode="create")
        except (AlreadyExistsError, FileExistsError):
            return False
        return True

    async def delete(self, name: str) -> None:
        """Remove an object. Raises `StoreUnavailable` with the cause."""
        await self.run(obstore.delete, self._store, name)

    async def names(self, folder: str | None = None) -> list[str]:
        """The names of all objects under the prefix, or in a `folder`. Raises `StoreUnavailable` with the cause."""
        return await self.run(self._names, folder)

    def _names(self, folder: str | None) -> list[str]:
        return sorted(found["path"] for some in obstore.list(self._store, prefix=folder) for found in some)

    async def has_any(self, folder: str) -> bool:
        """Whether there is an object under `folder`. Raises `StoreUnavailable` with the cause."""
        return await self.run(self._has_any, folder)

    def _has_any(self, folder: str) -> bool:
        return any(bool(objects) for objects in obstore.list(self._store, prefix=folder, chunk_size=1))

    async def run(self, call: Callable[..., _T], *arguments: object) -> _T:
        """Run a blocking call in a thread. Raises `StoreUnavailable` with the cause for what the client raises.

        The client's own coroutines complete on threads of its runtime, and one that does so while the interpreter ends
        aborts the process.
        """
        loop = asyncio.get_running_loop()
        try:
            try:
                made = loop.run_in_executor(None, call, *arguments)
            except RuntimeError:  # no thread begins at the end of the interpreter: what closes a queue then has to wait
                return call(*arguments)
            return await made
        except (BaseError, OSError) as error:
            raise self._explain(error) from error

    def _explain(self, error: Exception) -> StoreUnavailable:
        text = redact_urls(str(error))
        url, bucket = self._location.original, self._location.bucket
        cause = text.partition("\n")[0]
        if "NoSuchBucket" in text or "ContainerNotFound" in text or isinstance(error, _NOT_FOUND):
            return StoreUnavailable(f"{url}: there is no bucket {bucket!r} ({cause}); create it, or check its name")
        keys = _CREDENTIALS[self._location.scheme]
        # A refused listing comes as a general error, with the answer in its text.
        if isinstance(error, _REFUSED) or any(sign in text for sign in _REFUSALS):
            return StoreUnavailable(f"{url}: access was refused ({cause}); check {keys}, and what they may do")
        if "metadata" in text.lower() and "token" in text.lower():
            return StoreUnavailable(f"{url}: there are no credentials ({cause}); set {keys}")
        return StoreUnavailable(
            f"{url}: the object store can't be reached ({cause}); check the network and, if it is not the cloud's own, "
            "AWS_ENDPOINT_URL"
        )
