"""A pool of record batches found anywhere, in any order, and the longest chain that they prove.

Several batches may claim one offset: of a history that was cut, of a writer that was fenced, or altered ones. A batch
is taken only when it follows from the first one on by digests. Kept in a temporary SQLite file, so that memory stays
small whatever the log's length.
"""

import sqlite3
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog.codec import EMPTY_HEAD, NO_DIGEST, Head, decode_batch, decode_head, digest_of
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.log import Verified
from ledgerq.eventlog.store import Anchor

__all__ = ["BatchPool", "Stretch"]

_SCHEMA: Final = """
    CREATE TABLE batch (
        id INTEGER PRIMARY KEY, base INTEGER, digest BLOB, previous BLOB, next INTEGER, epoch INTEGER, time_ms INTEGER,
        seq INTEGER, chosen INTEGER DEFAULT 0, value BLOB, UNIQUE (base, digest)
    );
    CREATE TABLE removed (base INTEGER PRIMARY KEY, seq INTEGER);
"""
# Nothing in the file outlives the process; 64 MiB of it are kept in memory.
_PRAGMAS: Final = "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536;"
_PAGE_ROWS: Final = 1000
_MAX_INTEGER: Final = 2**63 - 1


class Stretch(NamedTuple):
    """Record batches in a row that hold the offsets from `start` to before `stop`."""

    start: int
    stop: int
    batches: int


class _Reached(NamedTuple):
    """A batch up to which the chain is whole; `is_vouched`: the newest commit known to have been made is in it."""

    number: int
    digest: bytes
    epoch: int
    time_ms: int
    is_vouched: bool


class BatchPool:
    """The pool, in a temporary SQLite file. Its methods block: call them from a thread, one at a time."""

    def __init__(self, file: Path) -> None:
        """Make `file` and keep everything in it."""
        self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-65536; BEGIN; {_SCHEMA}"
        )
        self._head: Head | None = None
        self.undecodable: dict[int, str] = {}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def add(self, base_offset: int, value: bytes, seq: int) -> None:
        """Add the record batch found at `base_offset`. Raises `FormatTooNew` for one of a newer ledgerq's.

        `seq` is the store's own number of the change that wrote it.
        """
        digest = digest_of(value)
        known = "UPDATE batch SET seq = max(seq, ?) WHERE base = ? AND digest = ?"
        if base_offset > _MAX_INTEGER or self._db.execute(known, (seq, base_offset, digest)).rowcount:
            return
        try:
            batch = decode_batch(base_offset, value)
        except LogCorrupt as error:
            self.undecodable[base_offset] = str(error)
            return
        row = (base_offset, digest, batch.previous, batch.next_offset, batch.epoch, batch.time_ms, seq, value)
        self._db.execute(
            "INSERT INTO batch (base, digest, previous, next, epoch, time_ms, seq, value) VALUES (?,?,?,?,?,?,?,?)", row
        )

    def add_removed(self, base_offset: int, seq: int) -> None:
        """Add the removal of the batch at `base_offset` by change `seq`: only an operator's cut does that."""
        if base_offset <= _MAX_INTEGER:
            row = (base_offset, seq)
            self._db.execute(
                "INSERT INTO removed VALUES (?,?) ON CONFLICT (base) DO UPDATE SET seq = max(seq, excluded.seq)", row
            )

    def add_head(self, value: bytes) -> None:
        """Add a head: a commit that was made, though its batch may be lost."""
        try:
            head = decode_head(value)
        except LogCorrupt:
            return
        if self._head is None or (head.epoch, head.next_offset) > (self._head.epoch, self._head.next_offset):
            self._head = head

    def promised(self, anchor: Anchor | None) -> Anchor | None:
        """The newest commit known to have been made, by the heads found or the anchor."""
        if self._head is None:
            return anchor
        next_offset, digest, epoch, time_ms, base_offset = self._head
        found = Anchor(base_offset, next_offset, digest, epoch, time_ms)
        return found if anchor is None else max(anchor, found, key=lambda a: (a.epoch, a.next_offset))

    def choose(self, promised: Anchor | None) -> Verified:
        """Find the chain: the one that holds the `promised` commit; else the newest writer's; else the longest.

        Of two histories that part, the one with the later epoch is what the store became.
        """
        parents, best, best_rank, ends = array("q", [0]), None, (False, -1, 0), dict[int, list[_Reached]]()
        ends[0] = [_Reached(0, NO_DIGEST, 0, 0, False)]
        found = self._db.execute(
            "SELECT id, batch.base, digest, previous, next, epoch, time_ms FROM batch LEFT JOIN removed "
            "ON removed.base = batch.base WHERE batch.seq > ifnull(removed.seq, -1) ORDER BY batch.base"
        )
        parents.extend([0] * (self._db.execute("SELECT ifnull(max(id), 0) FROM batch").fetchone()[0]))
        for number, base, digest, previous, following, epoch, time_ms in found:
            for end in [end for end in ends if end < base]:
                del ends[end]  # no later batch can follow there
            for before in ends.get(base, ()):
                if before.digest == previous and before.epoch <= epoch and before.time_ms <= time_ms:
                    is_vouched = before.is_vouched or (promised is not None and digest == promised.digest)
                    ends.setdefault(following, []).append(_Reached(number, digest, epoch, time_ms, is_vouched))
                    parents[number] = before.number
                    if (rank := (is_vouched, epoch, following)) > best_rank:
                        best, best_rank = number, rank
                    break
        chosen = []
        while best:
            chosen.append((best,))
            best = parents[best]
        self._db.execute("UPDATE batch SET chosen = 0 WHERE chosen")
        self._db.executemany("UPDATE batch SET chosen = 1 WHERE id = ?", chosen)
        return self.chosen()

    def chosen(self) -> Verified:
        """The offset at which the chosen chain ends."""
        last = self._db.execute(
            "SELECT next, digest, epoch, time_ms, base FROM batch WHERE chosen ORDER BY base DESC LIMIT 1"
        ).fetchone()
        head = EMPTY_HEAD if last is None else Head(*last)
        count = self._db.execute("SELECT count(*) FROM batch WHERE chosen").fetchone()[0]
        return Verified(count, head.next_offset, head)

    def cut(self, offset: int) -> Verified:
        """Let the chosen chain end before the batch that holds `offset`."""
        self._db.execute("UPDATE batch SET chosen = 0 WHERE chosen AND next > ?", (offset,))
        return self.chosen()

    def pages(self) -> Iterator[list[tuple[int, bytes]]]:
        """The chosen batches in order, a page at a time: base offset and value."""
        at = -1
        query = "SELECT base, value FROM batch WHERE chosen AND base > ? ORDER BY base LIMIT ?"
        while rows := self._db.execute(query, (at, _PAGE_ROWS)).fetchall():
            yield rows
            at = rows[-1][0]

    def holds(self, anchor: Anchor) -> bool:
        """Whether the chosen chain holds the commit that `anchor` names."""
        query = "SELECT 1 FROM batch WHERE chosen AND base = ? AND digest = ?"
        return anchor.next_offset == 0 or bool(self._db.execute(query, (anchor.base_offset, anchor.digest)).fetchone())

    def left_out(self, end: int) -> tuple[list[Stretch], int]:
        """The batches found that are not in the chain: stretches from `end` on, and how many batches before it."""
        stretches: list[Stretch] = []
        rows = self._db.execute("SELECT base, next FROM batch WHERE NOT chosen AND base >= ? ORDER BY base", (end,))
        for start, stop in rows:
            if stretches and start <= stretches[-1].stop:
                last = stretches[-1]
                stretches[-1] = Stretch(last.start, max(last.stop, stop), last.batches + 1)
            else:
                stretches.append(Stretch(start, stop, 1))
        before = self._db.execute("SELECT count(*) FROM batch WHERE NOT chosen AND base < ?", (end,)).fetchone()[0]
        return stretches, before

    def left_out_pages(self, end: int) -> Iterator[list[tuple[int, bytes]]]:
        """The batches from `end` on that are not in the chain, a page at a time: base offset and value."""
        at = 0
        query = "SELECT id, base, value FROM batch WHERE NOT chosen AND base >= ? AND id > ? ORDER BY id LIMIT ?"
        while rows := self._db.execute(query, (end, at, _PAGE_ROWS)).fetchall():
            yield [(base, value) for _, base, value in rows]
            at = rows[-1][0]
