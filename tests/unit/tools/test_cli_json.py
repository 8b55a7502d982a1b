"""JSON of each command: that it can be asked for, and that errors come as JSON then."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from ledgerq.projections.metrics.catalogue import CATALOGUE
from ledgerq.tools.bench.bench import app as bench_app
from ledgerq.tools.cli.app import _full_app
from tests.support.cli_rig import Cli
from tests.support.programs import ROOT

FOR_PEOPLE = ("demo", "completion")
VALUES = {
    "URL": "ftp://nowhere",
    "QUEUE": "mail",
    "TO": "other",
    "JOB": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "JOB...": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "A": "0",
    "B": "1",
    "DIR": "/dev/null/folder",
    "MODULE:WORKER": "no_such_module:make",
}


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command, by the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif name == "bench":
            yield (*path, name), typer.main.get_command(bench_app)
        elif name not in FOR_PEOPLE:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(_full_app())))
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def refused(words: tuple[str, ...]) -> list[str]:
    """A command line that is well formed, and can't be carried out."""
    argv = list(words)
    for one in COMMANDS[words].params:
        if not one.opts[0].startswith("-") and one.required:
            argv.append(VALUES[one.metavar])
        elif one.required or one.name == "reason":
            argv += [one.opts[0], "why"]
    return [*argv, "--url", "ftp://nowhere"] if words == ("bench",) else argv


@each_command
def test_every_command_speaks_json(words: tuple[str, ...]) -> None:
    assert "--json" in [name for one in COMMANDS[words].params for name in one.opts]


@each_command
def test_with_json_wrong_usage_is_an_object(cli: Cli, words: tuple[str, ...]) -> None:
    error = json.loads(cli.fails(2, *words, "--json", "--no-such-option"))
    assert (error["permanent"], error["exit_code"]) == (True, 2)
    assert "--no-such-option" in error["message"]


@pytest.mark.parametrize("words", [words for words in COMMANDS if words != ("monitoring", "table")], ids=" ".join)
def test_with_json_an_error_is_an_object(cli: Cli, words: tuple[str, ...]) -> None:
    argv = refused(words)
    line = cli.fails(2, *argv)
    error = json.loads(cli.fails(2, *argv, "--json"))
    assert error == {
        "error": "InvalidArgument",
        "message": line.removeprefix("ledgerq: "),
        "permanent": True,
        "exit_code": 2,
    }


def test_what_follows_two_hyphens_is_no_option(cli: Cli) -> None:
    assert cli.fails(3, "stats", "--", "--json").startswith("ledgerq: ")


def test_the_catalogue_of_metrics(cli: Cli) -> None:
    rows = cli.ok("monitoring", "table", "--json").lines
    assert [row["name"] for row in rows] == [*CATALOGUE]
    assert rows[0]["labels"] == ["queue", "kind"]


async def told(*argv: str) -> dict[str, Any]:
    """The first object that a service prints; it is ended then."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ledgerq.tools.cli", *argv, "--json"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            found: dict[str, Any] = json.loads(await process.stdout.readline())
            process.terminate()
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return found


@pytest.mark.proof
async def test_an_exporter_prints_where_it_serves(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    found = await told("exporter", url, "--port", "0")
    assert found["location"] == url
    assert found["metrics_url"].startswith("http://127.0.0.1:")
