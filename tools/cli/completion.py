"""The command that prints a shell's completion script, and the answer to a shell that completes a command line."""

import os
from enum import StrEnum
from typing import Annotated, Final

import typer

__all__ = ["prepare_completion", "completion"]

_PROGRAMS: Final = ("ledgerq", "rebuild-projections")


class Shell(StrEnum):
    """The shells that have a completion script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    PWSH = "pwsh"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help=f"One of {', '.join(Shell)}.")],
) -> None:
    """Print a script that completes commands and options.

    For bash, `eval "$(ledgerq completion bash)"` in ~/.bashrc; the guide has the others.
    """
    from typer._completion_shared import get_completion_script

    for program in _PROGRAMS:
        script = get_completion_script(prog_name=program, complete_var=_variable(program), shell=shell)
        print(script)


def _variable(program: str) -> str:
    """The environment variable by which a shell requests completions."""
    return f"_{program}_COMPLETE".replace("-", "_").upper()


def prepare_completion(program: str) -> None:
    """Prepare typer to complete, when a shell runs this program for that."""
    if _variable(program) in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
