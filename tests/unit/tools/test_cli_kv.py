"""`ledgerq kv`: keys in pages, a value, and what is left of an older one."""

import asyncio
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import BASE_MS, Cli


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def test_keys_and_values_are_shown(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")

    async def fill() -> None:
        async with Queue.open(url, clock=ManualClock(BASE_MS), entropy=SeededEntropy(2)) as queue:
            for value in (b"one", b"two"):
                async with queue.transaction() as t:
                    t.kv.set("a/1", value)
                    t.kv.set("b", b"\xff" + value)

    asyncio.run(fill())
    assert cli("kv", url).out.splitlines() == [
        "key  version  bytes",
        "a/1        3      3",
        "b          4      4",
        "2 keys",
    ]
    assert cli("kv", url, "--limit", "1").out.splitlines()[-1] == "1 key, and there are more: see --limit"
    assert cli("kv", url, "--prefix", "b", "--json").out == '{"key":"b","version":4,"value_bytes":4}\n'
    assert cli("kv", url, "a/1").out == "two\n"
    assert cli("kv", url, "b").out == "base64 /3R3bw==\n"
    older = cli("kv", url, "a/1", "--as-of", "3")
    assert older.out.startswith("version 1, digest ")
    assert older.out.endswith(": overwritten or deleted since, and not kept\n")
    assert '"value":null' in cli("kv", url, "a/1", "--as-of", "3", "--json").out
    for wrong in (("nope",), ("a/1", "--as-of", "1"), ("--as-of", "3")):
        assert cli("kv", url, *wrong).code == 2
    log = cli("log", url).out
    assert "kv-set" in log
    assert "key 'a/1', 24 bytes of salt and value" in log
