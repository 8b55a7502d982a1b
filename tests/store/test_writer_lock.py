"""A file store whose writer lives is refused to every other opener, and one whose writer is gone to none."""

import asyncio
import errno
import fcntl
import gc
import os
import signal
import stat
from pathlib import Path

import pytest

from ledgerq import Fenced, ManualClock, Queue, StoreInUse, StoreNotFound, StoreUnavailable
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import InvalidArgument, LedgerError, LogPoisoned
from ledgerq.eventlog.files.fsync import write_small
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.single_writer.hold import current_writer
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.stores import open_reader, open_store
from tests.store.writer_child import POINTS
from tests.store.writers import writer, writers
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

ROUNDS = int(os.environ.get("WRITER_ROUNDS", "2"))
LIMIT_S = 60.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The path of a store that is not there yet."""
    return str(tmp_path / "store")


async def is_free(url: str) -> bool:
    """Whether the store can be opened for writing; proves its ledger too."""
    try:
        queue = await Queue.open(url)
    except StoreInUse:
        return False
    await check_ledger(queue.log.store)
    await queue.close()
    return True


# Two processes


async def test_a_second_process_is_refused_and_the_first_goes_on(url: str) -> None:
    async with Queue.open(url) as queue:
        async with writer(url) as other:
            assert other.error == {"error": "StoreInUse", "pid": os.getpid(), "host": os.uname().nodename}
        assert (await queue.enqueue("q", b"x")).created
    async with writer(url) as other:
        assert other.is_open


async def test_the_error_names_the_process_since_when_and_what_can_be_done(url: str) -> None:
    async with writer(url) as first:
        with pytest.raises(StoreInUse) as caught:
            await Queue.open(url)
    error, text = caught.value, str(caught.value)
    assert (error.pid, error.host, error.until_ms, error.permanent) == (first.pid, os.uname().nodename, None, False)
    assert error.since_ms is not None
    assert f"process {first.pid} on host {os.uname().nodename} writes it since 20" in text
    assert all(remedy in text for remedy in ("Stop that", "wait=", "--wait", "take_over=True", "--take-over"))


async def test_a_killed_writer_holds_up_nobody(url: str) -> None:
    async with writer(url) as first:
        assert first.is_open
        await first.ask("enqueue")
        await first.kill()
        assert await is_free(url)


@pytest.mark.proof
async def test_of_processes_that_start_at_the_same_moment_one_gets_it(url: str) -> None:
    for _ in range(ROUNDS):
        async with writers(url, count=3) as found:
            (first,) = [one for one in found if one.is_open]
            assert {one.error["error"] for one in found if one is not first} == {"StoreInUse"}
            assert len(await first.ask("enqueue")) == 26
            assert await first.ask("close") == "closed"
    assert await is_free(url)


@pytest.mark.proof
async def test_of_three_that_take_over_at_once_the_one_that_is_not_fenced_has_the_lock(url: str) -> None:
    for _ in range(ROUNDS):
        async with writer(url) as first, writers(url, "take-over", count=3) as found:
            answers = {one.pid: await one.ask("enqueue") for one in (first, *found) if one.is_open}
            alive = [pid for pid, answer in answers.items() if answer != "Fenced"]
            assert len(alive) == 1, (answers, [one.said for one in found])
            assert first.pid not in alive
            with pytest.raises(StoreInUse) as caught:
                await Queue.open(url)
            assert caught.value.pid == alive[0]
            # Those that were fenced give nothing back that is not theirs.
            for one in (first, *found):
                if one.pid != alive[0] and one.is_open:
                    assert await one.ask("close") == "closed"
            assert not await is_free(url)
        assert await is_free(url)


@pytest.mark.proof
@pytest.mark.parametrize("point", POINTS)
async def test_one_that_is_killed_while_it_takes_over_leaves_the_store_to_who_still_writes_it(
    url: str, point: str
) -> None:
    async with Queue.open(url) as queue:
        async with writer(url, "take-over", f"die={point}") as second:
            assert await second.wait() == -9
        if point == "held":
            assert (await queue.enqueue("q", b"x")).created
        else:
            with pytest.raises(Fenced):
                await queue.enqueue("q", b"x")
        # Once the new lock is in its place, the store is its owner's, who is dead.
        assert await is_free(url) is (point in ("replaced", "started"))
    assert await is_free(url)


@pytest.mark.proof
async def test_a_forked_child_does_not_keep_the_lock_of_a_parent_that_is_gone(url: str) -> None:
    async with writer(url, "fork") as parent:
        said = {parent.said, await parent.line()}
        assert "open" in said
        (child,) = (int(text) for text in said - {"open"})
        assert not await is_free(url)
        await parent.kill()
        try:
            assert await is_free(url)
        finally:
            os.kill(child, signal.SIGKILL)  # it lived


# One process


async def test_two_queues_of_one_process_exclude_each_other(url: str) -> None:
    async with Queue.open(url) as queue:
        with pytest.raises(StoreInUse, match="this very process"):
            await Queue.open(url)
        async with Queue.open(url, take_over=True) as second:
            with pytest.raises(Fenced):
                await queue.enqueue("q", b"x")
            await queue.close()
            with pytest.raises(StoreInUse):
                await Queue.open(url)
            assert (await second.enqueue("q", b"x")).created
    assert await is_free(url)


async def test_a_rebuilders_store_is_in_use_too_and_a_readers_is_not(url: str) -> None:
    store = await open_store(url, clock=SystemClock())
    reader = await open_reader(url)
    with pytest.raises(StoreInUse):
        await open_store(url, clock=SystemClock())
    await store.close()
    assert await is_free(url)
    await reader.close()


def test_a_queue_that_was_dropped_with_its_loop_holds_up_nobody(url: str) -> None:
    async def drop() -> None:
        queue = await Queue.open(url)
        await queue.enqueue("q", b"x")

    asyncio.run(drop())
    gc.collect()
    assert asyncio.run(is_free(url))


def test_a_queue_whose_loop_has_ended_holds_up_nobody_though_it_is_still_there(url: str) -> None:
    kept = []

    async def keep() -> None:
        kept.append(await Queue.open(url))

    asyncio.run(keep())
    assert asyncio.run(is_free(url))


# Waiting


async def test_a_waiting_opener_gets_the_store_when_the_other_closes_it(url: str) -> None:
    first = await Queue.open(url)
    waiting = asyncio.ensure_future(open_store(url, clock=SystemClock(), wait=None))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert (await first.enqueue("q", b"x")).created
    await first.close()
    async with asyncio.timeout(LIMIT_S):
        await (await waiting).close()


@pytest.mark.proof
async def test_a_waiting_process_gets_the_store_of_a_killed_one(url: str) -> None:
    async with writer(url) as first, asyncio.TaskGroup() as group:
        waiting = group.create_task(open_store(url, clock=SystemClock(), wait=LIMIT_S))
        await asyncio.sleep(0.01)
        await first.kill()
        await (await waiting).close()


@pytest.mark.proof
@pytest.mark.parametrize("take_over", [False, True])
async def test_a_wait_that_is_over(url: str, take_over: bool) -> None:
    clock = ManualClock()
    async with Queue.open(url) as queue:
        waiting = asyncio.ensure_future(open_store(url, clock=clock, wait=60, take_over=take_over))
        async with asyncio.timeout(LIMIT_S):
            for _ in range(60):
                assert not waiting.done()
                assert queue.failure is None
                while clock.next_due_ms() is None:
                    await asyncio.sleep(0.001)
                clock.advance(seconds=1)
            if take_over:
                await (await waiting).close()
            else:
                with pytest.raises(StoreInUse):
                    await waiting


async def test_a_cancelled_wait_leaves_nothing_behind(url: str) -> None:
    async with Queue.open(url) as queue:
        waiting = asyncio.ensure_future(open_store(url, clock=SystemClock(), wait=None))
        await asyncio.sleep(0.06)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (await queue.enqueue("q", b"x")).created
    assert await is_free(url)


@pytest.mark.proof
async def test_an_opening_that_is_cancelled_anywhere_leaves_the_store_free(url: str) -> None:
    steps, opened = 0, False
    while not opened:
        opening = asyncio.ensure_future(open_store(url, clock=SystemClock()))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        opening.cancel()
        done = (await asyncio.gather(opening, return_exceptions=True))[0]
        if not isinstance(done, asyncio.CancelledError):
            assert not isinstance(done, BaseException), done
            opened = True
            await done.close()
        async with asyncio.timeout(LIMIT_S):
            await (await open_store(url, clock=SystemClock(), wait=1)).close()
        steps = steps * 5 // 4 + 1


@pytest.mark.parametrize("wait", [-1, "1", True, float("nan"), 1e10])
async def test_a_wait_that_is_none(url: str, wait: float) -> None:
    with pytest.raises(InvalidArgument, match="wait is a number of seconds"):
        await Queue.open(url, wait=wait)


async def test_what_goes_together_with_neither(url: str) -> None:
    with pytest.raises(InvalidArgument, match="nothing would be taken over"):
        await Queue.open(url, wait=None, take_over=True)
    store = await open_store(url, clock=SystemClock())
    with pytest.raises(InvalidArgument, match="open already"):
        await Queue.open(url, store=store, take_over=True)
    await store.close()


# What fails gives the lock back


async def test_a_failed_opening_gives_the_lock_back(url: str) -> None:
    with pytest.raises(StoreNotFound):
        await open_store(url, clock=SystemClock(), create=False)
    assert not Path(url).exists()
    async with Queue.open(url) as queue:
        await queue.enqueue("q", b"x")
    anchor = Path(url, "anchor").read_bytes()
    async with Queue.open(url) as queue:
        await queue.enqueue("q", b"x")
    newer = Path(url, "anchor").read_bytes()
    for path in Path(url, "manifest").iterdir():
        path.write_bytes(b"x" + path.read_bytes()[1:])
    manifests = {path: path.read_bytes() for path in Path(url, "manifest").iterdir()}
    assert anchor != newer
    with pytest.raises(LedgerError) as caught:
        await Queue.open(url)
    assert isinstance(caught.value, LogPoisoned)
    assert await current_writer(parse_location(url), SystemClock()) is None
    for path, data in manifests.items():
        path.write_bytes(data)


async def test_a_close_that_hangs_gives_the_lock_back(url: str) -> None:
    class Stuck:
        """A database that never closes."""

        def __init__(self, db: object) -> None:
            self.db = db

        def __getattr__(self, name: str) -> object:
            return getattr(self.db, name)

        async def shutdown_with_options(self, _: object) -> None:
            await asyncio.Event().wait()

    store = await open_store(url, clock=SystemClock(), options=StoreOptions(commit_timeout_s=0.2))
    real = store._db  # type: ignore[attr-defined]
    store._db = Stuck(real)  # type: ignore[attr-defined]
    await store.close()
    assert await current_writer(parse_location(url), SystemClock()) is None
    await real.shutdown()


# A check for a writer that is stopped


class Stopped:
    """A process that checks for a writer, stopped with its shared lock until an opener has tried `tries` times."""

    def __init__(self, url: str, monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
        self.tried = 0
        self._left = tries
        self._fd = os.open(Path(url, "writer"), os.O_RDONLY)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        monkeypatch.setattr("ledgerq.eventlog.single_writer.lock.time.sleep", self._sleep)

    def _sleep(self, _: float) -> None:
        self.tried += 1
        if self.tried == self._left:
            os.close(self._fd)


async def dead(url: str) -> int:
    """A store whose writer was killed, and its process."""
    async with writer(url) as first:
        await first.kill()
        return first.pid


@pytest.mark.parametrize("tries", sampled([100, 2]))
async def test_a_look_that_is_stopped_hinders_no_opener_once_the_writer_is_dead(
    url: str, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await dead(url)
    look = Stopped(url, monkeypatch, tries)
    async with Queue.open(url):
        assert look.tried == tries


@pytest.mark.proof
async def test_a_lock_that_stays_though_its_writer_is_dead_is_tried_for_some_seconds(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await dead(url)
    look = Stopped(url, monkeypatch, 100_000)
    with pytest.raises(StoreInUse) as caught:
        await Queue.open(url)
    assert caught.value.pid == pid
    assert look.tried == 500


async def test_a_live_writers_lock_is_tried_for_a_moment_only(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with writer(url):
        look = Stopped.__new__(Stopped)
        look.tried, look._left = 0, 100_000
        monkeypatch.setattr("ledgerq.eventlog.single_writer.lock.time.sleep", look._sleep)
        with pytest.raises(StoreInUse):
            await Queue.open(url)
        assert look.tried < 5


# The files


@pytest.mark.parametrize(
    "content",
    sampled([b"", b'{"host":"h","pid":1,"opened_ms":1}', b"\0" * 200, b"{", b"[" * 4096, b'{"host": 1}'], quick=2),
)
async def test_what_a_killed_process_left_in_the_files_hinders_nobody(url: str, content: bytes) -> None:
    await is_free(url)
    for name in ("writer", "writer.opening", "writer.new"):
        Path(url, name).write_bytes(content)
    async with Queue.open(url):
        pass
    async with Queue.open(url), Queue.open(url, take_over=True):
        assert not Path(url, "writer.new").exists()


async def test_only_its_user_may_read_and_write_the_files(url: str) -> None:
    async with Queue.open(url):
        for name in ("writer", "writer.opening"):
            assert stat.S_IMODE(Path(url, name).stat().st_mode) == 0o600


@pytest.mark.parametrize("name", ["writer", "writer.opening"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
async def test_no_regular_file(tmp_path: Path, url: str, name: str, kind: str) -> None:
    await is_free(url)
    path = Path(url, name)
    path.unlink()
    (tmp_path / "precious").write_text("kept")
    if kind == "link":
        path.symlink_to(tmp_path / "precious")
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(StoreUnavailable, match=rf"{name}\); remove it"):
            await Queue.open(url)
    assert (tmp_path / "precious").read_text() == "kept"


async def test_a_host_name_with_signs_for_a_terminal_is_shown_without_them(url: str) -> None:
    async with Queue.open(url):
        fd = os.open(Path(url, "writer"), os.O_WRONLY)
        os.pwrite(fd, b'{"host":"a\\u001b[31m\\nb","pid":1,"opened_ms":1}    ' + b" " * 300, 0)
        os.close(fd)
        with pytest.raises(StoreInUse) as caught:
            await Queue.open(url)
    assert caught.value.host == "a?[31m?b"


async def test_a_file_system_without_locks(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(fd: int, what: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    async with Queue.open(url) as first:
        assert "has no locks" in caplog.text
        async with Queue.open(url) as second:
            with pytest.raises(Fenced):
                await first.enqueue("q", b"x")
            assert (await second.enqueue("q", b"x")).created


async def test_a_look_at_who_writes_makes_no_file_and_disturbs_no_opener(url: str) -> None:
    location = parse_location(url)
    Path(url).mkdir()
    assert await current_writer(location, SystemClock()) is None
    assert [*Path(url).iterdir()] == []
    for _ in range(2):
        opening = asyncio.ensure_future(open_store(url, clock=SystemClock()))
        while not opening.done():
            await current_writer(location, SystemClock())
        found = await current_writer(location, SystemClock())
        assert found is not None
        assert found.pid == os.getpid()
        await opening.result().close()


def test_a_note_that_another_writer_moved_into_place_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fenced writer may sync for some seconds yet; the one that takes over must not fail to open for that."""
    replace, times = Path.replace, 0

    def both(self: Path, target: Path) -> Path:
        nonlocal times
        times += 1
        if times == 1:
            replace(self, target)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", both)
    write_small(tmp_path / "synced", b"7 7\n")
    assert times == 2
    assert [path.name for path in tmp_path.iterdir()] == ["synced"]
    assert (tmp_path / "synced").read_bytes() == b"7 7\n"
