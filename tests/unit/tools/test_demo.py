"""The demo, as users run it: on a few files, on one, on none, without an environment; and the parts it is made of."""

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.projections.audit import audit
from ledgerq.tools.demo import sample_files
from ledgerq.tools.demo.damage import damage
from ledgerq.tools.demo.demo import run_demo
from ledgerq.tools.demo.sample_files import Results, fates, find_files, measure
from ledgerq.worker.queue import Queue

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 100


def run(temporary: Path, *command: str | Path, bare: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a Python module of ours; its temporary files go to a folder of the test."""
    temporary.mkdir(exist_ok=True)
    environment = {} if bare else dict(os.environ)
    environment |= {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", *map(str, command)]
    return subprocess.run(argv, env=environment, cwd=temporary, capture_output=True, text=True, timeout=LIMIT_S)


def demo(tmp_path: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(tmp_path / "tmp", "ledgerq.tools.cli", "demo", *arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "files"
    (made / "deeper").mkdir(parents=True)
    (made / "one.txt").write_text("1\n2\n")
    (made / "deeper" / "two \x1b[31m.txt").write_text("no end of line")
    (made / "deeper" / "empty").write_text("")
    return made


@pytest.mark.proof
def test_three_files(folder: Path, tmp_path: Path) -> None:
    ran = demo(tmp_path, folder)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert "\x1b" not in ran.stdout
    for pattern in (
        r"ledgerq demo: 3 files of ",
        r"1  Enqueue\n   3 jobs in one commit",
        r"On purpose, 1 will fail at the first attempt and 1 can never succeed\.",
        r"and held [12] more, their work done but not yet acked, when kill -9 ended it\.",
        r"took [12] jobs? back from the process that is gone",
        r"scheduled +pending +claimed +done +dead +cancelled\n +0 +0 +0 +2 +1 +0\n",
        r"nacked +RuntimeError: the first attempt fails \(on purpose\); again in 0\.\d+ s",
        r"lease-expired +interrupted: its process is gone; now pending",
        r"results\.jsonl has 2 lines",
        r"The chain of \d+ events holds; 8 index rows compared: clean\.",
        r"The chain of \d+ events holds; 6 differences found, such as:",
        r"altered +job +job \w{26}: state='done', .*but by the log state='dead', last_error=.a text beside the log,",
        r"missing +finished ",
        r"surplus +pending ",
        r"altered +stats +queue 'files': done=3, dead=0, but by the log done=2, dead=1\n",
        r"5 rows set, 1 removed, and the log holds who did it\.",
        r"Everything came out as it should",
    ):
        assert re.search(pattern, ran.stdout), (pattern, ran.stdout)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.proof
def test_one_file_in_a_bare_environment_and_a_store_that_is_kept(tmp_path: Path) -> None:
    folder, temporary = tmp_path / "files", tmp_path / "tmp"
    folder.mkdir()
    (folder / "only").write_bytes(b"a\nb\nc")
    (folder / "to-nothing").symlink_to("nowhere")
    ran = run(temporary, "ledgerq.tools.demo", folder, "--keep", bare=True)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert "2 jobs in one commit" in ran.stdout
    assert "0 can never succeed; nor can 1 that may not be read." in ran.stdout
    (place,) = temporary.iterdir()
    (line,) = (place / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result.pop("path") == str(folder / "only")
    assert re.fullmatch(r"\w{26}", result.pop("job"))
    assert result == measure(os.fsencode(folder / "only"))
    commands = re.findall(r"\$ \S+ -m ledgerq.tools.cli (.*)", ran.stdout)
    assert [command.split()[0] for command in commands] == [
        "stats",
        "history",
        "audit",
        "audit",
        "rebuild-projections",
        "audit",
    ]
    for command in dict.fromkeys(commands):
        again = run(temporary, "ledgerq.tools.cli", *command.split())
        assert (again.returncode, again.stderr) == (0, ""), again
    dead = run(temporary, "ledgerq.tools.cli", "jobs", (place / "store").as_uri(), "files", "--state=dead", "--json")
    assert json.loads(dead.stdout)["error"] == "the file can't be read: No such file or directory"


@pytest.mark.proof
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unreadable", "none of the 1 files in"),
        ("empty", "there are no files in"),
        ("missing", "is not a folder"),
        ("a file", "is not a folder"),
    ],
)
def test_a_folder_without_work(kind: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    if kind == "a file":
        folder.write_text("text")
    elif kind != "missing":
        (folder / "below").mkdir(parents=True)
    if kind == "unreadable":
        (folder / "to-nothing").symlink_to("nowhere")
    ran = demo(tmp_path, folder)
    assert (ran.returncode, ran.stdout) == (2, ""), ran
    assert ran.stderr.startswith("ledgerq: ")
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_a_worker_that_breaks_is_told_on_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (tmp_path / "out").open("w") as out:
        assert await run_demo(folder, Console(file=out)) == 1
    message = capsys.readouterr().err
    assert re.fullmatch(
        r"ledgerq: the demo failed: worker process \d+ ended before it could be killed: it left no message "
        r"\(what there is was kept in .*ledgerq-demo-\w+\)\n",
        message,
    )


async def test_stopped_half_way_it_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (tmp_path / "out").open("w") as out:
        running = asyncio.create_task(run_demo(folder, Console(file=out)))
        while "killed" not in (tmp_path / "out").read_text():
            await asyncio.sleep(0.01)
            out.flush()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert not list(tmp_path.glob("ledgerq-demo-*"))


@pytest.mark.proof
def test_a_temporary_folder_that_no_store_can_live_in(folder: Path, tmp_path: Path) -> None:
    ran = run(tmp_path / "odd~name", "ledgerq.tools.cli", "demo", folder)
    assert ran.returncode == 2
    assert "can't live under a name with '~'" in ran.stderr
    assert "TMPDIR" in ran.stderr
    assert list((tmp_path / "odd~name").iterdir()) == []


def test_the_same_files_fail_each_time() -> None:
    names = [f"folder/{i}" for i in range(1000)]
    chosen = fates(names)
    assert chosen == fates(names[::-1])
    assert list(chosen) == names
    assert [list(chosen.values()).count(fate) for fate in ("none", "fail once", "dead")] == [947, 50, 3]
    assert fates(["a"]) == {"a": "fail once"}
    assert sorted(fates(["a", "b"]).values()) == ["dead", "fail once"]


def test_the_work_is_bounded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "a pipe")
    (folder / "a loop").symlink_to(folder, target_is_directory=True)
    assert find_files(folder).names == ["one.txt", "deeper/empty", "deeper/two \x1b[31m.txt"]
    assert not find_files(folder).limited
    monkeypatch.setattr(sample_files, "MAX_FILES", 2)
    assert find_files(folder) == (folder, ["one.txt", "deeper/empty"], True)
    monkeypatch.setattr(sample_files, "MAX_TOTAL_MIB", 0)
    assert find_files(folder) == (folder, ["deeper/empty"], True)


def test_the_standard_library_is_what_is_read_by_default() -> None:
    found = find_files(None)
    assert "json/__init__.py" in found.names
    assert len(found.names) > 300
    assert not any("__pycache__" in name or "-packages" in name for name in found.names)


@pytest.mark.parametrize(("content", "lines"), [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\nb", 3)])
def test_measure(content: bytes, lines: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    result = measure(os.fsencode(tmp_path / "file"))
    assert (result["bytes"], result["lines"]) == (len(content), lines)
    assert len(result["blake2b"]) == 64


def test_a_result_is_written_once_whoever_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "results"
    first = Results(path)
    assert [first.add("a", {"n": 1}), first.add("a", {"n": 2}), first.add("b", {})] == [True, False, True]
    first.close()
    path.write_bytes(path.read_bytes() + b'{"job": "c", ')
    second = Results(path)
    assert [second.add("a", {}), second.add("c", {})] == [False, True]
    second.close()
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


@pytest.mark.parametrize(("done", "dead", "expected"), [(1, 0, 4), (2, 1, 6), (10, 0, 8), (10, 10, 8)])
async def test_the_audit_finds_just_what_was_damaged(done: int, dead: int, expected: int) -> None:
    store, clock = MemoryStore(), SystemClock()
    queue = await Queue.open(store=store)
    await queue.enqueue_many("q", [b""] * (done + dead))
    claims = await queue.claim("q", limit=done + dead)
    await queue.ack_many(claims[:done])
    for claim in claims[done:]:
        await queue.nack(claim, "boom", dead=True)
    harm = await damage(store, "q", clock=clock)
    report = await audit(store, clock=clock)
    assert (harm.total, report.difference_count, harm.hides_a_dead_letter) == (expected, expected, dead > 0)
    await queue.close()
