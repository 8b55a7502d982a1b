"""The process's id, cheap enough for each call, and its identity, which no other process has.

A process id is used again, and another machine or container has the same ones. The identity of a process on Linux is
the boot of its machine, its process namespace, its id there, and when it was started.
"""

import os
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["child_environment", "has_ended", "own_identity", "own_pid", "package_version"]

_pid = [os.getpid()]


def own_pid() -> int:
    """The id of this process, also in one that was forked off another."""
    return _pid[0]


def _forked() -> None:
    _pid[0] = os.getpid()


os.register_at_fork(after_in_child=_forked)


@cache
def package_version(name: str = "ledgerq") -> str:
    """The version of an installed distribution: our own, or the one of that name."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "0+unknown"


def child_environment() -> dict[str, str]:
    """This process's environment, by which a child finds the same ledgerq, also from a clone that is not installed."""
    home = Path(str(sys.modules["ledgerq"].__file__)).absolute().parents[1]
    before = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if home.name not in ("site-packages", "dist-packages"):
        before.append(str(home))
    return os.environ | {"PYTHONPATH": os.pathsep.join(before)}


def own_identity() -> str:
    """The identity that no other process has; empty where the system doesn't give one."""
    return _identity(os.getpid())


def has_ended(identity: str) -> bool:
    """Whether the process that had this identity is surely gone: False also for one that can't be seen from here."""
    parts = identity.split(":")
    if len(parts) != 4 or not parts[2].isdigit() or not parts[3].isdigit():
        return False
    own = own_identity().split(":")
    if parts[:2] != own[:2]:
        # Processes of another machine, boot or container can't be checked.
        return False
    pid = int(parts[2])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    # Its id may be another process's now. One that has ended and was not yet waited for writes nothing either.
    now, state = _identity(pid), _stat(pid)[:1]
    return bool(now) and (now != identity or state in (["Z"], ["X"]))


def _identity(pid: int) -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    fields = _stat(pid)
    return f"{boot}:{namespace}:{pid}:{fields[19]}" if len(fields) > 19 else ""


def _stat(pid: int) -> list[str]:
    """The fields in /proc of a process from its state on: field 3 in proc(5), so that [19] is field 22, its start."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    # The program's name before it may hold anything, also spaces and parentheses.
    return text.rpartition(")")[2].split()
