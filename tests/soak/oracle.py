"""The soak's own record of what was promised to its callers, kept outside the queue and its process.

The processes under load write a fact to a file after each call that returned (`FACTS`); this record follows the log by
the reference model (tests/model/job.py), and names where the two differ. It remembers the jobs that are alive and those
swept lately, so its size does not go with the length of the run.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.events import Cancelled, Record, Swept
from tests.model.job import UNFINISHED, Model, ModelJob, Violation

__all__ = ["FACTS", "Oracle"]

FACTS: Final[dict[str, str]] = {
    "E": "was enqueued",
    "C": "was claimed",
    "A": "was acked",
    "N": "was nacked",
    "R": "was released",
    "L": "had lost its claim",
    "X": "was cancelled",
    "Q": "was requeued",
    "!": "saw something wrong",
}
"""The first word of each line of facts. A job's id follows, then the offset of the claim, where there is one."""

_MAX_BROKEN: Final = 50
_ENDS: Final = {"A": "acked", "N": "nacked", "R": "released"}


class Oracle:
    """The comparison of facts and log. `broken` holds one line for each promise that was not kept (the first 50)."""

    def __init__(self) -> None:
        self.next_offset = 0
        self.broken: list[str] = []
        self.broken_count = 0
        self.facts = 0
        self.events: Counter[str] = Counter()
        self._model = Model()
        self._swept: list[bytes] = []
        self._swept_before: list[bytes] = []

    @property
    def unfinished(self) -> int:
        """The number of jobs that still wait or are worked on."""
        return sum(job.state in UNFINISHED for job in self._model.jobs.values())

    @property
    def alive(self) -> int:
        """The number of jobs that are not swept yet."""
        return sum(job.state != "gone" for job in self._model.jobs.values())

    # ------------------------------------------------------------------ the log

    def follow(self, record: Record) -> None:
        """Take the next record of the log."""
        if record.offset != self.next_offset:
            self._break(f"the log goes on at offset {record.offset} instead of {self.next_offset}")
        self.next_offset = record.offset + 1
        event = record.event
        self.events[type(event).__name__] += 1
        if isinstance(event, Swept):
            self._swept.append(event.id)
        try:
            self._model.apply(record.offset, record.time_ms, event)
        except Violation as violation:
            self._break(str(violation))

    # ------------------------------------------------------------------ the facts

    def compare(self, facts: Iterable[str]) -> None:
        """Compare the facts with the log, which was followed to an offset after the last of them."""
        for line in facts:
            self.facts += 1
            kind, _, rest = line.partition(" ")
            if kind == "!":
                self._break(rest)
                continue
            job_id, _, offset = rest.partition(" ")
            job = self._model.jobs.get(job_id_bytes(job_id))
            if job is None or kind not in FACTS:
                self._break(f"job {job_id} {FACTS.get(kind, kind)}, but the log has no such job")
            elif not self._holds(job, kind, int(offset or -1)):
                self._break(f"job {job_id} {FACTS[kind]} (claim {offset or '-'}), but the log does not say so")

    def compare_counts(self, counts: Mapping[str, Mapping[str, int]], paused: Mapping[str, bool]) -> None:
        """Compare the queues' own counters, by queue and state, and their paused flags, with this record."""
        for queue in counts.keys() | self._model.queues.keys():
            own = self._model.counts(queue)
            counted = {state: count for state, count in own.states.items() if count and state != "gone"}
            there = {state: count for state, count in counts.get(queue, {}).items() if count}
            if there != counted:
                self._break(f"queue {queue!r} counts {there}, but the log makes it {counted}")
            if paused.get(queue, False) != own.paused:
                self._break(f"queue {queue!r} has paused={paused.get(queue)}, not so by the log")

    def turn(self) -> None:
        """Forget the jobs that were swept a round ago: no fact about them can arrive any more."""
        for job_id in self._swept_before:
            self._model.forget(job_id)
        self._swept_before, self._swept = self._swept, []

    def _break(self, text: str) -> None:
        self.broken_count += 1
        if len(self.broken) < _MAX_BROKEN:
            self.broken.append(text)

    def _holds(self, job: ModelJob, kind: str, claim: int) -> bool:
        ended = self._model.claims.get((job.id, claim))
        match kind:
            case "E":
                return True
            case "C":
                return ended is not None
            case "X":
                return any(isinstance(moment.event, Cancelled) for moment in job.life)
            case "Q":
                return job.requeues > 0
            case "L":
                # A claim that was current can't have been lost; one that ended can.
                return bool(ended)
        return ended is not None and ended == _ENDS.get(kind)
