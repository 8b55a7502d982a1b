"""Commits that a store refuses or fails while another one is on its way: none may reach the disk out of its turn.

The store looks at its disk after each flush: a crash right then must leave a log that is whole.
"""

import asyncio
from collections.abc import Iterator, Mapping

import pytest

from ledgerq.eventlog import writer
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.codec import decode_batch
from ledgerq.eventlog.errors import ClockWentBack, LogPoisoned, StoreUnavailable
from ledgerq.eventlog.keys import log_key
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.eventlog.pace import CommitPace
from ledgerq.eventlog.store import Anchor, Batch
from ledgerq.eventlog.writer import Commit, EventLog
from tests.support.loops import settle, until
from tests.support.rig import Faults
from tests.support.small_logs import Watcher, append, event, stored, stored_bases, stored_head

START_MS = ManualClock().now_ms()


def refusal(behind_ms: int = 1) -> ClockWentBack:
    """The error of a store whose clock is behind."""
    return ClockWentBack(START_MS - behind_ms, START_MS)


class LateFaults(Faults):
    """Faults whose held calls raise the errors in `late` when they are let go, before the store has done anything."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[BaseException] = []

    async def __call__(self, call: str) -> None:
        """Meet the store's call."""
        is_held = call in self.held
        await super().__call__(call)
        if is_held and self.late:
            raise self.late.pop(0)


class WholeStore(MemoryStore):
    """A store that notices a log with a gap, and an anchor that goes back."""

    def __init__(self, disk: MemoryDisk, faults: Faults) -> None:
        super().__init__(disk, fault=faults)
        self.seen: list[str] = []
        self._anchored = 0

    def flush(self, anchor: Anchor | None = None) -> None:
        """Like `MemoryStore.flush`, and looks at the disk then."""
        super().flush(anchor)
        next_offset = 0
        for base in stored_bases(self._disk):
            if base != next_offset:
                self.seen.append(f"a gap from {next_offset} to {base}")
            next_offset = decode_batch(base, self._disk.rows[log_key(base)]).next_offset
        if next_offset and stored_head(self._disk).next_offset != next_offset:
            self.seen.append(f"the head is not at {next_offset}")
        if anchor is not None:
            if anchor.next_offset < self._anchored:
                self.seen.append(f"the anchor went back from {self._anchored} to {anchor.next_offset}")
            self._anchored = anchor.next_offset


class SlowHook(Watcher):
    """A hook that fills the commits from an offset on for as long as `is_held`, as if they touched many jobs."""

    def __init__(self, from_offset: int) -> None:
        super().__init__()
        self.from_offset = from_offset
        self.is_held = True

    def fill(self, commit: Commit, batch: Batch) -> Iterator[Mapping[bytes, bytes | None]] | None:  # type: ignore[override]
        """Yield empty pieces for as long as it is held."""
        super().fill(commit, batch)
        return self._pieces() if commit.base_offset >= self.from_offset else None

    def _pieces(self) -> Iterator[Mapping[bytes, bytes | None]]:
        while self.is_held:
            yield {}


async def opened(watcher: Watcher | None = None) -> tuple[EventLog, WholeStore, LateFaults]:
    """A log with one event whose commits overlap."""
    faults = LateFaults()
    store = WholeStore(MemoryDisk(), faults)
    log = EventLog(store, clock=ManualClock(), commit_hook=watcher or Watcher(), pace=CommitPace(overlap=True))
    await log.start()
    await append(log, 0)
    return log, store, faults


async def two_callers(log: EventLog) -> list[asyncio.Task[int]]:
    """The callers of one commit."""
    tasks = [asyncio.create_task(append(log, number)) for number in (1, 2)]
    await asyncio.sleep(0)
    return tasks


async def is_whole(log: EventLog, store: WholeStore, tasks: list[asyncio.Task[int]]) -> None:
    """See that all callers were answered, and that the log was whole all the time."""
    assert await asyncio.gather(*tasks) == list(range(1, len(tasks) + 1))
    await log.close()
    assert store.seen == []
    assert sum(len(batch.events) for batch in await stored(store._disk)) == 1 + len(tasks)


async def test_nothing_is_sent_while_a_refused_commit_waits_for_the_clock() -> None:
    log, store, faults = await opened()
    faults.spoil("write:before", refusal(50))
    tasks = await two_callers(log)
    await settle()
    tasks += await two_callers(log)
    await settle()
    assert faults.calls.count("write:before") == 2
    await is_whole(log, store, tasks)


async def test_a_commit_that_is_filled_while_the_one_before_it_is_refused_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "_AT_ONCE_EVENTS", 1)
    hook = SlowHook(from_offset=3)
    log, store, faults = await opened(hook)
    faults.hold("write:before")
    faults.late = [refusal()]
    tasks = await two_callers(log)
    await settle()
    tasks += await two_callers(log)
    await until(lambda: 3 in hook.filled)
    faults.let_go("write:before")
    await settle()
    hook.is_held = False
    await is_whole(log, store, tasks)


async def test_a_commit_that_is_sent_again_waits_for_the_one_before_it_that_is_refused_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "_AT_ONCE_EVENTS", 1)
    hook = SlowHook(from_offset=3)
    hook.is_held = False
    log, store, faults = await opened(hook)
    faults.hold("write:before")
    faults.late = [refusal()]
    tasks = await two_callers(log)
    await settle()
    tasks += await two_callers(log)
    await settle()
    assert len(log._flights.under_way) == 2
    hook.is_held = True
    faults.let_go("write:before")
    faults.spoil("write:before", refusal())
    while hook.filled.count(3) == 1:
        await asyncio.sleep(0)
    await settle()
    hook.is_held = False
    await is_whole(log, store, tasks)


@pytest.mark.parametrize("turns", range(12))
async def test_a_refusal_in_any_turn_keeps_the_order(turns: int) -> None:
    log, store, faults = await opened()
    faults.hold("write:before")
    faults.late = [refusal()]
    tasks = await two_callers(log)
    await settle()
    faults.let_go("write:before")
    await settle(turns)
    for _ in range(3):
        tasks += await two_callers(log)
        await asyncio.sleep(0)
    await is_whole(log, store, tasks)


async def test_a_commit_that_is_filled_while_the_one_before_it_fails_is_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writer, "_AT_ONCE_EVENTS", 1)
    hook = SlowHook(from_offset=3)
    log, store, faults = await opened(hook)
    faults.hold("write:before")
    error = StoreUnavailable("gone")
    faults.late = [error]
    tasks = await two_callers(log)
    await settle()
    tasks += await two_callers(log)
    await until(lambda: 3 in hook.filled)
    faults.let_go("write:before")
    assert await asyncio.gather(*tasks, return_exceptions=True) == [error] * 4
    hook.is_held = False
    await log.close()
    assert store.seen == []
    assert stored_bases(store._disk) == [0]


class RaisingHook(Watcher):
    """A hook that raises in one of its calls, from an offset on."""

    def __init__(self, call: str, error: BaseException, from_offset: int) -> None:
        super().__init__()
        self._call = call
        self._error = error
        self._from_offset = from_offset

    def fill(self, commit: Commit, batch: Batch) -> None:
        """Raise if it is this one's turn."""
        self._meet("fill", commit)
        super().fill(commit, batch)

    def committed(self, commit: Commit) -> None:
        """Raise if it is this one's turn."""
        self._meet("committed", commit)
        super().committed(commit)

    def _meet(self, call: str, commit: Commit) -> None:
        if call == self._call and commit.base_offset >= self._from_offset:
            raise self._error


@pytest.mark.parametrize("call", ["fill", "committed"])
@pytest.mark.parametrize("from_offset", [1, 3])
async def test_an_unforeseen_error_of_the_hook_fails_every_caller_and_close_waits_for_what_is_on_its_way(
    call: str, from_offset: int
) -> None:
    error = ValueError("unforeseen")
    log, store, faults = await opened(RaisingHook(call, error, from_offset))
    faults.hold("sync:before")
    tasks = await two_callers(log)
    await settle()
    tasks += await two_callers(log)
    closing = asyncio.create_task(log.close())
    await settle()
    if call == "fill" and from_offset == 3:
        assert not closing.done()
    faults.let_go("sync:before")
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, LogPoisoned) for result in results[from_offset - 1 :])
    with pytest.raises(ValueError, match="unforeseen"):
        await closing
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("ledgerq-")] == []
    assert store.seen == []


class Interrupt(BaseException):
    """An error that is no `Exception`; unlike KeyboardInterrupt it doesn't end the event loop of the test."""


async def test_an_interrupt_while_a_commit_is_sent_at_once_fails_it() -> None:
    log, _, faults = await opened(RaisingHook("fill", Interrupt(), 3))
    faults.hold("sync:before")
    tasks = await two_callers(log)
    await settle()
    log.append(event(3))
    first = log.committed()
    log.append(event(4))
    with pytest.raises(Interrupt):
        log.committed()
    faults.let_go("sync:before")
    assert all(isinstance(one, LogPoisoned) for one in await asyncio.gather(*tasks, first, return_exceptions=True))
    with pytest.raises(Interrupt):
        await log.close()
