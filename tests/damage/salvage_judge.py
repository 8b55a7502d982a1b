"""The judge of salvages of damaged stores: whether the result is right, and all that could be recovered.

    python -m tests.damage.salvage_judge [--all] [--only TEXT]

salvages each case of the damage matrix, whether it would have been refused or not. A result is held against the rows
of the store before the damage, and against the files that were not touched: what they hold must come back, so of a
damaged block at most what stands nowhere else is lost.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_head
from ledgerq.eventlog.errors import StoreNotFound
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.eventlog.recovery.sorted_files import read_sst
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.audit import audit
from ledgerq.projections.repair.salvage import SalvageReport, salvage
from tests.support.ledger_checks import all_rows, check_ledger
from tests.support.operators import Who

__all__ = ["check_salvage"]

Rows = dict[bytes, bytes]
WHO: Who = {"actor": "ann", "reason": "damage"}


async def check_salvage(folder: Path, case: Any, root: Path, wanted: Rows) -> tuple[str, str]:
    """Salvage a store in memory and check the result; returns the case's outcome, and the report's text."""
    disk = MemoryDisk()
    now_ms = decode_head(wanted[keys.HEAD_KEY]).time_ms
    async with damaged_store(parse_location(str(folder))) as damaged:
        report = await salvage(damaged, MemoryStore(disk), clock=ManualClock(now_ms), **WHO)
    found = dict(disk.rows)
    end, whole_end = report.end, decode_head(wanted[keys.HEAD_KEY]).next_offset
    assert end <= whole_end
    assert _log(found, end) == _log(wanted, end), "another log"
    lost = {letter.job.id for letter in report.rebuilt.lost}
    fold = await check_ledger(disk, without_payload=lost, without_text=report.rebuilt.lost_texts)
    for job in fold.jobs.values():
        key = keys.payload_key(job.payload_offset)
        if key in wanted and key in found:
            assert found[key] == wanted[key], "another payload"
    audited = await audit(MemoryReader(disk), clock=ManualClock(now_ms), deep=True)
    gone = [letter for letter in report.rebuilt.lost if not letter.is_dead_letter]
    assert audited.difference_count == len(gone) + len(report.rebuilt.lost_texts), audited.differences[:3]
    assert report.rebuilt.is_secret_new == (found[keys.SECRET_KEY] != wanted[keys.SECRET_KEY])
    # Where an anchor's slot can't be read the end may stay unknown, though nothing is lost.
    is_said = end < whole_end if not report.is_reached else end == whole_end
    assert is_said or report.promised is None or not report.is_end_known, "a wrong promise"
    assert not report.is_reached or end == whole_end, "more is promised than there is"
    if case is not None:
        _check_had_all(folder, case, root, wanted, report)
    if report.is_whole:
        return "salvaged", f"whole, {len(report.faults)} faulty files"
    # Only the anchor shows that the newest log file is gone.
    assert report.faults or not report.is_reached, "no cause is named"
    return "in part", f"{end} of {whole_end} events, {len(lost)} payloads lost, faults {report.faults[:3]}"


def _log(rows: Rows, end: int) -> Rows:
    return {k: v for k, v in rows.items() if k.startswith(keys.LOG_PREFIX) and keys.offset_of(k) < end}


def _check_had_all(folder: Path, case: Any, root: Path, wanted: Rows, report: SalvageReport) -> None:
    """Check that all rows of untouched blocks were recovered."""
    touched = {case.path, case.argument} if case.damage in ("swapped", "older") else {case.path}
    left: set[tuple[bytes, bytes]] = set()
    for path in folder.rglob("*.sst"):
        name = str(path.relative_to(folder))
        # Of a flipped bit the other blocks of the file are untouched too; a swap leaves both files' rows in the store.
        origin = root / case.store / name
        if case.kind == "store" or (name in touched and case.damage not in ("bit", "swapped")):
            continue
        hit = case.argument // 8 if case.damage == "bit" and name == case.path else -1
        for part in read_sst(origin.read_bytes()):
            if not part.start <= hit < part.stop:
                left.update((row.key, row.value) for row in part.rows if row.value is not None)
    if case.kind == "store":
        return
    log = sorted(_log(wanted, 2**62).items())
    first_lost = next((keys.offset_of(key) for key, value in log if (key, value) not in left), None)
    if first_lost is None:
        assert report.is_reached or report.promised is None or not report.is_end_known, "the whole log was there"
    else:
        assert report.end >= first_lost, f"the log was there up to {first_lost}, not only to {report.end}"
    for letter in report.rebuilt.lost:
        key = keys.payload_key(letter.job.payload_offset)
        assert (key, wanted.get(key)) not in left, f"the payload of {letter.job.job_id} was there"
    for at in report.rebuilt.lost_texts:
        assert (keys.text_key(at), wanted.get(keys.text_key(at))) not in left, f"the text at {at} was there"
    if report.rebuilt.is_secret_new:
        assert (keys.SECRET_KEY, wanted[keys.SECRET_KEY]) not in left, "the secret was there"


async def main(arguments: argparse.Namespace) -> int:
    """Build the stores, salvage each case, print a table."""
    from tests.damage import matrix

    with tempfile.TemporaryDirectory(prefix="ledgerq-salvage-", dir=matrix.scratch_folder()) as name:
        root, results, began_s = Path(name), [], time.monotonic()
        await matrix.build_stores(root)
        wanted = {store: await _rows(root / store) for store in ("crashed", "closed")}
        cases = matrix.all_cases(root)
        if not arguments.all:
            cases = matrix.sample_of(cases, each=2, every_byte_of="")
        for number, case in enumerate(case for case in cases if arguments.only in case.name):
            folder = matrix.harmed_copy(root, case, root / f"case-{number}")
            try:
                outcome, said = await check_salvage(folder, case, root, wanted[case.store])
            except StoreNotFound as error:
                outcome, said = "refused", str(error)
            except Exception:
                outcome, said = "wrong", traceback.format_exc()
            shutil.rmtree(folder)
            results.append(matrix.Result(case, outcome, {"salvage": said}, 0.0))
            if outcome == "wrong":
                print(results[-1].describe(), flush=True)
            if number % 500 == 499:
                print(f"{number + 1} cases, {time.monotonic() - began_s:.0f} s", file=sys.stderr, flush=True)
    print(matrix.table(results))
    return int(any(result.outcome == "wrong" for result in results))


async def _rows(folder: Path) -> Rows:
    reader = await open_reader(folder.as_uri(), pinned=True)
    try:
        return await all_rows(reader)
    finally:
        await reader.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.damage.salvage_judge")
    parser.add_argument("--all", action="store_true", help="every case, not a sample")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    sys.exit(asyncio.run(main(parser.parse_args())))
