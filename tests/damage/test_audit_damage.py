"""The reports of audit and salvage at the command line on a store whose files are damaged."""

import asyncio
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.recovery.sorted_files import Part, read_sst
from ledgerq.eventlog.stores import open_store
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli
from tests.tiers import sampled

JOBS = 1200


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed store: one sorted file holds everything, and of the log several blocks."""
    folder = tmp_path_factory.mktemp("whole") / "store"

    async def fill() -> None:
        async with Queue.open(str(folder)) as queue:
            for number in range(JOBS // 3):
                names = ("mail", "mail", "bulk")
                await asyncio.gather(*(queue.enqueue(name, b"%d" % number) for name in names))

    asyncio.run(fill())
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def flip(folder: Path, wanted: Callable[[Part], bool], number: int = 0) -> Part:
    """Flip a bit in the middle of one of the parts that are wanted."""
    (path,) = folder.glob("compacted/*.sst")
    data = path.read_bytes()
    part = [part for part in read_sst(data) if wanted(part)][number]
    place = (part.start + part.stop) // 2
    path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
    return part


def of_range(prefix: bytes) -> Callable[[Part], bool]:
    """Blocks whose rows are all of a range."""
    return lambda part: bool(part.rows) and all(row.key.startswith(prefix) for row in part.rows)


def without_logs(folder: Path) -> None:
    """The log files hold what was not yet moved to the sorted file, and what was: only the latter is in the way."""
    for path in folder.glob("wal/*.sst"):
        path.unlink()


@pytest.mark.proof
def test_an_unreadable_log_is_proven_as_far_as_it_goes(cli: Cli, folder: Path, tmp_path: Path) -> None:
    without_logs(folder)
    part = flip(folder, of_range(keys.LOG_PREFIX), 2)
    first = keys.offset_of(part.rows[0].key)
    found = cli("audit", folder)
    assert found.code == 1
    assert f"proven to {first}, unreadable from {first}" in found.out
    assert f"rebuild-projections {folder} --into NEW --salvage" in found.out
    told = cli("audit", folder, "--json", "--record").json
    assert (told["clean"], told["unreadable_from"], told["events"]) == (False, first, first)
    assert [fault["path"][:9] for fault in told["damaged_files"]] == ["compacted"]
    assert cli("rebuild-projections", folder, "--check").code == 1
    # What it advises works, and is true.
    saved = cli("rebuild-projections", folder, "--into", tmp_path / "new", "--salvage")
    assert saved.code == 4
    assert f"from offset {first} on they are lost" in saved.out
    assert cli.ok("audit", tmp_path / "new", "--deep")


@pytest.mark.proof
def test_an_unreadable_log_is_proven_as_far_as_it_goes_also_where_the_format_stands_beside_it(
    cli: Cli, folder: Path
) -> None:
    without_logs(folder)
    part = flip(folder, lambda part: any(row.key == keys.FORMAT_KEY for row in part.rows))
    first = min(keys.offset_of(row.key) for row in part.rows if row.key.startswith(keys.LOG_PREFIX))
    found = cli("audit", folder)
    assert found.code == 1
    assert f"proven to {first}, unreadable from {first}" in found.out


@pytest.mark.proof
@pytest.mark.parametrize("deep", sampled([False, True]))
def test_a_damaged_block_of_payloads_is_found_without_reading_them(
    cli: Cli, folder: Path, tmp_path: Path, deep: bool
) -> None:
    without_logs(folder)
    part = flip(folder, of_range(keys.PAYLOAD_PREFIX), 1)
    offsets = sorted(keys.offset_of(row.key) for row in part.rows)
    told = cli("audit", folder, "--json", *(["--deep"] if deep else [])).json
    (fault,) = told["damaged_files"]
    assert fault["problems"] == [f"block at byte {part.start} to {part.stop}: its checksum is wrong"]
    assert told["difference_count"] == (len(offsets) if deep else 0)
    assert (told["clean"], told["unreadable_from"]) == (False, None)
    saved = cli("rebuild-projections", folder, "--into", tmp_path / "new", "--salvage", "--json")
    assert saved.code == 4
    lost = saved.json["lost_payloads"]
    assert [job["offset"] for job in lost] == offsets
    assert all(job["dead_letter"] and job["queue"] in ("mail", "bulk") for job in lost)
    assert (saved.json["whole"], saved.json["promised_is_there"]) == (False, True)
    again = cli.ok("audit", tmp_path / "new", "--deep", "--json").json
    assert again["lost_payloads"] == len(offsets)
    assert "as recorded in the log" in cli.ok("audit", tmp_path / "new").out
    shown = cli("show", tmp_path / "new", lost[0]["job_id"])
    assert "the payload is missing" in shown.message + shown.out
    history = cli.ok("history", tmp_path / "new", lost[0]["job_id"]).out
    assert "dead-lettered" in history
    # The store itself can be worked on.
    for option in ([], ["--take-over"]):
        cli.ok("pause", folder, "mail", "--reason", "why", *option)
        cli.ok("resume", folder, "mail", "--reason", "why", *option)
    # The copy that needs a readable log does the same, without the files one by one.
    copied = cli.ok("rebuild-projections", folder, "--into", tmp_path / "copy", "--json").json
    assert [job["offset"] for job in copied["lost_payloads"]] == offsets


@pytest.mark.parametrize("kind", sampled(["index", "filter", "statistics", "description"]))
def test_damage_of_what_leads_to_the_rows_costs_nothing(cli: Cli, folder: Path, tmp_path: Path, kind: str) -> None:
    flip(folder, lambda part: part.kind == kind)
    without_logs(folder)
    found = cli("audit", folder, "--json")
    if found.code == 1:
        (fault,) = found.json["damaged_files"]
        assert fault["problems"][-1].startswith(kind)
    else:
        assert (found.code, "--salvage" in found.message) == (3, True)
    assert cli.ok("rebuild-projections", folder, "--into", tmp_path / "new", "--salvage", "--json").json["whole"]
    assert cli.ok("audit", tmp_path / "new", "--deep", "--json").json["jobs"] == JOBS


def test_damage_of_index_rows_is_a_report_and_no_exception(cli: Cli, folder: Path, tmp_path: Path) -> None:
    without_logs(folder)
    flip(folder, of_range(b"i/job/"), 1)
    found = cli("audit", folder)
    assert found.code == 1
    assert "rows that can be read" in found.out
    assert "1 damaged file, 1 difference: save all that is there with" in found.out
    assert "--salvage" in cli.fails(3, "rebuild-projections", folder)
    cli.ok("rebuild-projections", folder, "--into", tmp_path / "new")
    cli.ok("audit", tmp_path / "new", "--deep")


@pytest.mark.proof
def test_a_salvage_never_writes_the_damaged_store(cli: Cli, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    cli.ok("rebuild-projections", folder, "--into", tmp_path / "new", "--salvage")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    for place in (folder, folder / "inside", folder.parent):
        assert "give a location of its own" in cli.fails(2, "rebuild-projections", folder, "--into", place, "--salvage")
    assert "holds a ledgerq store already" in cli.fails(
        2, "rebuild-projections", folder, "--into", tmp_path / "new", "--salvage"
    )
    for option in (("--until", "5"), ("--only", "jobs"), ("--check",)):
        assert "goes with --into" in cli.fails(
            2, "rebuild-projections", folder, "--into", tmp_path / "newer", "--salvage", *option
        )
    assert "goes with --into" in cli.fails(2, "rebuild-projections", folder, "--salvage")
    assert "there is no store" in cli.fails(
        3, "rebuild-projections", tmp_path / "none", "--into", tmp_path / "newer", "--salvage"
    )
    assert not (tmp_path / "newer").exists()


def test_what_a_rollback_advises_works_where_the_store_cant_be_opened(cli: Cli, tmp_path: Path) -> None:
    folder, crashed, new = tmp_path / "store", tmp_path / "crashed", tmp_path / "new"

    async def fill() -> None:
        async with Queue.open(str(folder)) as queue:
            await queue.enqueue("mail", b"old")
        async with Queue.open(str(folder)) as queue:
            for number in range(5):
                await queue.enqueue("mail", b"%d" % number)
            shutil.copytree(folder, crashed)

    asyncio.run(fill())
    max(path for path in (crashed / "wal").iterdir() if path.stat().st_size).unlink()
    message = cli.fails(1, "audit", crashed)
    command = re.search(r"rebuild-projections (\S+) --into NEW --until (\d+)", message)
    assert command is not None, message
    assert command[1] == str(crashed)
    cli.ok("rebuild-projections", command[1], "--into", new, "--until", command[2])
    assert cli.ok("audit", new, "--deep")


@pytest.mark.parametrize("harm", sampled(["commit", "newest", "file", "row"], quick=2))
def test_what_is_advised_is_one_command_of_a_shell_whatever_the_store_is_called(
    cli: Cli, tmp_path: Path, harm: str
) -> None:
    folder, new = tmp_path / "a store; $HOME", tmp_path / "new"

    async def fill() -> None:
        async with Queue.open(str(folder)) as queue:
            await queue.enqueue_many("mail", [b"x" * 500] * 20)
        if harm in ("commit", "row"):
            store = await open_store(str(folder), clock=SystemClock())
            batch = store.batch()
            batch.update({keys.log_key(1): b"nonsense"} if harm == "commit" else {b"i/stats/mail": b"nonsense"})
            await store.write(batch)
            await store.close()

    asyncio.run(fill())
    if harm == "file":
        part = max(folder.glob("compacted/*.sst"), key=lambda path: path.stat().st_size)
        damaged = bytearray(part.read_bytes())
        damaged[300] ^= 1
        part.write_bytes(damaged)
    if harm == "newest":
        max(folder.glob("manifest/*")).unlink()
        max(folder.glob("manifest/*")).write_bytes(b"")
    found = cli("audit", folder)
    commands = re.findall(r"rebuild-projections '[^']*'(?: --\w+(?: NEW| \d+)?)*", found.out + found.err)
    assert commands, found.out + found.err
    for command in commands:
        words = [str(new) if word == "NEW" else word for word in shlex.split(command)]
        assert words[:2] == ["rebuild-projections", str(folder)]
        shutil.rmtree(new, ignore_errors=True)
        assert cli(*words).code in (0, 4)
