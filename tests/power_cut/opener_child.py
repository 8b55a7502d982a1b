"""A process that lays out disks as power cuts leave them, opens the stores on them, and proves what was promised.

    python -m tests.power_cut.opener_child SCRATCH

States come as JSON lines on stdin (`State`), answers go as JSON lines to stdout (`Answer`).
"""

import asyncio
import contextlib
import io
import json
import logging
import random
import shutil
import sys
import traceback
from pathlib import Path
from typing import Final, NamedTuple, TypedDict

from slatedb.uniffi import DbBuilder

from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import LedgerError, LogRolledBack, StoreNotFound
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.recovery.damaged_store import damaged_store
from ledgerq.projections.repair.salvage import salvage
from ledgerq.worker.queue import Queue
from tests.power_cut.load_child import rebuild_command
from tests.power_cut.phases import Recording, Replay, Start
from tests.process.kills import Facts, check_log, check_queue
from tests.support.ledger_checks import check_ledger

__all__ = ["OUTCOMES", "Answer", "State"]

STEP_LIMIT_S: Final = 40.0
# What the command says of a copy that was finished; whether it was is seen when it is opened.
WHOLE: Final = "holds a ledgerq store already"
OUTCOMES: Final = ("fine", "lost", "rolled back", "gone", "refused", "hung", "broken")
"""
    fine         it opened twice, and everything that was promised was there
    lost         it opened, and something that was promised was not there
    rolled back  it did not open, since something was gone
    gone         it did not open, and no file holds the id of some job that was promised
    refused      it did not open, though every job that was promised is in some file
    hung         it did not open in time
    broken       an error that is not ours, or a ledger that contradicts itself
"""


class State(NamedTuple):
    """A disk after a power cut: the calls of the recording in this folder up to a moment, and what was lost of them."""

    folder: str
    phase: str
    moment: int
    model: str
    seed: int
    # Whether the store is salvaged before it is opened.
    salvage: bool = False


class Answer(TypedDict):
    """What came of it."""

    outcome: str
    said: str


class Trial:
    """One state, laid out in a folder of its own."""

    def __init__(self, state: State, left: Start, is_done: bool, scratch: Path) -> None:
        self._state = state
        self._tree = left.tree
        self._is_done = is_done
        self._scratch = scratch
        self._url = (scratch / "disk" / "store").as_uri()
        (scratch / "disk").mkdir(parents=True)
        left.lay_out(scratch / "disk")
        (scratch / "facts").write_bytes(left.facts)
        self._facts = Facts(scratch)
        self._facts.read()

    def run(self) -> Answer:
        """Open it twice, after a salvage if there shall be one."""
        try:
            if self._state.salvage:
                asyncio.run(self._salvage())
            self._rebuild()
            asyncio.run(self._open_twice())
        except LogRolledBack as error:
            return Answer(outcome="rolled back", said=str(error))
        except LedgerError as error:
            outcome = "gone" if self._are_jobs_gone() else "refused"
            return Answer(outcome=outcome, said=f"{type(error).__name__}: {error}")
        except TimeoutError:
            return Answer(outcome="hung", said=f"after {STEP_LIMIT_S:g} s")
        except AssertionError as error:
            return Answer(outcome="lost", said=str(error) or traceback.format_exc())
        except Exception:
            return Answer(outcome="broken", said=traceback.format_exc())
        return Answer(outcome="fine", said="")

    def _are_jobs_gone(self) -> bool:
        """Whether the id of some job that was promised is nowhere: nothing is compressed in a store's files."""
        store = "new/" if self._state.phase == "copy" and self._is_done else "store/"
        everything = b"\0".join(data for path, data in self._tree.items() if data and path.startswith(store))
        return any(job_id_bytes(job_id) not in everything for job_id in self._facts.enqueued)

    def _rebuild(self) -> None:
        """Finish what was begun, as the error message advises."""
        if self._state.phase == "rebuild":
            code, said = rebuild_command(self._url, "--take-over")
        elif self._state.phase == "copy":
            new = (self._scratch / "disk" / "new").as_uri()
            old, self._url = self._url, new
            code, said = (0, "") if self._is_done else rebuild_command(old, "--into", new)
            if WHOLE in said:
                code = 0
        else:
            return
        if code != 0:
            raise LedgerError(said)

    async def _salvage(self) -> None:
        """What a salvage of it as it lies there makes holds all that was promised, and every payload."""
        disk, clock = MemoryDisk(), ManualClock(SystemClock().now_ms())
        try:
            async with damaged_store(parse_location(self._url)) as damaged:
                report = await salvage(damaged, MemoryStore(disk), clock=clock, actor="ann", reason="power")
        except StoreNotFound:
            assert not self._facts.enqueued, "jobs were reported, and there is nothing to salvage"
            return
        assert report.is_reached, f"salvaged in part: {report}"
        rebuilt = report.rebuilt
        store, lost = MemoryReader(disk), {letter.job for letter in rebuilt.lost}
        fold = await check_ledger(store, without_payload={job.id for job in lost}, without_text=rebuilt.lost_texts)
        # A commit that was not reported may be there in part: its events, and not the payloads and texts.
        assert not {job.job_id for job in lost} & self._facts.enqueued.keys(), f"salvaged in part: {report}"
        last = rebuilt.verified.head.base_offset
        assert all(at >= last for at in rebuilt.lost_texts), f"salvaged in part: {report}"
        assert not (rebuilt.is_secret_new and self._facts.enqueued), f"salvaged in part: {report}"
        if not lost:
            await check_log(LogReader(store, clock=clock), self._facts, fold)

    async def _open_twice(self) -> None:
        """To read everything takes longer than all the rest, so it is done the first time or the second."""
        when = self._state.seed % 2
        clock = ManualClock(SystemClock().now_ms())
        async with asyncio.timeout(STEP_LIMIT_S):
            async with Queue.open(self._url, clock=clock) as queue:
                added = await queue.enqueue("after", b"the cut")
                if when == 0:
                    await check_queue(queue, self._facts)
        async with asyncio.timeout(STEP_LIMIT_S):
            async with Queue.open(self._url, clock=clock) as queue:
                if when == 1:
                    await check_queue(queue, self._facts)
                assert (await queue.get(added.job_id)).state == "pending", "what was added after the cut"


class Opener:
    """Replays recordings, each only forwards as long as the moments come in order."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._folder = ""
        self._replay: Replay | None = None
        self._number = 0

    def answer(self, state: State, kept: Path | None) -> Answer:
        """Lay out a state and judge it; one that fails is laid out in the folder `kept` once more."""
        replay = self._replay
        if replay is None or self._folder != state.folder or replay.moment > state.moment:
            replay = Recording(Path(state.folder), state.phase).replay()
            self._replay, self._folder = replay, state.folder
        replay.until(state.moment)
        rng = random.Random(f"{state.seed} {state.moment} {state.model}")
        left = replay.cut(state.model, rng)
        is_done = replay.disk.sinks["marks"].endswith(b"done\n")
        self._number += 1
        scratch = self._scratch / str(self._number)
        answer = Trial(state, left, is_done, scratch).run()
        shutil.rmtree(scratch, ignore_errors=True)
        if answer["outcome"] != "fine" and kept is not None:
            shutil.rmtree(kept, ignore_errors=True)
            kept.mkdir(parents=True)
            left.lay_out(kept)
            (kept / "facts").write_bytes(left.facts)
            (kept / "said").write_text(f"{state}\n{answer['outcome']}\n{answer['said']}\n")
        return answer


def main() -> None:
    """Work through stdin."""
    logging.getLogger("ledgerq").addHandler(logging.NullHandler())
    # To register hundreds of metrics takes a third of the time of an opening.
    DbBuilder.with_metrics_recorder = lambda *_: None
    opener = Opener(Path(sys.argv[1]))
    out = sys.stdout
    for line in sys.stdin:
        ask = json.loads(line)
        with contextlib.redirect_stdout(io.StringIO()):
            answer = opener.answer(State(*ask["state"]), Path(ask["kept"]) if ask["kept"] else None)
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
