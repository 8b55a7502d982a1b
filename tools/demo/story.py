"""The demo's steps. Each one does something to a store, prints that, and checks the result."""

import json
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.events import STATES, Acked, Event, LeaseExpired, Nacked
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_store
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.index_keys import INDEX_PREFIX
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.stats import QueueStats
from ledgerq.projections.view import LedgerView
from ledgerq.tools.console.arguments import system_user
from ledgerq.tools.console.opening import reading
from ledgerq.tools.console.output import plural
from ledgerq.tools.demo.damage import Damage, damage
from ledgerq.tools.demo.sample_files import MAX_FILES, MAX_TOTAL_MIB, Fate, Found, fates
from ledgerq.tools.demo.screen import Screen, difference_row, history_rows
from ledgerq.tools.demo.worker_process import DemoFailed, started
from ledgerq.tools.demo.worker_program import CONCURRENCY, FATE, OPTIONS, QUEUE
from ledgerq.worker.options import NewJob
from ledgerq.worker.queue import Queue

__all__ = ["Story"]


class _Shown(NamedTuple):
    """Two jobs whose histories are shown, and how many jobs were interrupted."""

    retried: bytes | None
    interrupted: bytes | None
    interruptions: int


def _expect(is_so: bool, what: str) -> None:
    if not is_so:
        raise DemoFailed(what)


class Story:
    """The steps, in order."""

    def __init__(self, files: Found, scratch: Path, screen: Screen, *, program: str) -> None:
        self._files = files
        self._scratch = scratch
        self._screen = screen
        self._program = program
        self._total = len(files.names)
        self._fates: dict[str, Fate] = dict.fromkeys(files.names, "none")
        self._readable = files.readable()
        self._fates.update(fates(self._readable))
        self._url = (scratch / "store").as_uri()
        self._results = scratch / "results.jsonl"
        self._clock = SystemClock()

    async def tell(self) -> None:
        """Run all steps, from the first file to the last audit."""
        self._introduce()
        await self._enqueue()
        interrupted = await self._kill_a_worker()
        await self._take_over(interrupted)
        stats = await self._count()
        await self._show_histories(stats, interrupted)
        rows = await self._prove()
        harm = await self._falsify()
        await self._find(harm)
        await self._mend(harm, rows)

    def _introduce(self) -> None:
        limits = f" (of more: it takes {MAX_FILES:,} and {MAX_TOTAL_MIB} MiB at most)" if self._files.limited else ""
        self._screen.intro(
            [
                f"ledgerq demo: {plural(self._total, 'file')} of {self._files.root}{limits}",
                "go through a job queue whose only source of truth is a log of events that can't be changed unnoticed.",
                f"The whole store is a folder, there is no server: {self._url}",
            ]
        )

    # ------------------------------------------------------------------ the work

    async def _enqueue(self) -> None:
        self._screen.step("Enqueue")
        jobs = [
            NewJob(os.fsencode(self._files.path(name)), headers=None if fate == "none" else {FATE: fate})
            for name, fate in self._fates.items()
        ]
        async with Queue.open(self._url, default=OPTIONS) as queue:
            await queue.enqueue_many(QUEUE, jobs)
        self._screen.say(
            f"{plural(self._total, 'job')} in one commit, one for each file: find its BLAKE2b digest, size and lines."
        )
        fates_now = list(self._fates.values())
        unreadable = self._total - len(self._readable)
        self._screen.say(
            f"On purpose, {fates_now.count('fail once')} will fail at the first attempt and {fates_now.count('dead')}"
            f" can never succeed{f'; nor can {unreadable} that may not be read' if unreadable else ''}."
        )

    async def _kill_a_worker(self) -> int:
        """Run a worker that does two fifths, hangs before it acks some more, and is killed; returns how many."""
        self._screen.step("A worker process is killed in the midst of it")
        successes = sum(self._fates[name] != "dead" for name in self._readable)
        hold_after = min(successes * 2 // 5, successes - 1)
        hold = min(CONCURRENCY, successes - hold_after)
        async with started(self._scratch, [self._url, str(self._results), str(hold_after), str(hold)]) as child:
            with self._screen.progress(f"process {child.pid}", self._total) as report:
                self._finished = 0
                held = await child.until_held(lambda news: report(self._note(news)))
                await child.kill()
        self._screen.say(
            f"Process {child.pid} had finished {plural(self._finished, 'job')} and held {held} more, their work done"
            " but not yet acked, when kill -9 ended it."
        )
        return held

    def _note(self, news: dict[str, Any]) -> int:
        self._finished = int(news["done"]) + int(news["dead"])
        return self._finished

    async def _take_over(self, held: int) -> None:
        self._screen.step("Another process takes over")
        async with started(self._scratch, [self._url, str(self._results)]) as child:
            with self._screen.progress(f"process {child.pid}", self._total) as report:
                await child.until_done(lambda news: report(self._note(news)))
        self._screen.say(
            f"Process {child.pid} opened the store, took {plural(held, 'job')} back from the process that is gone,"
            " and worked until nothing was left."
        )

    async def _count(self) -> QueueStats:
        """Per-state counts, and the results."""
        async with reading(self._url) as log:
            stats = await LedgerView(log).stats(QUEUE)
        self._screen.command(f"{self._program} stats {self._quoted}")
        self._screen.rows(
            [list(STATES), [f"{getattr(stats, state):,}" for state in STATES]], right=range(len(STATES)), style="bold"
        )
        unfinished = stats.pending + stats.scheduled + stats.claimed + stats.cancelled
        _expect(unfinished == 0, f"{unfinished} jobs are neither done nor dead")
        _expect(stats.done + stats.dead == self._total, f"{stats.done + stats.dead} jobs of {self._total} files")
        on_purpose = list(self._fates.values()).count("dead")
        _expect(stats.dead >= on_purpose, f"only {stats.dead} jobs are dead, {on_purpose} should be")
        return stats

    @property
    def _quoted(self) -> str:
        return shlex.quote(self._url)

    # ------------------------------------------------------------------ histories from the log

    async def _show_histories(self, stats: QueueStats, held: int) -> None:
        self._screen.step("Each job has a history")
        async with reading(self._url) as log:
            shown = await _survey(log)
            _expect(shown.interruptions >= held, f"{held} jobs were interrupted, the log has {shown.interruptions}")
            if shown.retried is None or shown.interrupted is None:
                raise DemoFailed("no job has failed, been tried again and succeeded, or none was interrupted and done")
            view = LedgerView(log)
            retried = await self._show_history(view, "failed", shown.retried)
            _expect({Nacked, Acked} <= retried, "the history of a retried job lacks its failure or its success")
            if shown.interrupted != shown.retried:
                await self._show_history(view, "was interrupted", shown.interrupted)
        lines = [json.loads(line) for line in self._results.read_bytes().splitlines()]
        _expect(len(lines) == stats.done, f"there are {len(lines)} results of {stats.done} done jobs")
        _expect(len({line["job"] for line in lines}) == len(lines), "a job has two results")
        self._screen.say(
            f"{self._results.name} has {plural(len(lines), 'line')}, one for each job done, though {held} of them ran"
            " twice: a job writes nothing that is there already."
        )

    async def _show_history(self, view: LedgerView, what: str, id: bytes) -> set[type[Event]]:
        job = await view.job(id)
        path = Path(os.fsdecode((await view.payload(job)).payload))
        records = await view.history(id)
        self._screen.say(f"One that {what}, {path.relative_to(self._files.root)}:")
        self._screen.command(f"{self._program} history {self._quoted} {job.job_id}")
        self._screen.rows(history_rows(records), right=[0])
        return {type(record.event) for record in records}

    # ------------------------------------------------------------------ proof, damage, repair

    async def _prove(self) -> int:
        """Run the first audit; returns how many index rows there are."""
        self._screen.step("Audit: does the store hold what follows from the log?")
        self._screen.command(f"{self._program} audit {self._quoted}")
        report, rows = await self._audit()
        _expect(report.clean, f"the audit found {plural(report.difference_count, 'difference')} before any was made")
        self._screen.good(f"{_proven(report)}; {plural(rows, 'index row')} compared: clean.")
        return rows

    async def _audit(self) -> tuple[AuditReport, int]:
        async with reading(self._url) as log:
            report = await audit(log.store, clock=self._clock, deep=True)
            rows = 0
            async for page in log.store.scan(INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)):
                rows += len(page)
        return report, rows

    async def _falsify(self) -> Damage:
        self._screen.step("Somebody falsifies the indexes, behind the queue's back")
        store = await open_store(self._url, clock=self._clock, create=False)
        try:
            harm = await damage(store, QUEUE, clock=self._clock)
        finally:
            await store.close()
        self._screen.say(
            f"{plural(harm.removed, 'row')} removed, {harm.altered} altered, {harm.added} added, and the counters"
            " made to agree: a dead letter looks done, a done job will run again."
            if harm.hides_a_dead_letter
            else f"{plural(harm.removed, 'row')} removed, {harm.altered} altered, {harm.added} added, and the counters"
            " made to agree."
        )
        return harm

    async def _find(self, harm: Damage) -> None:
        self._screen.command(f"{self._program} audit {self._quoted}")
        report, _ = await self._audit()
        found = report.difference_count
        _expect(found == harm.total, f"{harm.total} rows were falsified, the audit found {found}")
        rows = [difference_row(difference) for difference in report.differences]
        first = {(row[0], row[1]): row for row in reversed(rows)}
        shown = [first[kind] for kind in sorted(first)]
        self._screen.say(f"{_proven(report)}; {plural(found, 'difference')} found{', such as' * (found > len(shown))}:")
        self._screen.rows(shown, style="red")

    async def _mend(self, harm: Damage, rows_before: int) -> None:
        self._screen.step("Rebuild: the indexes are made from the log")
        self._screen.command(f"{self._program} rebuild-projections {self._quoted}")
        store = await open_store(self._url, clock=self._clock, create=False)
        try:
            report = await rebuild(store, clock=self._clock, actor=system_user(), reason="the demo")
        finally:
            await store.close()
        changed = report.rows_put + report.rows_deleted
        _expect(changed == harm.total, f"{harm.total} rows were falsified, the rebuild changed {changed}")
        self._screen.say(
            f"{plural(report.rows_put, 'row')} set, {report.rows_deleted} removed, and the log holds who did it."
        )
        self._screen.command(f"{self._program} audit {self._quoted}")
        after, rows = await self._audit()
        _expect(after.clean, f"after the rebuild {plural(after.difference_count, 'difference')} are left")
        _expect(rows == rows_before, f"there were {rows_before} index rows, after the rebuild there are {rows}")
        self._screen.good(f"{_proven(after)}; {plural(rows, 'index row')} compared: clean.")


def _proven(report: AuditReport) -> str:
    return f"The chain of {plural(report.verified.events, 'event')} holds"


async def _survey(log: LogReader) -> _Shown:
    """The first job that failed, came back and was done, and the first that was interrupted and done."""
    kinds: dict[bytes, set[type[Event]]] = {}
    async for record in log.read():
        id: bytes | None = getattr(record.event, "id", None)
        if id is not None:
            kinds.setdefault(id, set()).add(type(record.event))

    def first(wanted: type[Event], rather_not: type[Event]) -> bytes | None:
        found = [id for id, kind in kinds.items() if {wanted, Acked} <= kind]
        return next((id for id in found if rather_not not in kinds[id]), found[0] if found else None)

    interruptions = sum(LeaseExpired in kind for kind in kinds.values())
    return _Shown(first(Nacked, LeaseExpired), first(LeaseExpired, Nacked), interruptions)
