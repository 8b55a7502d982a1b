"""The checks at each restart: a full audit of the store, and the comparison of the log with what was promised.

Everything is read from one commit of the store, opened read-only in a process that never writes it.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.store import Anchor
from ledgerq.projections.audit import audit
from ledgerq.projections.view import LedgerView
from ledgerq.tools.console.opening import reading
from tests.soak.load import QUEUES, Counts
from tests.soak.oracle import Oracle

__all__ = ["Auditor", "Checked", "FactFiles"]


class FactFiles:
    """The files in which the processes under load write their facts. What was read of a finished one is removed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_bytes: dict[Path, int] = {}
        self._count = 0

    def new(self) -> Path:
        """A file for one opening of the store."""
        self._count += 1
        path = self._folder / f"facts-{self._count:05d}"
        path.touch()
        self._read_bytes[path] = 0
        return path

    def take(self, finished: Sequence[Path]) -> list[str]:
        """The whole lines that are new; of `finished` files nothing will come any more."""
        lines: list[str] = []
        for path, done_bytes in list(self._read_bytes.items()):
            with path.open("rb") as file:
                file.seek(done_bytes)
                text, end, _ = file.read().rpartition(b"\n")
            lines += text.decode().split("\n") if end else []
            self._read_bytes[path] = done_bytes + len(text) + len(end)
            if path in finished:
                del self._read_bytes[path]
                path.unlink()
        return lines


class Checked(NamedTuple):
    """The result of a check: sizes, how long it took, and a line for each thing that is wrong."""

    events: int
    jobs: int
    facts: int
    seconds: float
    wrong: list[str]


class Auditor:
    """The auditor of the store at `url`, which also keeps the record of promises."""

    def __init__(self, url: str) -> None:
        self.oracle = Oracle()
        self._url = url
        self._anchor: Anchor | None = None

    async def check(self, facts: Sequence[str]) -> Checked:
        """Audit everything and compare it with the facts, which must have been read before this call."""
        start_s = time.monotonic()
        seen, known = self.oracle.broken_count, len(self.oracle.broken)
        wrong: list[str] = []
        events = jobs = 0
        try:
            async with reading(self._url) as log:
                # The log of the last check must still be there, unchanged: a copy of its end was kept here.
                report = await audit(
                    log.store, clock=SystemClock(), deep=True, anchor=self._anchor, projections=[Counts()]
                )
                events, jobs = report.verified.events, report.jobs
                wrong += [
                    f"the audit found {one.range_name} {one.key}: expected {one.expected}, found {one.found}"
                    for one in report.differences[:5]
                ]
                if not report.clean:
                    wrong.append(f"the audit found {report.problem_count} differences and damaged files")
                await self._compare(log, facts)
                head = report.verified.head
                self._anchor = Anchor(head.base_offset, head.next_offset, head.digest, head.epoch, head.time_ms)
        except LedgerError as error:
            wrong.append(f"the audit could not be made: {type(error).__name__}: {error}")
        wrong += self.oracle.broken[known:]
        left = self.oracle.broken_count - seen - (len(self.oracle.broken) - known)
        if left:
            wrong.append(f"{left} more promises were broken")
        return Checked(events, jobs, len(facts), time.monotonic() - start_s, wrong)

    async def _compare(self, log: LogReader, facts: Sequence[str]) -> None:
        oracle = self.oracle
        async for record in log.read(oracle.next_offset):
            oracle.follow(record)
        oracle.compare(facts)
        view = LedgerView(log)
        stats = [await view.stats(name) for name in QUEUES]
        oracle.compare_counts(
            {
                one.queue: {
                    "scheduled": one.scheduled,
                    "pending": one.pending,
                    "claimed": one.claimed,
                    "done": one.done,
                    "dead": one.dead,
                    "cancelled": one.cancelled,
                }
                for one in stats
            },
            {one.queue: one.paused for one in stats},
        )
        oracle.turn()
