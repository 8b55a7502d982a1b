"""The queues that a process has open for its backends: one for each URL, opened when it is first used.

Backends are made anew for each thread, and a web server forks: so the queues are kept here. A forked child opens its
own.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.locations import parse_location
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue as AsyncQueue
from ledgerq.worker.sync.sync_queue import Queue

__all__ = ["Place", "close_queues", "found_queue", "opened_queue", "use_queue"]

_SERVICE: Final = ("http://", "https://")


@dataclass(frozen=True)
class Place:
    """Where the jobs of a backend are, and how that is opened: its OPTIONS in the settings."""

    url: str
    token: str | None = None
    wait: float = 0.0
    share: bool = False
    default: QueueOptions = field(default_factory=QueueOptions)
    queues: Mapping[str, QueueOptions] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> "Place":
        """The place in these OPTIONS; raises `InvalidArgument`."""
        options = dict(given)
        url = options.pop("url", None)
        if not isinstance(url, str | Path) or not str(url):
            raise InvalidArgument(f"url is a folder, the URL of a store or that of a service, not {url!r}")
        if unknown := sorted(options.keys() - {"token", "wait", "share", "default", "queues"}):
            raise InvalidArgument(f"there is no option {', '.join(map(str, unknown))}")
        default = _queue_options(options.pop("default", {}))
        queues = {name: _queue_options(one) for name, one in dict(options.pop("queues", {})).items()}
        place = str(url.absolute()) if isinstance(url, Path) else url
        is_folder = not place.startswith(_SERVICE) and parse_location(place).is_file
        return cls(place, **{"share": is_folder, **options}, default=default, queues=queues)

    @property
    def is_service(self) -> bool:
        """Whether another process has the store open."""
        return self.url.startswith(_SERVICE)

    def open(self) -> Queue:
        """Open it on a thread of its own."""
        if self.is_service:
            return Queue.connect(self.url, token=self.token)
        return Queue.open(self.url, **self._options())

    def open_here(self) -> Any:
        """Open it on the event loop that runs: for `async with`."""
        if self.is_service:
            return AsyncQueue.connect(self.url, token=self.token)
        opens: Any = AsyncQueue.open
        return opens(self.url, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"share": self.share, "wait": self.wait, "default": self.default, "queues": self.queues}


def _queue_options(given: Any) -> QueueOptions:
    return given if isinstance(given, QueueOptions) else QueueOptions(**given)


class _Open:
    """What is open in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.queues: dict[str, tuple[Place, Queue]] = {}


_open = [_Open()]
# Of processes that this one was forked from: kept, since what they hold must not be finalised here.
_inherited: list[_Open] = []


def _forked() -> None:
    _inherited.append(_open[0])
    _open[0] = _Open()


os.register_at_fork(after_in_child=_forked)


def found_queue(place: Place) -> Queue | None:
    """The queue that is open for a place, if it is, and has not failed."""
    found = _open[0].queues.get(place.url)
    if found is None or found[1].failure is not None or found[1].is_closed:
        return None
    if found[0] != place:
        raise InvalidArgument(f"{place.url} is open with other options: give the backends of one store the same ones")
    return found[1]


def opened_queue(place: Place) -> Queue:
    """The queue for a place, which is opened where it isn't, or has failed."""
    opened = _open[0]
    if (queue := found_queue(place)) is not None:
        return queue
    with opened.lock:
        if (queue := found_queue(place)) is not None:
            return queue
        if (failed := opened.queues.pop(place.url, None)) is not None:
            failed[1].close()
        queue = place.open()
        opened.queues[place.url] = place, queue
        return queue


def close_queues() -> None:
    """Close what this process has open: before a worker opens a store itself."""
    opened = _open[0]
    with opened.lock:
        queues, opened.queues = opened.queues, {}
        for _, queue in queues.values():
            queue.close()


def use_queue(place: Place, queue: Queue) -> None:
    """Let this queue, which a worker has opened, be the one for a place: its tasks enqueue there, too."""
    _open[0].queues[place.url] = place, queue
