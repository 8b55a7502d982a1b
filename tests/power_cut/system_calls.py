"""The system calls of a program, recorded by strace and read back one by one: the disk's operations, in order.

strace stops a thread before and after each call, so the order of the lines is one that could have been seen from
outside: what a call's end made possible stands after it.
"""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["Call", "read_calls", "record", "why_not"]

# Everything that opens files, or that changes them or their names. What recorded_disk.py can't model fails there.
_CALLS: Final = (
    *("open", "openat", "openat2", "creat", "close", "close_range", "dup", "dup2", "dup3", "fcntl", "chdir", "fchdir"),
    *("write", "writev", "pwrite64", "pwritev", "pwritev2", "lseek", "truncate", "ftruncate", "fallocate"),
    *("copy_file_range", "sendfile", "splice", "ioctl"),
    *("fsync", "fdatasync", "sync", "syncfs", "sync_file_range"),
    *("rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat"),
    *("mkdir", "mkdirat", "rmdir"),
)
_LIMIT_BYTES: Final = 1 << 24
_LINE: Final = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)")
_RESULT: Final = re.compile(r"\) += (-?\d+|\?)(?: .*)?$")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
# An argument: text, a list of buffers, or anything else up to the next comma.
_ARGUMENT: Final = re.compile(r'"(?:\\x[0-9a-f]{2})*"|\[[^]]*\]|\{[^}]*\}|[^,]+')


class Call(NamedTuple):
    """The beginning or the end of one system call; at the end `result` is there, negative when it failed.

    Arguments are the bytes of a text, or strace's own words.
    """

    thread: int
    name: str
    arguments: tuple[bytes | str, ...]
    result: int | None


@functools.cache
def why_not() -> str:
    """Why nothing can be recorded here; an empty string when it can."""
    strace = shutil.which("strace")
    if strace is None:
        return "strace is not installed"
    tried = subprocess.run([strace, "-f", "--seccomp-bpf", "-o", "/dev/null", "true"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else f"strace can't trace here: {tried.stderr.decode(errors='replace').strip()}"


def record(
    command: Sequence[str], trace: Path | None, *, environment: dict[str, str], limit_s: float, sync_us: int = 0
) -> tuple[int, str]:
    """Run a command and write its calls to the file `trace`, if there is one; each sync then takes `sync_us` longer.

    Returns its exit code, negative for a signal, and what it said on stderr.
    """
    options = ["-f", "--seccomp-bpf", "-qq", "-xx", "-s", str(_LIMIT_BYTES), "-e", f"trace={','.join(_CALLS)}"]
    if sync_us:
        options += ["-e", f"inject=fsync,fdatasync:delay_enter={sync_us}"]
    strace = [] if trace is None else ["strace", *options, "-e", "signal=none", "-o", str(trace)]
    done = subprocess.run(
        [*strace, *command],
        check=False,
        env=environment,
        stdout=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        timeout=limit_s,
    )
    return done.returncode, done.stderr.decode(errors="replace")


def read_calls(trace: Path) -> Iterator[Call]:
    """The beginnings and ends of calls, in the order in which they were seen."""
    begun: dict[int, Call] = {}
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is None:
                continue
            thread, rest = int(found[1]), found[4]
            ended = _RESULT.search(rest)
            if found[3] is not None:
                words = rest[: ended.start()] if ended else rest.removesuffix("<unfinished ...>")
                call = Call(thread, found[3], _arguments(words), None)
                yield call
            else:
                call = begun.pop(thread)
                assert call.name == found[2], line
            if ended is None:
                begun[thread] = call
            elif ended[1] != "?":
                yield call._replace(result=int(ended[1]))


def _arguments(words: str) -> tuple[bytes | str, ...]:
    return tuple(_argument(word.strip()) for word in _ARGUMENT.findall(words) if word.strip())


def _argument(word: str) -> bytes | str:
    if word.startswith("["):
        # The buffers of a writev: only their bytes matter.
        texts = _TEXT.findall(word)
        return b"".join(_bytes(text) for text, _ in texts) if texts else word
    text = _TEXT.fullmatch(word)
    if text is None:
        return word
    assert not text[2], "strace cut something short"
    return _bytes(text[1])


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
