"""Power cuts at any moment of recorded work: the store opens by itself, and everything that was promised is there.

`python -m tests.power_cut.cuts` explores any number of states by hand.
"""

import asyncio
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from ledgerq.eventlog.files.fsync import recorded_manifest
from tests.power_cut.cuts import Explored, explore, moments_of, record_all, scratch_folder, states_of
from tests.power_cut.kernel_files import MODELS, Tree, tree_of
from tests.power_cut.opener_child import State
from tests.power_cut.phases import PHASES, record_phase
from tests.power_cut.recorded_disk import Disk
from tests.power_cut.system_calls import Call, why_not

JOBS = 2
QUICK_PHASES = ("close",)
QUICK_STATES_EACH = 1
PROOF_STATES_EACH = 44
needs_strace = pytest.mark.skipif(bool(why_not()), reason=why_not())


async def explored(folder: Path, phases: Sequence[str], states_each: int, *, each: int = 1) -> Explored:
    """What came of so many states of each model."""
    recordings = await asyncio.to_thread(record_all, folder / "recordings", phases, 0, each=each)
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as scratch:
        return await explore(states_of(recordings, MODELS, states_each, 0, salvaged=True), Path(scratch), jobs=JOBS)


def check(result: Explored, states_each: int) -> None:
    """Every state was salvaged whole, and opened, twice, with everything in it."""
    assert result.outcomes.total() == len(MODELS) * states_each
    assert not result.failed, "\n".join([*result.lines(), *map(str, result.failed[:5])])


@needs_strace
async def test_after_a_power_cut_it_opens_with_everything(tmp_path: Path) -> None:
    check(await explored(tmp_path, QUICK_PHASES, QUICK_STATES_EACH), QUICK_STATES_EACH)


@pytest.mark.proof
@needs_strace
async def test_after_a_power_cut_in_any_phase_it_opens_with_everything(tmp_path: Path) -> None:
    check(await explored(tmp_path, [*PHASES], PROOF_STATES_EACH, each=2), PROOF_STATES_EACH)


@pytest.mark.proof
@needs_strace
async def test_without_syncs_the_same_cuts_lose_what_was_promised(tmp_path: Path) -> None:
    made = await asyncio.to_thread(record_phase, tmp_path / "recordings" / "steady-0", "steady", 0, fsync=False)
    # By its last moment something was promised, and nothing at all had to be on the disk.
    last = State(str(made.folder), made.phase, moments_of(made).all[-1], "strict", 0)
    result = await explore([last], tmp_path, jobs=1)
    assert result.failed


@pytest.mark.proof
@needs_strace
async def test_the_disk_that_is_replayed_is_the_disk_that_was_written(tmp_path: Path) -> None:
    # Whether the call in which the process was killed was carried out is not known: then another one is recorded.
    for seed in (3, 4, 5, 6):
        made = await asyncio.to_thread(record_phase, tmp_path / f"recording-{seed}", "compact", seed)
        replay = made.replay()
        changes = sum(changes for _, changes in replay.steps())
        assert changes > 500
        assert bytes(replay.disk.sinks["facts"]) == (made.folder / "facts").read_bytes()
        if replay.disk.after_a_cut("killed", random.Random(0)) == tree_of(made.folder / "disk"):
            return
    pytest.fail("no recording gives the disk that was left")


@pytest.mark.proof
@needs_strace
async def test_what_is_known_to_be_synced_is_known_where_the_disk_is_laid_out(tmp_path: Path) -> None:
    made = await asyncio.to_thread(record_phase, tmp_path / "recording", "compact", 3)
    replay = made.replay()
    for _ in replay.steps():
        pass
    (tmp_path / "laid-out").mkdir()
    replay.cut("strict", random.Random(0)).lay_out(tmp_path / "laid-out")
    noted = recorded_manifest(tmp_path / "laid-out" / "store")
    assert noted == recorded_manifest(made.folder / "disk" / "store") > 0


# What a cut leaves, by calls written down by hand.


class Script:
    """Calls on the disk below /r."""

    def __init__(self, tree: Tree | None = None) -> None:
        self.disk = Disk(Path("/r"), sinks={}, tree=tree)
        self._fd = 2

    def begin(self, name: str, *arguments: bytes | str, thread: int = 1) -> Call:
        call = Call(thread, name, arguments, None)
        self.disk.step(call)
        return call

    def end(self, call: Call, result: int = 0) -> None:
        self.disk.step(call._replace(result=result))

    def do(self, name: str, *arguments: bytes | str, result: int = 0) -> None:
        self.end(self.begin(name, *arguments), result)

    def open(self, path: str, flags: str = "O_RDWR|O_CREAT") -> str:
        self._fd += 1
        self.do("openat", "AT_FDCWD", path.encode(), flags, "0666", result=self._fd)
        return str(self._fd)

    def write(self, path: str, data: bytes, *, sync: bool = False) -> None:
        fd = self.open(path)
        self.do("write", fd, data, str(len(data)), result=len(data))
        if sync:
            self.do("fsync", fd)
        self.do("close", fd)

    def sync(self, path: str) -> None:
        fd = self.open(path, "O_RDONLY")
        self.do("fsync", fd)
        self.do("close", fd)

    def left(self, model: str, seed: int = 0) -> Tree:
        return self.disk.after_a_cut(model, random.Random(seed))


def test_data_without_a_synced_name_and_a_name_without_synced_data_are_lost() -> None:
    script = Script({"d": None})
    script.write("/r/d/named", b"1234")
    script.sync("/r/d")
    script.write("/r/d/synced", b"1234", sync=True)
    assert script.left("strict") == {"d": None, "d/named": b""}
    assert script.left("empty") == {"d": None, "d/named": b"", "d/synced": b"1234"}
    assert script.left("half") == {"d": None, "d/named": b"12", "d/synced": b"1234"}
    assert script.left("zeros") == {"d": None, "d/named": bytes(4), "d/synced": b"1234"}
    assert script.left("killed") == {"d": None, "d/named": b"1234", "d/synced": b"1234"}


def test_a_sync_covers_what_was_there_when_it_began() -> None:
    script = Script({"d": None})
    fd = script.open("/r/d/a")
    script.do("write", fd, b"one", "3", result=3)
    syncing = script.begin("fsync", fd, thread=2)
    folder = script.open("/r/d", "O_RDONLY")
    syncing_folder = script.begin("fsync", folder, thread=3)
    script.write("/r/d/b", b"", sync=True)
    script.do("write", fd, b"two", "3", result=3)
    script.end(syncing)
    script.end(syncing_folder)
    assert script.left("strict") == {"d": None, "d/a": b"one"}
    assert script.left("empty") == {"d": None, "d/a": b"one", "d/b": b""}


def test_a_write_over_synced_data_is_torn_and_leaves_the_rest() -> None:
    script = Script({"a": b"........"})
    fd = script.open("/r/a", "O_RDWR")
    script.do("pwrite64", fd, b"1234", "4", "2", result=4)
    assert script.left("strict") == script.left("empty") == script.left("zeros") == {"a": b"........"}
    assert script.left("half") == {"a": b"..12...."}
    script.do("fdatasync", fd)
    assert script.left("strict") == {"a": b"..1234.."}


def test_names_change_for_good_with_a_sync_of_their_folder() -> None:
    script = Script({"d": None, "d/old": b"x", "e": None})
    script.do("rename", b"/r/d/old", b"/r/d/new")
    assert script.left("strict") == {"d": None, "d/old": b"x", "e": None}
    script.sync("/r/d")
    script.do("unlink", b"/r/d/new")
    script.do("mkdir", b"/r/f", "0777")
    assert script.left("strict") == {"d": None, "d/new": b"x", "e": None}
    assert script.left("empty") == {"d": None, "e": None, "f": None}


def test_a_name_that_goes_to_another_folder_is_in_one_of_both() -> None:
    script = Script({"d": None, "d/a": b"x", "e": None})
    script.do("rename", b"/r/d/a", b"/r/e/a")
    script.sync("/r/d")
    assert script.left("strict") == {"d": None, "d/a": b"x", "e": None}
    script.sync("/r/e")
    assert script.left("strict") == {"d": None, "e": None, "e/a": b"x"}


def test_any_of_the_changes_may_have_reached_the_disk() -> None:
    script = Script({"d": None, "d/old": b"o"})
    script.write("/r/d/new", b"n")
    script.do("unlink", b"/r/d/old")
    names = {frozenset(script.left("mixed", seed)) - {"d"} for seed in range(200)}
    assert names == {frozenset(), frozenset({"d/old"}), frozenset({"d/new"}), frozenset({"d/old", "d/new"})}
    assert {script.left("mixed", seed).get("d/new") for seed in range(200)} >= {None, b"", b"n", bytes(1)}


def test_a_call_whose_end_was_not_seen_yet_may_have_been_done() -> None:
    script = Script()
    script.write("/r/a#1", b"x")
    linking = script.begin("link", b"/r/a#1", b"/r/a", thread=2)
    script.sync("/r/a")
    script.end(linking)
    script.do("unlink", b"/r/a#1")
    assert script.left("killed") == {"a": b"x"}


def test_a_call_that_will_fail_is_not_taken_for_done() -> None:
    script = Script({"d": None, "d/a": b"x"})
    script.begin("mkdir", b"/r/d", "0700", thread=2)
    script.write("/r/new", b"y")
    assert script.left("killed") == {"d": None, "d/a": b"x", "new": b"y"}


def test_what_a_process_was_killed_in_may_be_done() -> None:
    script = Script({"a#1": b"x"})
    script.begin("link", b"/r/a#1", b"/r/a", thread=2)
    script.disk.restart()
    assert script.left("killed") == {"a#1": b"x"}
    script.sync("/r/a")
    assert script.left("killed") == {"a": b"x", "a#1": b"x"}


def test_a_file_that_is_removed_while_it_is_opened_was_opened_before() -> None:
    script = Script({"a": b"x"})
    opening = script.begin("openat", "AT_FDCWD", b"/r/a", "O_RDONLY", thread=2)
    script.do("unlink", b"/r/a")
    script.end(opening, 9)
    script.do("fsync", "9")
    assert script.left("killed") == {}


def test_a_call_that_is_not_modelled_is_an_error_only_on_what_is_watched() -> None:
    script = Script({"a": b"x"})
    fd = script.open("/r/a")
    script.do("fallocate", "99", "0", "0", "10")
    with pytest.raises(NotImplementedError, match="fallocate"):
        script.do("fallocate", fd, "0", "0", "10")
    with pytest.raises(NotImplementedError, match="symlink"):
        script.do("symlink", b"/elsewhere", b"/r/b")
