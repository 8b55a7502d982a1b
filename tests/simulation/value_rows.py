"""The values of keys under a simulation: what a handler has set is in the commit of its own ack, or nowhere."""

import hashlib
from collections.abc import Mapping

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import RecordBatch
from ledgerq.eventlog.events import Acked, Claimed, KvDeleted, KvSet
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.side_records import decode_value_row
from tests.model.job import Violation

__all__ = ["ValueRows"]


class ValueRows:
    """The checker of values. `staged`: by claim, the keys that its handler has set, None for one that it deletes."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.staged: dict[tuple[bytes, int], dict[str, bytes | None]] = {}
        self._disk = disk
        self._claims: dict[bytes, int] = {}
        self._rows: dict[bytes, tuple[int, bytes]] = {}

    def take(self, batch: RecordBatch) -> None:
        """Check a new record batch; raises `Violation`."""
        due: dict[tuple[bytes | None, str], bytes | None] = {}
        for offset, event in enumerate(batch.events, batch.base_offset):
            match event:
                case Claimed():
                    self._claims[event.id] = offset
                case Acked():
                    mine = self.staged.get((event.id, self._claims[event.id]), {})
                    # To delete what has no value at that time brings no event.
                    due |= {
                        (event.id, key): value
                        for key, value in mine.items()
                        if value is not None or keys.value_key(key) in self._rows
                    }
                case KvSet():
                    if due.pop((event.job, event.key), None) is None:
                        raise Violation("effects", f"{event} at {offset} is not with the ack of a job that has set it")
                    self._rows[keys.value_key(event.key)] = (offset, event.digest)
                case KvDeleted():
                    if due.pop((event.job, event.key), b"") is not None:
                        raise Violation("effects", f"{event} at {offset} is not with the ack of a job that deletes it")
                    del self._rows[keys.value_key(event.key)]
                case _:
                    pass
        if due:
            raise Violation("effects", f"a job was acked at {batch.base_offset} or later without its {[*due]}")

    def end(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Check the rows that came and went with these changes; raises `Violation`."""
        for key in changes:
            if key.startswith(keys.VALUE_PREFIX):
                self._check(key)

    def _check(self, key: bytes) -> None:
        row, wanted = self._disk.rows.get(key), self._rows.get(key)
        found = None if row is None else decode_value_row(row)
        told = None if found is None else (found.offset, hashlib.blake2b(found.sealed, digest_size=32).digest())
        if told != wanted:
            raise Violation("effects", f"the row {key!r} is {told}, and should be {wanted}")

    def check_everything(self) -> None:
        """Check that there are exactly the rows that there should be; raises `Violation`."""
        for key in {*self._rows, *(key for key in self._disk.rows if key.startswith(keys.VALUE_PREFIX))}:
            self._check(key)
