"""Places that can't be used, or stop being usable: each is named at once, nothing is lost, and it goes on afterwards.

Root can mount small and read-only file systems to try it on; for others those tests are skipped.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledgerq import Queue, StoreOptions
from ledgerq.eventlog.errors import LedgerError, OutcomeUnknown, StoreUnavailable
from ledgerq.tools.cli.app import run
from tests.support.cli_rig import Cli, make_ledger
from tests.support.ledger_checks import check_ledger

ROOT = Path(__file__).resolve().parents[2]
MIB = 1024 * 1024
NOBODY = 65534
LIMIT_S = 60
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody, and give files away")


def mounted(folder: Path, *options: str) -> None:
    """Mount there, or skip the test."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    folder = tmp_path / "disk"
    mounted(folder, "-t", "tmpfs", "-o", "size=24m", "tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


# ---------------------------------------------------------------------- a full disk


class Filler:
    """A queue on a disk with little space left, and a producer that enqueues until it is full."""

    def __init__(self, queue: Queue, disk: Path) -> None:
        self.queue = queue
        self.promised: list[str] = []
        self._ballast = disk / "ballast"
        free = os.statvfs(disk)
        self._ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - 2 * MIB))
        self.producing = asyncio.create_task(self._produce())

    async def _produce(self) -> None:
        while True:
            self.promised.append((await self.queue.enqueue("q", os.urandom(100_000))).job_id)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for it."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def stalled(self) -> None:
        """Wait until nothing fits any more: then nothing more is promised, for longer than any commit takes."""
        seen, quiet = -1, 0
        async with asyncio.timeout(LIMIT_S):
            while quiet < 20:
                quiet = quiet + 1 if seen == len(self.promised) and seen > 0 else 0
                seen = len(self.promised)
                await asyncio.sleep(0.025)

    def make_room(self) -> None:
        """Space becomes free."""
        self._ballast.unlink()

    async def stop(self) -> None:
        """Enqueue no more."""
        self.producing.cancel()
        await asyncio.gather(self.producing, return_exceptions=True)


async def check_promises(url: str, promised: list[str]) -> None:
    """Check that what was promised is there, and that the ledger is clean."""
    async with Queue.open(url) as queue:
        for job_id in promised:
            assert len((await queue.payload(job_id)).payload) == 100_000
        await check_ledger(queue.log.store)


@pytest.mark.proof
async def test_a_full_disk_is_named_and_what_was_promised_is_there_once_there_is_room(disk: Path) -> None:
    url = str(disk / "store")
    queue = await Queue.open(url, store_options=StoreOptions(commit_timeout_s=1.5))
    filler = Filler(queue, disk)
    await filler.until(filler.producing.done)
    error = filler.producing.exception()
    assert isinstance(error, OutcomeUnknown)
    assert "KiB are free on its disk: free some space, then open it again" in str(error)
    assert queue.failure is not None
    with pytest.raises(LedgerError):
        await queue.enqueue("q", b"")
    await queue.close()
    with pytest.raises(StoreUnavailable, match=r"free.*on its disk.*free some space"):
        await Queue.open(url)
    filler.make_room()
    assert filler.promised
    await check_promises(url, filler.promised)


async def test_a_queue_goes_on_by_itself_when_there_is_room_again_in_time(disk: Path) -> None:
    url = str(disk / "store")
    async with Queue.open(url, store_options=StoreOptions(commit_timeout_s=LIMIT_S)) as queue:
        filler = Filler(queue, disk)
        await filler.stalled()
        before = len(filler.promised)
        assert not filler.producing.done()
        filler.make_room()
        await filler.until(lambda: len(filler.promised) > before + 5)
        await filler.stop()
        assert queue.failure is None
    await check_promises(url, filler.promised)


# ---------------------------------------------------------------------- read-only


async def test_a_read_only_disk_can_be_read_and_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = await make_ledger(tmp_path / "store")
    mounted(tmp_path / "view", "--bind", str(tmp_path / "store"))
    try:
        mounted(tmp_path / "view", "-o", "remount,bind,ro")
        cli = Cli(capsys, monkeypatch)
        view = tmp_path / "view"
        with pytest.raises(StoreUnavailable, match="read-only; mount it for writing"):
            await Queue.open(str(view))
        with pytest.raises(StoreUnavailable, match="read-only; mount it for writing"):
            await Queue.open(str(view / "new"))

        def commands() -> None:
            assert "clean" in cli.ok("audit", view, "--deep").out
            assert ledger.done in cli.ok("jobs", view, "mail").out
            cli.ok("log", view)
            cli.ok("rebuild-projections", view, "--check")
            for words in (["enqueue", view, "q", "x"], ["pause", view, "mail", "--reason", "r"]):
                assert "read-only" in cli.fails(3, *words)

        await asyncio.to_thread(commands)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path / "view")], check=True)


# ---------------------------------------------------------------------- no permission


def as_nobody(scratch: Path, *commands: list[str]) -> list[str]:
    """The last line of each command's output or error."""
    scratch.mkdir()
    words = [word for command in commands for word in (*command, "--then")][:-1]
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/store/without_rights_child.py"), str(scratch), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder that anybody can reach, with a store of root's in it."""
    opened: dict[Path, int] = {}
    for folder in (tmp_path, *tmp_path.parents):
        mode = folder.stat().st_mode
        if not mode & 0o001:
            if not folder.name.startswith("pytest-") and folder != tmp_path:
                pytest.skip(f"nobody can't reach {folder}")
            opened[folder] = mode
            folder.chmod(mode | 0o011)
    assert run(["enqueue", str(tmp_path / "store"), "q", "x"]) == 0
    yield tmp_path
    for folder, mode in opened.items():
        folder.chmod(mode)


@pytest.mark.proof
@as_root
def test_what_somebody_may_not_do_is_said_at_once(place: Path) -> None:
    def store(name: str, *others: str, mode: int = 0o755) -> str:
        """A copy of the store that belongs to the user nobody, but for these parts of it."""
        subprocess.run(["cp", "-a", str(place / "store"), str(place / name)], check=True)
        subprocess.run(["chmod", "-R", "a+rX", str(place / name)], check=True)
        if name != "roots" and name != "closed":
            subprocess.run(["chown", "-R", str(NOBODY), str(place / name)], check=True)
        for part in others:
            subprocess.run(["chown", "-R", "0", str(place / name / part)], check=True)
        (place / name).chmod(mode)
        return str(place / name)

    closed, roots = store("closed", mode=0o700), store("roots")
    wal, manifest, anchor = store("wal", "wal"), store("manifest", "manifest"), store("anchor", "anchor")
    secret = store("secret", "anchor")
    (place / "secret" / "anchor").chmod(0o600)
    own = store("own")
    said = as_nobody(
        place / "scratch",
        ["stats", closed],
        ["enqueue", closed, "q", "x"],
        ["enqueue", roots, "q", "x"],
        ["enqueue", str(place / "new"), "q", "x"],
        ["enqueue", wal, "q", "x"],
        ["enqueue", manifest, "q", "x"],
        ["enqueue", anchor, "q", "x"],
        ["stats", secret],
        ["audit", roots],
        ["enqueue", own, "q", "x"],
    )
    assert [line.partition(" ")[0] for line in said] == ["3"] * 8 + ["0"] * 2
    for line in said[:8]:
        assert "this user may not read or may not write there" in line
    for line, part in zip(said[4:8], ("wal", "manifest", "anchor", "anchor"), strict=True):
        assert f"/{part})" in line


# ---------------------------------------------------------------------- a file where a folder should be


@pytest.mark.parametrize("part", ["manifest", "wal", "compacted"])
async def test_a_file_where_a_folder_of_the_store_should_be(tmp_path: Path, part: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / part).write_text("")
    with pytest.raises(StoreUnavailable, match=f"{part}.*it is not a folder"):
        await Queue.open(str(tmp_path / "store"))


async def test_a_folder_where_the_anchor_should_be(tmp_path: Path) -> None:
    (tmp_path / "store" / "anchor").mkdir(parents=True)
    with pytest.raises(StoreUnavailable, match=r"anchor.*it is a folder"):
        await Queue.open(str(tmp_path / "store"))


@pytest.mark.parametrize("target", ["loop", "nowhere"])
async def test_a_link_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "loop").symlink_to(target)
    with pytest.raises(StoreUnavailable, match="can't be used"):
        await Queue.open(str(tmp_path / "loop"))


async def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="choose a shorter one"):
        await Queue.open(str(tmp_path / ("n" * 300)))
