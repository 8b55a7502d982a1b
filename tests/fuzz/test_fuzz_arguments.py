"""Command lines of any words: an exit code of ours, one line when they are refused, and no other folder touched."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import COMMANDS, arguments, command_line, run_command_line
from tests.support.cli_rig import Cli

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
DIGITS = "9" * 5000


@settings(deadline=None, derandomize=True, max_examples=30, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(st.integers(0, len(COMMANDS) - 1), st.lists(st.binary(max_size=1) | st.binary(max_size=12), max_size=6))
@example(0, [b"\x02", DIGITS.encode()])
@example(2, [b"\x20", b"\x02", DIGITS.encode()])
def test_any_words(command: int, words: list[bytes]) -> None:
    arguments(bytes([command]) + b"\xff".join(words))


def test_the_words_of_a_fuzzer_lead_nowhere_else() -> None:
    for word in (
        b"/etc",
        b"a/b",
        b"..",
        b"../x",
        b"~",
        b"--follow",
        b"-f",
        b"-af",
        b"--projection=os:path",
        b"s3://b/p",
    ):
        assert word.decode() not in command_line(b"\0" + word)
    assert command_line(bytes([COMMANDS.index("worker")]) + b"os:path") == ["worker", "store"]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(capsys, monkeypatch)


@pytest.mark.parametrize(
    "words",
    [
        *(["log", "store", "--from", text] for text in ("-1", "18446744073709551616", DIGITS, "nan", "\udcff", "²")),
        *(["stats", "store", "--as-of", text] for text in ("-1", "18446744073709551616", DIGITS, "", "\udcff", "²")),
        *(["show", "store", ULID, "--as-of", text] for text in (DIGITS, "0001-01-01", "0001-01-01T00:00:00+14:00")),
        *(["show", "store", text] for text in ("", "\udcff", "a\0b", "x" * 5000, ULID + "\n", "8" + "Z" * 25)),
        *(["jobs", "store", text] for text in ("", "\udcff", "a\0b", "a" * 256)),
        *(["jobs", "store", "mail", "--after", text] for text in ("zz", "ff", "\udcff", "")),
        *(["jobs", "store", "mail", "--limit", text] for text in ("0", "-1", DIGITS, "1.5")),
        *(["enqueue", text, "mail", "x"] for text in ("", "\udcff", "a\0b", "s3:x", "memory:///", "file://host/x")),
        *(["enqueue", "store", text, "x"] for text in ("", "\udcff", "a\0b", "a" * 256, "ü" * 128)),
        *(["enqueue", "store", "mail", "x", "--delay", text] for text in ("nan", "inf", "-1", "1e400", "x")),
        *(["enqueue", "store", "mail", "x", "--run-at", text] for text in ("0001-01-01", "now", "", "\udcff")),
        *(["enqueue", "store", "mail", "x", "--priority", text] for text in ("-1", "4294967296", DIGITS, "1.5")),
        *(["enqueue", "store", "mail", "x", "--max-attempts", text] for text in ("0", "1000001", DIGITS)),
        *(["enqueue", "store", "mail", "x", "--unique-key", text] for text in ("", "\udcff", "k" * 1025)),
        *(["enqueue", "store", "mail", "x", "--header", text] for text in ("a", "=a", "\udcff=a", "a=\udcff")),
        ["enqueue", "store", "mail", "x" * (1024 * 1024 + 1)],
        *(["pause", "store", "mail", "--actor", "a", "--reason", text] for text in ("", " ", "r" * 1001)),
        *(["worker", text] for text in ("x", ":", "a:", ":b", "..:x", ".x:y", "\udcff:x", "json:dumps", "os:path")),
        *(["rebuild-projections", "store", "--until", text] for text in ("-1", DIGITS, "x")),
        ["rebuild-projections", "store", "--into", "store"],
        ["audit", "store", "--against", "nothing"],
        ["\udcff"],
        ["--nope"],
    ],
    ids=lambda words: ascii(" ".join(words))[1:40],
)
def test_what_is_refused_is_refused_on_one_line(words: list[str]) -> None:
    assert run_command_line(words) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["enqueue", "store", "mail", "\udcff\udc80"],
        ["enqueue", "store", "mail", "-"],
        ["enqueue", "store", "a" * 255, "x", "--unique-key", "a\0b"],
        ["enqueue", "store", "q/../r", "", "--header", "a=b=c", "--delay", "0"],
        ["pause", "store", "mail", "--actor", "\udcff", "--reason", "\udcff\x1b[31m"],
        ["log", "store", "--json"],
        ["log", "store", "--from", "00000"],
        ["stats", "store", "--as-of", "9999-12-31T23:59:59"],
        ["stats", "store", "--as-of", "0"],
        ["audit", "store", "--deep"],
    ],
    ids=lambda words: ascii(" ".join(words))[1:40],
)
def test_what_is_odd_but_right_is_taken(words: list[str]) -> None:
    assert run_command_line(words) == 0


def test_the_log_is_followed_from_no_offset_that_a_key_can_not_hold(cli: Cli) -> None:
    cli.ok("enqueue", "store", "mail", "x")
    assert "beyond the log" in cli.fails(2, "log", "store", "--from", 2**64)


@pytest.mark.parametrize(
    "words", [["", "x"], ["a\0b", "x"], ["mail", "x", "--delay", "nan"], ["mail", "x", "--job-id", "5"]], ids=repr
)
def test_a_job_that_is_refused_makes_no_store(cli: Cli, tmp_path: Path, words: list[str]) -> None:
    cli.fails(2, "enqueue", "new", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_command_in_a_folder_that_is_gone(cli: Cli, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert "current folder is gone" in cli.fails(2, "enqueue", "store", "mail", "x")
    assert "current folder is gone" in cli.fails(2, "stats", "store")
    os.chdir(tmp_path)
