"""Programs of ledgerq run as child processes: the same ledgerq, connected by pipes, without signals from Ctrl-C."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ledgerq.eventlog.runtime.process import child_environment

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
            env=dict(defaults or {}) | child_environment(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for the program that ends its children
        )
