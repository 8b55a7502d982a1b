"""The soak's conductor: it starts the processes under load, restarts them in turns, audits, and keeps all samples.

The `resident` process lives throughout, so that what it leaks adds up. Its queue is closed and opened again, or fenced
by a second one in the same process; then a guest process takes the store from it, works for a round and is killed with
SIGKILL, after which the resident opens the store once more.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.locations import parse_location
from tests.soak.auditor import Auditor, Checked, FactFiles
from tests.soak.meter import files_in_use, store_files
from tests.soak.process import Process, SoakFailed
from tests.soak.report import RESIDENT, Sample, judge_all, restart_line, sample_line, totals

__all__ = ["Conductor", "Plan"]

_DRAIN_LIMIT_S: Final = 60.0
_LOOK_EVERY_S: Final = 0.1
_MIB: Final = 1024 * 1024
_MAX_REASONS: Final = 50


class Plan(NamedTuple):
    """The settings of a run: times in seconds, `rate` in jobs a second."""

    url: str
    run_s: float
    rate: float
    seed: int
    restart_every_s: float
    report_every_s: float
    max_store_mib: int


class Conductor:
    """The conductor of one run. `say` is called with each line of output."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self.reasons: list[str] = []
        self.stopping = asyncio.Event()
        self.auditor = Auditor(plan.url)
        self.restarts = 0
        self._plan = plan
        self._folder = folder
        self._say = say
        self._files = FactFiles(folder)
        self._facts = Path()
        self._samples: list[Sample] = []
        self._openings_s: list[tuple[float, float]] = []
        self._processes: list[Process] = []
        self._guests = 0
        self._start_s = time.monotonic()
        self._location = parse_location(plan.url)

    @property
    def time_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start_s

    async def run(self) -> int:
        """The whole run; returns the exit code, 0 or 1, after a line for each reason."""
        try:
            await self._run()
        except SoakFailed as error:
            self._wrong(str(error))
        finally:
            for process in self._processes:
                await process.stop()
        self._end()
        return 1 if self.reasons else 0

    async def _run(self) -> None:
        resident = active = await self._new_process(RESIDENT)
        await self._open(resident)
        steps = (self._close, self._fence, self._takeover, self._kill)
        while await self._wait(active):
            active = await steps[self.restarts % len(steps)](resident, active)
            self.restarts += 1
        if not (await active.do("drain", limit_s=_DRAIN_LIMIT_S))["drained"]:
            self._wrong(f"after {_DRAIN_LIMIT_S:g} s without new jobs there were still unfinished ones")
        closed = await active.do("close")
        await self._check(f"drained, and closed in {closed['close_s']:.2f} s", [self._facts])
        if self.auditor.oracle.unfinished:
            self._wrong(f"{self.auditor.oracle.unfinished} jobs never came to an end")

    async def _wait(self, active: Process) -> bool:
        """Let it work until the next restart; False when the run is over."""
        end_s = min(self.time_s + self._plan.restart_every_s, self._plan.run_s)
        while self.time_s < end_s and not self.stopping.is_set():
            active.check()
            await asyncio.sleep(_LOOK_EVERY_S)
        if self._samples and (self._samples[-1].get("store_bytes") or 0) > self._plan.max_store_mib * _MIB:
            self._wrong(f"the store has more than {self._plan.max_store_mib:,} MiB")
            return False
        return self.time_s < self._plan.run_s and not self.stopping.is_set()

    # ------------------------------------------------------------------ restarts

    async def _close(self, resident: Process, active: Process) -> Process:
        facts = self._facts
        closed = await active.do("close")
        checked = await self._audit([facts])
        open_s = await self._open(resident)
        self._tell(f"closed in {closed['close_s']:.2f} s, opened again in {open_s:.2f} s", checked)
        return resident

    async def _fence(self, resident: Process, active: Process) -> Process:
        facts = self._facts
        open_s = await self._open(active, "fence")
        await self._check(f"abandoned, and fenced by the next queue of its process, open in {open_s:.2f} s", [facts])
        return active

    async def _takeover(self, resident: Process, active: Process) -> Process:
        facts = self._facts
        self._guests += 1
        guest = await self._new_process(f"guest-{self._guests}")
        active.order("lose")
        open_s = await self._open(guest, take_over=True)
        await active.answer()
        await self._check(f"abandoned, and fenced by process {guest.name}, open in {open_s:.2f} s", [facts])
        return guest

    async def _kill(self, resident: Process, active: Process) -> Process:
        facts = self._facts
        await active.kill()
        self._complaints(active)
        self._processes.remove(active)
        checked = await self._audit([facts])
        open_s = await self._open(resident)
        self._tell(f"process {active.name} killed with SIGKILL, opened again in {open_s:.2f} s", checked)
        return resident

    async def _new_process(self, name: str) -> Process:
        plan = self._plan
        arguments = [plan.url, str(plan.rate), str(plan.report_every_s)]
        process = await Process.start(name, self._folder, arguments, self._sampled)
        self._processes.append(process)
        return process

    async def _open(self, process: Process, how: str = "open", **more: bool) -> float:
        self._facts = self._files.new()
        seed = self._plan.seed * 1_000_003 + self.restarts
        found = await process.do(how, facts=str(self._facts), seed=seed, **more)
        open_s: float = found["open_s"]
        self._openings_s.append((self.time_s, open_s))
        return open_s

    async def _check(self, what: str, finished: list[Path]) -> None:
        self._tell(what, await self._audit(finished))

    async def _audit(self, finished: list[Path]) -> Checked:
        # The facts first: what they report was durable before the store is read.
        return await self.auditor.check(self._files.take(finished))

    def _tell(self, what: str, checked: Checked) -> None:
        self._say(restart_line(self.time_s, what, checked))
        for reason in checked.wrong:
            self._wrong(reason)

    # ------------------------------------------------------------------ samples and the end

    async def _sampled(self, process: Process, found: dict[str, Any]) -> None:
        sample = {"time_s": self.time_s, "process": process.name, **found}
        if self._location.is_file:
            counts, store_bytes = store_files(self._location.folder)
            sample |= {**counts, "objects": sum(counts.values()), "store_bytes": store_bytes}
        used = await files_in_use(self._location)
        if used is not None:
            sample |= {"used_files": used[0], "used_bytes": used[1]}
        self._samples.append(sample)
        self._say(sample_line(sample))

    def _wrong(self, reason: str) -> None:
        self._say(f"WRONG: {reason}")
        if len(self.reasons) < _MAX_REASONS:
            self.reasons.append(reason)

    def _complaints(self, process: Process) -> None:
        lines = process.complaints()
        if lines:
            self._wrong(f"process {process.name} wrote {len(lines)} lines to stderr, the last: {lines[-1]}")

    def _end(self) -> None:
        for process in self._processes:
            self._complaints(process)
        oracle = self.auditor.oracle
        self._say(f"\n{self.restarts} restarts, {self._guests} other processes; {totals(self._samples)}")
        self._say(
            f"{oracle.next_offset:,} events ({', '.join(f'{n:,} {kind}' for kind, n in oracle.events.most_common())}), "
            f"{oracle.facts:,} promises, {oracle.broken_count} broken"
        )
        for drift in judge_all(self._samples, self._openings_s):
            self._say(drift.text)
            if drift.failed:
                self.reasons.append(drift.text)
        for reason in self.reasons:
            self._say(f"FAILED: {reason}")
        if not self.reasons:
            self._say("passed: nothing was lost, nothing drifted, every audit was clean")
