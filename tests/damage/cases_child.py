"""A process that works through cases of damage, one after the other, and reports how each ended.

    python -m tests.damage.cases_child ROOT [PYTHON]

PYTHON is executed first: a test takes something away from ledgerq by it. Cases come as JSON lines on stdin, answers go
as JSON lines to stdout. What ledgerq does is judged here: by the rows of the same store undamaged, and where some of
its log is lost, by the fold of what is left. Nothing may come out on stderr: whatever is printed there (a panic of
SlateDB's, a traceback of asyncio's) is held against the case.
"""

import asyncio
import itertools
import json
import logging
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_head
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.errors import Fenced, LedgerError, LogCorrupt, LogRolledBack, StoreNotFound
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.projections.audit import AuditReport, audit
from ledgerq.projections.rebuild import rebuild
from ledgerq.projections.repair.copying import copy_into
from ledgerq.worker.queue import Queue
from tests.damage.matrix import END_MS, Case, harmed_copy
from tests.damage.salvage_judge import check_salvage
from tests.support.ledger_checks import all_rows, check_ledger
from tests.support.operators import Who

STEP_LIMIT_S = 50.0
ADDRESS_LIMIT_BYTES = 4 * 1024**3
WHO: Who = {"actor": "ann", "reason": "damage"}
Rows = dict[bytes, bytes]
BESIDE = ("payload", "text")


class Wrong(Exception):
    """ledgerq gave a wrong answer."""


class Expected(NamedTuple):
    """The rows of the undamaged store: as it is, while it is open again, and after it was closed."""

    rows: Rows
    opened: Rows
    closed: Rows
    end: int
    live: frozenset[bytes]


class Audited(NamedTuple):
    """The results of an audit and of a reader of all rows: a report or an error, the rows or an error."""

    report: AuditReport | LedgerError
    rows: Rows | LedgerError

    @property
    def clean(self) -> bool:
        return isinstance(self.report, AuditReport) and self.report.clean


def clock() -> ManualClock:
    """The same time in each case."""
    return ManualClock(END_MS)


async def audit_of(folder: Path) -> Audited:
    """Audit a store, and read all that is in it."""
    try:
        reader = await open_reader(folder.as_uri(), pinned=True)
    except LedgerError as error:
        return Audited(error, error)
    try:
        try:
            report: AuditReport | LedgerError = await audit(reader, clock=clock(), deep=True)
        except LedgerError as error:
            report = error
        try:
            rows: Rows | LedgerError = await all_rows(reader)
        except LedgerError as error:
            rows = error
        return Audited(report, rows)
    finally:
        await reader.close()


async def reopen(folder: Path) -> tuple[Rows | LedgerError, LedgerError | None]:
    """Open a queue, read everything through it, close it: the rows, or what was wrong with reading them."""
    queue = await Queue.open(folder.as_uri(), clock=clock(), entropy=SeededEntropy(9))
    try:
        return await all_rows(queue.log.store), None
    except LedgerError as error:
        return error, error
    finally:
        await queue.close()


async def expected_of(root: Path, store: str, scratch: Path) -> Expected:
    """The expected rows of every copy of this store."""
    folder = harmed_copy(root, None, scratch / f"expected-{store}", store=store)
    before = await audit_of(folder)
    opened, _ = await reopen(folder)
    after = await audit_of(folder)
    assert before.clean, before
    assert after.clean, after
    assert isinstance(before.rows, dict)
    assert isinstance(opened, dict)
    assert isinstance(after.rows, dict)
    end = decode_head(before.rows[keys.HEAD_KEY]).next_offset
    fold = await prove(before.rows)
    shutil.rmtree(folder)
    return Expected(before.rows, opened, after.rows, end, fold)


async def prove(rows: Rows, without_payload: frozenset[bytes] = frozenset()) -> frozenset[bytes]:
    """Every invariant of these rows; returns the ids of the jobs that are there."""
    disk = MemoryDisk()
    disk.rows.update(rows)
    fold = await check_ledger(disk, without_payload=without_payload)
    return frozenset(fold.jobs)


class Trial:
    """One case: three fresh copies of its store, audited, opened, rebuilt."""

    _numbers = itertools.count()

    def __init__(self, root: Path, scratch: Path, case: Case, expected: Expected) -> None:
        self._root = root
        self._scratch = scratch
        self._case = case
        self._expected = expected
        self.said: dict[str, str] = {}
        self._named = False
        self._mended = False
        self._healed = False
        self._refused = False

    async def run(self) -> str:
        """The case's outcome; `said` holds the details."""
        steps: dict[str, Callable[[Path], Awaitable[str]]] = {"audit": self._audit, "open": self._open}
        if not self._case.is_newest_byte:
            steps["rebuild"] = self._rebuild
        wrong = False
        for name, step in steps.items():
            folder = harmed_copy(self._root, self._case, self._scratch / f"{name}-{next(self._numbers)}")
            try:
                async with asyncio.timeout(STEP_LIMIT_S):
                    self.said[name] = await step(folder)
            except TimeoutError:
                wrong, self.said[name] = True, f"WRONG: hangs for {STEP_LIMIT_S:g} s"
            except Wrong as error:
                wrong, self.said[name] = True, f"WRONG: {error}"
            except Exception:
                wrong, self.said[name] = True, f"WRONG: {traceback.format_exc()}"
            finally:
                for left in self._scratch.iterdir():
                    # A store that failed may still be writing in the background.
                    shutil.rmtree(left, ignore_errors=True)
        if wrong:
            return "wrong"
        if self._healed:
            return "healed"
        if self._named and self._mended:
            return "rebuilt"
        return await self._salvaged() if self._named else "unharmed"

    async def _salvaged(self) -> str:
        """The outcome of a salvage of a store that was refused."""
        folder = harmed_copy(self._root, self._case, self._scratch / f"salvage-{next(self._numbers)}")
        try:
            async with asyncio.timeout(STEP_LIMIT_S):
                outcome, self.said["salvage"] = await check_salvage(folder, self._case, self._root, self._expected.rows)
        except StoreNotFound as error:
            outcome, self.said["salvage"] = "refused", str(error)
        except Exception:
            outcome, self.said["salvage"] = "wrong", f"WRONG: {traceback.format_exc()}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return outcome

    def _name(self, error: LedgerError) -> str:
        """The error as people read it, which must be of use to them."""
        text = str(error)
        if not text or "Traceback" in text or "\n" in text:
            raise Wrong(f"an unclear error: {error!r}")
        if isinstance(error, LogRolledBack) and not (
            error.anchored_offset == self._expected.end - 1 and error.head_offset <= self._expected.end
        ):
            raise Wrong(f"a rollback that names the wrong offsets: {error}")
        self._named = True
        return f"{type(error).__name__}: {text}"

    async def _audit(self, folder: Path) -> str:
        audited = await audit_of(folder)
        if isinstance(audited.report, LedgerError):
            return self._name(audited.report)
        if not audited.report.clean:
            self._named = True
            if audited.report.unreadable:
                if audited.report.verified.head.next_offset > self._expected.end:
                    raise Wrong(f"more is proven than there ever was: {audited.report.verified}")
                return f"unreadable: {audited.report.unreadable}"
            if not audited.report.differences:
                return f"{len(audited.report.damaged_files)} damaged files"
            first = audited.report.differences[0]
            return f"{audited.report.difference_count} differences, the first in {first.range_name} at {first.key}"
        if isinstance(audited.rows, LedgerError):
            raise Wrong(f"the audit is clean, but reading everything fails: {audited.rows}")
        if audited.rows != self._expected.rows:
            raise Wrong(f"the audit is clean, but {difference(audited.rows, self._expected.rows)}")
        return "clean"

    async def _open(self, folder: Path) -> str:
        try:
            rows, error = await reopen(folder)
        except LedgerError as refusal:
            return self._name(refusal)
        if error is not None:
            return f"opens, then {self._name(error)}"
        assert isinstance(rows, dict)
        if self._case.is_newest_byte and rows == self._expected.opened:
            return "right"
        audited = await audit_of(folder)
        if (folder / "set-aside").is_dir():
            return self._healed_well(audited)
        if audited.clean:
            if rows != self._expected.opened:
                raise Wrong(f"opens, is clean when closed, but {difference(rows, self._expected.opened)}")
            if audited.rows != self._expected.closed:
                assert isinstance(audited.rows, dict), audited.rows
                raise Wrong(f"is clean when closed, but {difference(audited.rows, self._expected.closed)}")
            return "right"
        if not self._named:
            raise Wrong(f"audited clean, then opened and closed, and is not clean: {audited.report}")
        if isinstance(audited.report, LedgerError):
            return f"opens; the audit afterwards reports {self._name(audited.report)}"
        return f"opens on wrong indexes, {audited.report.difference_count} differences in the audit afterwards"

    def _healed_well(self, audited: Audited) -> str:
        """Check that files were set aside, with the event of it, and that the log goes on from where it was, whole."""
        if not audited.clean or not isinstance(audited.rows, dict):
            raise Wrong(f"files were set aside, and the audit afterwards reports {audited}")
        wanted, found = self._expected.rows, audited.rows
        lost = [key for key, value in wanted.items() if key.startswith(keys.LOG_PREFIX) and found.get(key) != value]
        if lost:
            raise Wrong(f"files were set aside, and with them {lost[:3]}")
        self._healed = True
        return "set aside, and all is there"

    async def _rebuild(self, folder: Path) -> str:
        said = ""
        for _ in range(2):
            try:
                return said + await self._cut_where_named(lambda until: self._in_place(folder, until), folder)
            except Fenced as error:
                # By what a lost manifest said; the next epoch is ours.
                said += f"{self._name(error)}; again: "
            except LedgerError as error:
                said += self._name(error)
                break
        new = self._scratch / f"new-{next(self._numbers)}"
        try:
            said += "; into a new store: " + await self._cut_where_named(
                lambda until: self._into(folder, new, until), new
            )
        except LedgerError as error:
            said += f"; into a new store: {self._name(error)}"
        return said

    async def _cut_where_named(self, attempt: Callable[[int | None], Awaitable[int]], result: Path) -> str:
        """Rebuild; where the log is cut or rolled back, up to the offset that the error names."""
        said, until = "", None
        for _ in range(3):
            try:
                end = await attempt(until)
            except (LogCorrupt, LogRolledBack) as error:
                offset = error.offset if isinstance(error, LogCorrupt) else error.head_offset
                if until is not None and offset >= until:
                    raise Wrong(f"after a cut at {until}: {error}") from error
                said, until = f"{said}{self._name(error)}; ", offset
                continue
            return said + await self._check(result, end, until)
        raise Wrong(f"no cut helps: {said}")

    async def _in_place(self, folder: Path, until: int | None) -> int:
        store = await open_store(folder.as_uri(), clock=clock(), create=False)
        try:
            return (await rebuild(store, clock=clock(), until=until, **WHO)).verified.head.next_offset
        finally:
            await store.close()

    async def _into(self, folder: Path, new: Path, until: int | None) -> int:
        reader = await open_reader(folder.as_uri(), pinned=True)
        try:
            target = await open_store(new.as_uri(), clock=clock())
            try:
                report = await copy_into(reader, target, clock=clock(), until=until, **WHO)
            finally:
                await target.close()
        finally:
            await reader.close()
        return report.verified.head.next_offset

    async def _check(self, folder: Path, end: int, until: int | None) -> str:
        """Check that the rebuilt rows follow from the log as far as it was kept, which is all of it without a cut."""
        wanted = self._expected
        audited = await audit_of(folder)
        if isinstance(audited.report, LedgerError):
            # Indexes and log are right, and something else, a payload for instance, can't be read.
            raise audited.report
        if audited.report.damaged_files:
            # A rebuild makes rows right, not files: what they held is saved by a salvage.
            if any(row.range_name not in BESIDE for row in audited.report.differences):
                raise Wrong(f"rebuilt, and not clean: {str(audited.report)[:1000]}")
            return "rebuilt, with files that are damaged as before"
        if not isinstance(audited.rows, dict):
            raise Wrong(f"rebuilt, and can't be read: {audited.rows}")
        # What stands beside the log is made anew by nothing; that it is gone was named before, or follows from a cut.
        is_known = until is not None or self._named
        if not audited.clean and not (is_known and only_gone_beside(audited.report)):
            raise Wrong(f"rebuilt, and not clean: {str(audited.report)[:1000]}")
        self._mended = True
        if audited.rows == wanted.rows:
            return "as it was"
        if until is None and end != wanted.end:
            raise Wrong(f"rebuilt from {end} of {wanted.end} events, and nothing was said")
        log = {k: v for k, v in audited.rows.items() if k.startswith(keys.LOG_PREFIX) and keys.offset_of(k) < end}
        if log != {k: v for k, v in wanted.rows.items() if k.startswith(keys.LOG_PREFIX) and keys.offset_of(k) < end}:
            raise Wrong("rebuilt on another log")
        # Of jobs that were swept after the cut payloads and texts are gone for good.
        jobs = await check_jobs(audited.rows)
        try:
            await prove(audited.rows, jobs - wanted.live if until is not None else frozenset())
        except AssertionError as error:
            raise Wrong(f"rebuilt, but {error}") from error
        return f"rebuilt, {end} of {wanted.end} events"


def only_gone_beside(report: AuditReport) -> bool:
    """Whether all that is wrong is payloads and texts that are gone: those of a job swept after a cut, say."""
    return all(row.range_name in BESIDE and row.found is None for row in report.differences)


async def check_jobs(rows: Rows) -> frozenset[bytes]:
    """The ids of the jobs of which there are rows."""
    prefix = b"i/job/"
    return frozenset(key[len(prefix) :] for key in rows if key.startswith(prefix))


def difference(found: Rows, wanted: Rows) -> str:
    """In a few words."""
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    changed = sorted(key for key in wanted.keys() & found.keys() if found[key] != wanted[key])
    return f"rows are missing: {missing[:3]}, are too many: {extra[:3]}, are changed: {changed[:3]}"


class Loud(logging.Handler):
    """A handler for asyncio's error records: tasks and callbacks whose errors were not retrieved."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == "asyncio":
            print(self.format(record), file=sys.stderr, flush=True)


def _peak_rss_kib() -> int:
    """The most memory that this program had; `getrusage` also counts what it was while still its parent's fork."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


def main() -> None:
    """Work through stdin."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_LIMIT_BYTES, ADDRESS_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.WARNING, handlers=[Loud()])
    root = Path(sys.argv[1])
    exec("".join(sys.argv[2:]), {})
    scratch = root / f"scratch-{os.getpid()}"
    scratch.mkdir()
    expected = {store: asyncio.run(expected_of(root, store, scratch)) for store in ("crashed", "closed")}
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        case = Case(*json.loads(line))
        trial = Trial(root, scratch, case, expected[case.store])
        outcome = asyncio.run(trial.run())
        peak_rss_kib = _peak_rss_kib()
        print(json.dumps({"outcome": outcome, "said": trial.said, "peak_rss_kib": peak_rss_kib}), flush=True)


if __name__ == "__main__":
    main()
