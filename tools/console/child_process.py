"""Programs of ledgerq run as child processes: the same ledgerq, connected by pipes, without signals from Ctrl-C."""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["start_module"]


async def start_module(
    name: str, arguments: Sequence[str], *, folder: Path, errors: Path, defaults: Mapping[str, str] | None = None
) -> asyncio.subprocess.Process:
    """Start the module `name` (in full) in `folder`, with pipes for input and output; stderr is added to `errors`.

    `defaults`: environment variables for what this process's own environment leaves open. The folder should hold no
    Python files, so that none of a user's own shadows a module.
    """
    with errors.open("ab") as stderr:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            name,
            *arguments,
            cwd=folder,
            env=dict(defaults or {}) | _environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the program that ends its children
        )


def _environment() -> dict[str, str]:
    """This process's environment, by which a child finds the same ledgerq, also from a clone that is not installed."""
    home = Path(str(sys.modules["ledgerq"].__file__)).absolute().parents[1]
    before = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if home.name not in ("site-packages", "dist-packages"):
        before.append(str(home))
    return os.environ | {"PYTHONPATH": os.pathsep.join(before)}
