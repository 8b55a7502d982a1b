"""What a queue is opened with, checked: the options of its queues and the pace of its commits."""

from collections.abc import Mapping
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.eventlog.pace import CommitPace
from ledgerq.worker.options import QueueOptions

__all__ = ["checked_options", "pace_of"]

_OBJECT_STORE_INTERVAL_MS: Final = 50.0
_LOCAL_INTERVAL_MS: Final = 2.0
_MAX_INTERVAL_MS: Final = 60_000


def checked_options(
    default: QueueOptions, queues: Mapping[str, QueueOptions] | None
) -> tuple[QueueOptions, dict[str, QueueOptions]]:
    """The options, checked: by default and by the name of the queue. Raises `InvalidArgument`."""
    if queues is not None and not isinstance(queues, Mapping):
        raise InvalidArgument(f"queues maps names to QueueOptions, {queues!r} does not")
    kept = dict(queues or {})
    for name in kept:
        queue_name_bytes(name)
    for options in (default, *kept.values()):
        if not isinstance(options, QueueOptions):
            raise InvalidArgument(f"a queue's options are QueueOptions, not {options!r}")
        if options.dead_letter_queue is not None:
            queue_name_bytes(options.dead_letter_queue)
    for name in kept:
        _check_dead_letters(name, default, kept)
    return default, kept


def _check_dead_letters(name: str, default: QueueOptions, kept: Mapping[str, QueueOptions]) -> None:
    """Raise `InvalidArgument` for dead letters that would go around without an end."""
    way = [name]
    while (to := kept.get(way[-1], default).dead_letter_queue) is not None and to != way[-1]:
        if to in way:
            raise InvalidArgument(
                f"dead letters would go around: {' -> '.join((*way, to))}; end at a queue without one"
            )
        way.append(to)


def pace_of(location: str, interval_ms: float | None, overlap: bool | None) -> CommitPace:
    """The pace of commits: a given pause, or what balances flushes against waiting for this kind of store."""
    if interval_ms is None:
        is_local = location.startswith(("file:", "memory:")) or "://" not in location
        return CommitPace((_LOCAL_INTERVAL_MS if is_local else _OBJECT_STORE_INTERVAL_MS) / 1000, overlap=overlap)
    number = isinstance(interval_ms, int | float) and not isinstance(interval_ms, bool)
    if not number or not 0 <= interval_ms <= _MAX_INTERVAL_MS:
        raise InvalidArgument(f"commit_interval_ms is a number from 0 to {_MAX_INTERVAL_MS}, not {interval_ms!r}")
    return CommitPace(interval_ms / 1000, is_fixed=True, overlap=overlap)
