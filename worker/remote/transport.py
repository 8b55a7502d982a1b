"""The requests of a client: to the address that answers, repeated until there is an answer or its patience is over.

Every message may be sent again: jobs have their ids before they are sent, an ack that is repeated succeeds, and a claim
whose answer nobody received is given back. An answer of a writer that is older than one seen is none.
"""

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec

from ledgerq.eventlog.errors import InvalidArgument, QueueClosed
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.runtime.event_loop import check_owner, running_loop
from ledgerq.eventlog.runtime.process import own_pid
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.answered_errors import error_of
from ledgerq.worker.remote.service_errors import NotAllowed, ServiceError, ServiceUnavailable
from ledgerq.worker.sharing.socket_file import reachable

__all__ = ["UNIX", "Answer", "Transport", "addresses_of"]

T = TypeVar("T", bound=wire.Message)
Answer = tuple[int, int | None, bytes]
"""Status, epoch and body."""

_ANSWER_LIMIT_S: Final = 30.0
_CONNECT_LIMIT_S: Final = 3.0
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 1.0
UNIX: Final = "unix:"
"""The beginning of an address that is a store's folder, in which its writer has a socket."""
_UNIX_BASE: Final = "http://localhost"
# Answers that say nothing of the call: another address, or the same one later, may do better.
_ELSEWHERE: Final = frozenset({408, 421, 429, 502, 503, 504})


def addresses_of(urls: str) -> list[str]:
    """The addresses in `http://a:8420,http://b:8420`, checked; or one, `unix:` and the folder of a shared store."""
    if isinstance(urls, str) and urls.startswith(UNIX):
        return [UNIX + str(parse_location(urls.removeprefix(UNIX)).folder)]
    found: list[str] = []
    for url in urls.split(",") if isinstance(urls, str) else []:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            found = []
            break
        if parts.username is not None or parts.password is not None:
            raise InvalidArgument("an address of a service has no user and no password: give token=...")
        found.append(url.strip().rstrip("/"))
    if not found:
        raise InvalidArgument("connect takes addresses, separated by commas, as in http://a:8420,http://b:8420")
    return found


class Transport:
    """The connections of one client. `epoch`: the highest that was seen; `patience_s`: for how long a call is tried.

    Its addresses are URLs, or one `unix:FOLDER`.
    """

    def __init__(
        self,
        addresses: list[str],
        token: str | None,
        patience_s: float,
        longest_pause_s: float = _LONGEST_PAUSE_S,
    ) -> None:
        self.epoch = 0
        self._addresses = addresses
        self._longest_pause_s = longest_pause_s
        self._pid, self._loop = own_pid(), running_loop()
        self._at = 0
        self._patience_s = patience_s
        self._headers = {"content-type": wire.MSGPACK, "accept": wire.MSGPACK}
        if token is not None:
            if not token.isascii() or not token.isprintable() or " " in token:
                raise InvalidArgument("a token is text of printable ASCII characters without spaces")
            self._headers["authorization"] = f"Bearer {token}"
        self._closing = ExitStack()
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    def _connected(self) -> aiohttp.ClientSession:
        """The session, made for the first call. Raises OSError where the folder of a socket is not there."""
        if self._is_closed:
            raise QueueClosed("the connection to the service was closed")
        if self._session is None:
            first = self._addresses[0]
            connector: aiohttp.BaseConnector
            if first.startswith(UNIX):
                path = self._closing.enter_context(reachable(Path(first.removeprefix(UNIX))))
                connector = aiohttp.UnixConnector(path, limit=0)
            else:
                connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._session

    async def close(self) -> None:
        """End all connections; calls on their way raise `QueueClosed`."""
        self._is_closed = True
        if self._session is not None:
            await self._session.close()
        self._closing.close()

    def check_owner(self) -> None:
        """Raise `WrongProcess` or `WrongLoop` in another process, or on another event loop, than its own."""
        check_owner(self._addresses[0], self._pid, self._loop)

    async def call(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        body: object = None,
        query: Mapping[str, Any] | None = None,
        wait_s: float = 0.0,
    ) -> tuple[T, bool]:
        """The answer to a call, and whether it was sent more than once; raises the error that it was answered with.

        `wait_s`: for so long the service may wait before it answers. Raises `ServiceUnavailable` when there is no
        answer in time: what came of the call is not known then.
        """
        self.check_owner()
        loop = asyncio.get_running_loop()
        data = None if body is None else msgspec.msgpack.encode(body)
        over_s, pause_s, tries, reasons = loop.time() + self._patience_s, _FIRST_PAUSE_S, 0, dict[str, str]()
        first = self._at
        while True:
            address = self._addresses[self._at]
            try:
                status, epoch, value = await self._send(method, address, path, data, query, wait_s)
                if epoch is not None and epoch < self.epoch:
                    reasons[address] = f"it is the writer of epoch {epoch}, which is over"
                elif status in _ELSEWHERE:
                    reasons[address] = _error(value, status).message
                else:
                    self.epoch = self.epoch if epoch is None else epoch
                    return _read(status, epoch, value, answer), tries > 0
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                reasons[address] = str(error) or type(error).__name__
            tries += 1
            self._at = (self._addresses.index(address) + 1) % len(self._addresses)
            if self._at == first and loop.time() + pause_s > over_s:
                told = "; ".join(f"{place}: {reason}" for place, reason in reasons.items())
                raise ServiceUnavailable(
                    f"the service did not answer within {self._patience_s:g} s, and whether it did the call is not "
                    f"known ({told})"
                )
            if self._at == first:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, self._longest_pause_s)

    async def _send(
        self,
        method: str,
        address: str,
        path: str,
        data: bytes | None,
        query: Mapping[str, Any] | None,
        wait_s: float,
    ) -> Answer:
        url = (_UNIX_BASE if address.startswith(UNIX) else address) + path
        headers = self._headers | {wire.EPOCH_HEADER: str(self.epoch)}
        limit = aiohttp.ClientTimeout(total=wait_s + _ANSWER_LIMIT_S, sock_connect=_CONNECT_LIMIT_S)
        async with self._connected().request(
            method, url, data=data, params=query, headers=headers, timeout=limit, allow_redirects=False
        ) as response:
            text = response.headers.get(wire.EPOCH_HEADER, "")
            epoch = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None
            found = response.status, epoch, await response.read()
            if response.status in _ELSEWHERE or (epoch is not None and epoch < self.epoch):
                response.close()  # another writer may listen at this address by now
            return found


def _error(value: bytes, status: int) -> wire.ErrorBody:
    try:
        return msgspec.msgpack.decode(value, type=wire.ErrorBody)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return wire.ErrorBody(error="ServiceError", message=f"it answered with status {status}", permanent=True)


def _read(status: int, epoch: int | None, value: bytes, answer: type[T]) -> T:
    if status == 200 and epoch is not None:
        try:
            return msgspec.msgpack.decode(value, type=answer)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ServiceError(f"the service gave an answer that this ledgerq can't read: {error}") from None
    if status == 200:
        raise ServiceError("what answers there is no service of ledgerq")
    if status == 401:
        raise NotAllowed("the service does not know the token, or none was given: connect(..., token=...)")
    raise error_of(_error(value, status))
