"""Shells complete command lines: what they are given for it, and what they are answered."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli_rig import Cli
from tests.support.programs import ROOT


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.mark.proof
def test_bash_completes_commands_and_options(cli: Cli, tmp_path: Path) -> None:
    program = tmp_path / "ledgerq"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m ledgerq.tools.cli "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script").write_text(cli.ok("completion", "bash").out)

    def completed(*words: str) -> set[str]:
        line = f'source "$1"; COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _ledgerq_completion "$2"'
        argv = ["bash", "-c", line + '; printf "%s\\n" "${COMPREPLY[@]}"', "-", str(tmp_path / "script"), str(program)]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
        assert ran.stderr == ""
        return set(ran.stdout.split())

    assert completed("ledgerq", "re") == {"requeue", "resume", "receipt", "rebuild-projections"}
    assert completed("ledgerq", "stats", "--a") == {"--as-of"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "pwsh"])
def test_every_shells_script_is_for_both_programs(cli: Cli, shell: str) -> None:
    script = cli.ok("completion", shell).out
    for variable in ("_LEDGERQ_COMPLETE", "_REBUILD_PROJECTIONS_COMPLETE"):
        assert variable in script


def test_an_unknown_shell_is_refused(cli: Cli) -> None:
    assert "bash" in cli.fails(2, "completion", "tcsh")
