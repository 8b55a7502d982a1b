"""The demo: real files go through a real queue, a worker is killed, an index is falsified, and all of it is repaired.

    ledgerq demo [DIR]        python -m ledgerq.tools.demo [DIR] [--keep]

Here is its beginning and its end. story.py has the steps: each one is checked, and the demo fails when one did not come
out as it should. sample_files.py is the work, worker_program.py the process that is killed, damage.py the forgery,
screen.py the output.
"""

import asyncio
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.locations import parse_location
from ledgerq.tools.console.output import printable, rich_console
from ledgerq.tools.demo.sample_files import find_files
from ledgerq.tools.demo.screen import Screen
from ledgerq.tools.demo.story import Story
from ledgerq.tools.demo.worker_process import DemoFailed

__all__ = ["main", "run_demo"]

_FAILED: Final = 1
_USAGE: Final = 2
_INTERRUPTED: Final = 130


async def run_demo(folder: Path | None, console: Console, *, keep: bool = False) -> int:
    """Run the demo with the files of `folder` (None: Python's standard library); returns the exit code.

    0 when each step came out as it should, else 1 with one line on stderr. The store is removed at the end, unless
    `keep` or something went wrong. Raises `InvalidArgument` for a folder without files.
    """
    files = find_files(folder)
    begin_s = time.monotonic()
    scratch: Path | None = None
    screen = Screen(console)
    try:
        scratch = _new_scratch()
        await Story(files, scratch, screen, program=_program()).tell()
    except InvalidArgument:
        _remove(scratch)
        raise
    except (DemoFailed, LedgerError, OSError) as error:
        kept = "" if scratch is None else f" (what there is was kept in {scratch})"
        print(f"ledgerq: the demo failed: {printable(str(error))}{kept}", file=sys.stderr)
        return _FAILED
    except BaseException:
        _remove(scratch)
        raise
    screen.step("Done")
    screen.good(f"Everything came out as it should, in {time.monotonic() - begin_s:.1f} s.")
    if keep:
        screen.say(f"The store and the results are in {scratch}: try the commands above, and remove it when you like.")
    else:
        _remove(scratch)
        screen.say("The store was removed. To keep it, and to try the commands above on it:")
        again = f"{_program()} demo --keep"
        screen.command(again + (f" {shlex.quote(str(folder))}" if folder is not None else ""))
    return 0


def _new_scratch() -> Path:
    """A temporary folder that can hold a store."""
    scratch = Path(tempfile.mkdtemp(prefix="ledgerq-demo-"))
    try:
        parse_location((scratch / "store").as_uri())
    except InvalidArgument as error:
        _remove(scratch)
        raise InvalidArgument(f"{error}; TMPDIR=FOLDER names the folder for temporary files") from error
    return scratch


def _program() -> str:
    """The program's name as the user called it: for lines that can be copied."""
    called = Path(sys.argv[0])
    return _short(str(called)) if called.name == "ledgerq" else f"{_short(sys.executable)} -m ledgerq.tools.cli"


def _short(program: str) -> str:
    """The program's name if it is found by that, else its path, relative to the current folder when it lies below."""
    path, found = Path(program).absolute(), shutil.which(Path(program).name)
    if found is not None and Path(found).absolute() == path:
        return path.name
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _remove(scratch: Path | None) -> None:
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)


def _main(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="Files to work on; without it, Python's standard library.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the store there, to look at it afterwards.")] = False,
) -> None:
    """Watch the queue work, break and be mended."""
    try:
        code = asyncio.run(run_demo(folder, rich_console(), keep=keep))
    except InvalidArgument as error:
        print(f"ledgerq: {printable(str(error))}", file=sys.stderr)
        code = _USAGE
    except KeyboardInterrupt:
        code = _INTERRUPTED
    raise typer.Exit(code)


def main() -> None:
    """Run with the arguments of the process."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(_main)
    app(prog_name="python -m ledgerq.tools.demo")


if __name__ == "__main__":
    main()
