"""Measurements in a process of their own, so that time and memory are theirs alone."""

import asyncio
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

__all__ = ["answer", "peak_mb", "run_child"]

_BYTES_PER_MB: Final = 1_000_000
_BYTES_PER_KIB: Final = 1024
_TIMEOUT_S: Final = 600


async def run_child(module: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """Run a module as a program and return what it answered; raises RuntimeError when it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | (environment or {}),
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the process of {module} {' '.join(arguments)} ended with {process.returncode}")
    return json.loads(output)


def answer(found: object) -> None:
    """Print what such a process found, and end it at once: a runtime that winds down is not to be measured."""
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def peak_mb() -> float:
    """The peak of this process's resident memory in MB of a million bytes, with that of its largest child if any."""
    unit = 1 if sys.platform == "darwin" else _BYTES_PER_KIB
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says is at first that of the process which started this one.
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        own = int(fields["VmHWM"].split()[0]) * _BYTES_PER_KIB
    return (own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit) / _BYTES_PER_MB
