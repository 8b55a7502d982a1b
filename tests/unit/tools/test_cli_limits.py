"""`ledgerq limits`, `hold` and `audit --limits`, on a store in a folder."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from ledgerq.tools.cli.app import run
from ledgerq.worker.engine.limiting import Limiting
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue

WHY = ["--actor", "ann", "--reason", "because"]


async def worked(url: str, **limits: Any) -> int:
    async with Queue.open(url, default=QueueOptions(**limits)) as queue:
        await queue.enqueue_many("q", [b""] * 5)
        return len(await queue.claim("q", limit=4))


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_limits_are_set_shown_proven_and_taken_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "jobs")
    assert asyncio.run(worked(url, max_running=2)) == 2
    assert run(["limits", url, "q", "--rate", "3/min", "--burst", "3", *WHY]) == 0
    assert "queue q: 3 in 60 s, 3 at once" in capsys.readouterr().err
    assert asyncio.run(worked(url, max_running=2)) == 3
    assert run(["hold", url, "q", "--seconds", "60", *WHY]) == 0
    capsys.readouterr()
    assert run(["limits", url, "--json"]) == 0
    (found,) = lines(capsys)
    assert (found["rate"], found["origin"]) == ([3, 60_000], "operator")
    assert found["held_until_ms"] > 0
    assert asyncio.run(worked(url)) == 0
    assert run(["hold", url, "q", "--release", *WHY]) == 0
    assert run(["limits", url, "q", "--reset", *WHY]) == 0
    capsys.readouterr()
    assert run(["limits", url]) == 0
    assert "no limits" in capsys.readouterr().out
    assert run(["audit", url, "--limits"]) == 0
    assert "5 claims under limits, in 1 queue\nresult  no limit was exceeded" in capsys.readouterr().out
    assert run(["audit", url]) == 0
    assert run(["log", url]) == 0
    assert "held" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["limits", "--rate", "3/min"], ["limits", "q", "--rate", "x", *WHY], ["hold", "q"]])
def test_what_makes_no_sense_is_refused_before_anything_is_opened(tmp_path: Path, wrong: list[str]) -> None:
    assert run([wrong[0], str(tmp_path / "jobs"), *wrong[1:]]) == 2


def test_a_limit_that_was_exceeded_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = str(tmp_path / "jobs")
    monkeypatch.setattr(Limiting, "_room", lambda self, limits: 4)
    assert asyncio.run(worked(url, max_running=3, rate="2/min")) == 4
    assert run(["audit", url, "--limits", "--json"]) == 1
    (found,) = lines(capsys)
    whys = [one["why"] for one in found["exceeded"]]
    assert (found["clean"], found["exceeded_count"], len(whys)) == (False, 3, 3)
    assert "3 were claimed within 0 ms, and 2 may be in 60000 ms" in whys
    assert "4 are claimed at a time, and 3 may be" in whys
