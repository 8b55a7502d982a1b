"""The command that prints what a shell needs to complete command lines. Typer makes it, and answers shells that ask."""

import os
from enum import StrEnum
from typing import Annotated, Final

import typer

__all__ = ["answer_a_shell", "completion"]

_PROGRAMS: Final = ("ledgerq", "rebuild-projections")


class Shell(StrEnum):
    """The shells that can be taught."""

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
    """The variable in which a shell asks."""
    return f"_{program}_COMPLETE".replace("-", "_").upper()


def answer_a_shell(program: str) -> None:
    """Make typer ready to answer, when it is a shell that runs this program."""
    if _variable(program) in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
