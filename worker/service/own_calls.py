"""The calls of the process that has the queue open, without a connection: the messages are those of all clients.

They come from a shared queue (worker/sharing) whose process is the writer. Claims made so end with the process, as any
claim of an embedded worker does.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.call import Call
from ledgerq.worker.service.routes import find
from ledgerq.worker.service.tokens import ANYONE

__all__ = ["own_call"]


async def own_call(api: Api, method: str, path: str, data: bytes | None, query: Mapping[str, Any] | None) -> bytes:
    """The answer to a call, in msgpack as the call; raises what the queue raises."""
    routes, name = find(path) or ({}, "")
    if (route := routes.get(method)) is None:
        raise InvalidArgument(f"this ledgerq has no call {method} {path}")
    texts = {key: value if isinstance(value, list) else [value] for key, value in (query or {}).items()}
    given = {key: [str(one) for one in several] for key, several in texts.items()}
    try:
        body = None if route.body is None else msgspec.msgpack.decode(data or b"", type=route.body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the call is no {route.body}: {error}") from None
    return msgspec.msgpack.encode(await route.act(api, Call(ANYONE, name, given, body, is_own=True)))
