"""Checks that a call runs on the event loop and in the process that it must run in."""

import asyncio

from ledgerq.eventlog.errors import WrongLoop, WrongProcess
from ledgerq.eventlog.runtime.process import own_pid

__all__ = ["check_owner", "check_process", "loop_or_none", "running_loop"]


def loop_or_none() -> asyncio.AbstractEventLoop | None:
    """The running event loop, or None where none runs."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def running_loop() -> asyncio.AbstractEventLoop:
    """The running event loop. Raises `WrongLoop` where none runs, under trio for instance, with what to do."""
    loop = loop_or_none()
    if loop is None:
        raise WrongLoop(
            "ledgerq needs asyncio, and no asyncio event loop runs here: call it within a coroutine that asyncio.run() "
            "runs. Under trio, give it a thread: await trio.to_thread.run_sync(asyncio.run, main())"
        )
    return loop


def check_process(what: str, pid: int) -> None:
    """Raise `WrongProcess` in another process than the one that opened `what`: a fork has none of its threads."""
    if own_pid() != pid:
        raise WrongProcess(
            f"{what} was opened in process {pid} and used in its forked child {own_pid()}: open it in the child, or "
            "start children with multiprocessing's spawn method"
        )


def check_owner(what: str, pid: int, loop: asyncio.AbstractEventLoop) -> None:
    """Raise `WrongProcess` or `WrongLoop` in another process or on another loop than those that opened `what`."""
    check_process(what, pid)
    if running_loop() is not loop:
        raise WrongLoop("this queue belongs to another event loop: use it there, or open it anew if that has ended")
