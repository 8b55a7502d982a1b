"""One request at work: who calls, with what, and what is to be undone when the answer can't be given."""

from collections.abc import Callable, Mapping
from typing import Any

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.service.tokens import Caller

__all__ = ["Call"]


class Call:
    """A request whose caller is known and whose body is decoded.

    `name` is the part of the path that names a job or a queue. `undo` is called when the client has gone before its
    answer could be sent. `is_own`: the caller is in the queue's process, with which its claims end.
    """

    __slots__ = ("body", "caller", "is_own", "name", "query", "undo")

    def __init__(
        self, caller: Caller, name: str, query: Mapping[str, list[str]], body: Any, *, is_own: bool = False
    ) -> None:
        self.is_own = is_own
        self.caller = caller
        self.name = name
        self.query = query
        self.body = body
        self.undo: Callable[[], None] | None = None

    def text(self, name: str) -> str | None:
        """A text of the query."""
        return self.query.get(name, [None])[-1]

    def number(self, name: str, default: float, most: float) -> float:
        """A number of the query, from 0 to `most`."""
        text = self.text(name)
        if text is None:
            return default
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not 0 <= number <= most:
            raise InvalidArgument(f"{name} is a number from 0 to {most:g}, not {text!r}")
        return number
