"""The steps and the reports of jobs under a simulation: what is done is never done again, and never forgotten."""

from collections.abc import Mapping

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import RecordBatch
from ledgerq.eventlog.events import Enqueued, StepDone
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.side_records import decode_result
from tests.model.job import Model, Violation

__all__ = ["StepRows"]


class StepRows:
    """The checker of steps and reports."""

    def __init__(self, disk: MemoryDisk, model: Model) -> None:
        self._disk = disk
        self._model = model
        self._done: dict[bytes, dict[str, bytes]] = {}
        self._works = 0

    def work(self, id: bytes, name: str) -> int:
        """Do the work of a step; the value is another one each time. Raises `Violation` when it is done already."""
        if name in self._done.get(id, {}):
            raise Violation("step", f"step {name!r} of {id.hex()} is done, and is done again")
        self._works += 1
        return self._works

    def returned(self, id: bytes, name: str, value: int) -> None:
        """Check a step that returned this; raises `Violation`."""
        if (found := self._done.get(id, {}).get(name)) != b"%d" % value:
            raise Violation("step", f"step {name!r} of {id.hex()} returned {value}, durable is {found!r}")

    def take(self, batch: RecordBatch, changes: Mapping[bytes, bytes | None]) -> None:
        """Check a new record batch; raises `Violation`."""
        for offset, event in enumerate(batch.events, batch.base_offset):
            if isinstance(event, Enqueued):
                self._done.pop(event.id, None)  # the id of a job that was swept
            elif isinstance(event, StepDone):
                row = changes.get(keys.text_key(offset))
                if row is None:
                    raise Violation("step", f"{event} at {offset} came without its value")
                self._done.setdefault(event.id, {})[event.name] = decode_result(row)

    def end(self) -> None:
        """Check that no report is there whose claim is over; raises `Violation`."""
        stop = keys.after_prefix(keys.PROGRESS_PREFIX)
        for key in self._disk.rows.irange(keys.PROGRESS_PREFIX, stop):
            id = key[len(keys.PROGRESS_PREFIX) :]
            if self._model.jobs[id].state != "claimed":
                raise Violation("report", f"the report of {id.hex()} is there, which is {self._model.jobs[id].state}")
