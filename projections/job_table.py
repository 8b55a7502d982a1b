"""The table of jobs that a fold keeps: the ones touched last as records, all others as the bytes of their index row.

A row takes a third of the memory of a record, and an audit compares it with the store's as it is. The rows stand in a
compiled table, which takes half the memory of a dict; where that was not built, in a dict.
"""

from collections.abc import Iterator, Mapping
from typing import Final, Protocol

from msgspec.msgpack import Decoder

from ledgerq.eventlog.codec import pack
from ledgerq.projections.job import Job

try:
    from ledgerq.projections import _packed  # type: ignore[attr-defined]
except ImportError:
    _packed = None

__all__ = ["JobTable", "Rows", "decode_row", "is_built", "new_rows"]

_RECENT_JOBS: Final = 20_000
_KEYS_AT_ONCE: Final = 1000
decode_row: Final = Decoder(Job).decode
"""The job in a row of this table, which is one of the present format."""


class Rows(Protocol):
    """Rows by the 16 bytes of a job's id, in no order."""

    def get(self, id: bytes, /) -> bytes | None:
        """The row, or None."""

    def __setitem__(self, id: bytes, row: bytes, /) -> None: ...
    def __delitem__(self, id: bytes, /) -> None: ...
    def __contains__(self, id: object, /) -> bool: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...


def is_built() -> bool:
    """Whether the compiled table is there."""
    return _packed is not None


def new_rows() -> Rows:
    """An empty table, the compiled one where it was built."""
    return _CompiledRows() if is_built() else {}


class _CompiledRows(object if _packed is None else _packed.PackedRows):  # type: ignore[misc]
    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        size = len(self)
        some, at = self.some_keys(0, _KEYS_AT_ONCE)
        while some:
            yield from some
            if len(self) != size:
                raise RuntimeError("the table changed its size while it was iterated over")
            some, at = self.some_keys(at, _KEYS_AT_ONCE)


class JobTable(Mapping[bytes, Job]):
    """Jobs by id. `recent` holds some of them as records, about `recent_jobs` at most, `rows` the others, encoded."""

    __slots__ = ("_recent_jobs", "recent", "rows")

    def __init__(self, recent_jobs: int | None = None) -> None:
        self._recent_jobs = _RECENT_JOBS if recent_jobs is None else recent_jobs
        self.recent: dict[bytes, Job] = {}
        self.rows = new_rows()

    def find(self, id: bytes) -> Job | None:
        """The job, or None."""
        job = self.recent.get(id)
        if job is None and (row := self.rows.get(id)) is not None:
            return decode_row(row)
        return job

    def pack_some(self) -> None:
        """Keep the jobs as rows when there are too many records; called now and then by what adds to `recent`."""
        if len(self.recent) > self._recent_jobs:
            self.pack()

    def remove(self, id: bytes) -> None:
        """Remove a job."""
        self.recent.pop(id, None)
        if id in self.rows:
            del self.rows[id]

    def pack(self) -> None:
        """Keep all jobs as rows."""
        encode, rows = pack, self.rows
        for id, job in self.recent.items():
            rows[id] = encode(job)
        self.recent.clear()

    def __getitem__(self, id: bytes) -> Job:
        job = self.find(id)
        if job is None:
            raise KeyError(id)
        return job

    def __iter__(self) -> Iterator[bytes]:
        yield from self.rows
        yield from (id for id in self.recent if id not in self.rows)

    def __len__(self) -> int:
        # A job in both has another state by now than its row.
        return len(self.rows) + sum(id not in self.rows for id in self.recent)
