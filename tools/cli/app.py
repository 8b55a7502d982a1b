"""The command line: `ledgerq COMMAND`, and `rebuild-projections`. This file puts the commands together.

The commands are in read.py, diff.py and top.py (reading), operate.py, bulk.py and schedules.py (changing), worker.py
(running jobs), repair.py (auditing and rebuilding), trust.py and witness.py (receipts), doctor/doctor.py. Here is what
they share: how an error becomes one line and an exit code.

    0  fine        1  found something: differences, no such job, a log that was changed or lost its end
    2  usage       3  the store can't be read or written        4  salvaged, but something promised was lost
    5  another process writes the store: later, perhaps         70  a bug        130  stopped by Ctrl-C

With --json an error is one object on stderr instead of a line: `error` (the class), `message`, `permanent` (whether the
same call can ever work without a change), `exit_code`; of a store in use `host`, `pid` and `since_ms` too.
"""

import contextlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ledgerq.eventlog import errors
from ledgerq.eventlog.runtime.redaction import redact_urls
from ledgerq.tools.cli import (
    bulk,
    completion,
    diff,
    limits,
    operate,
    read,
    repair,
    schedules,
    serve,
    top,
    trust,
    values,
    witness,
    worker,
)
from ledgerq.tools.console.opening import ClosedPipe, execute
from ledgerq.tools.console.output import printable, rich_console
from ledgerq.tools.doctor import doctor
from ledgerq.tools.exporter import exporter
from ledgerq.tools.monitoring import commands

__all__ = ["exit_code", "main", "rebuild_main", "run"]

FOUND: Final = 1
USAGE: Final = 2
UNREADABLE: Final = 3
IN_USE: Final = 5
BUG: Final = 70
INTERRUPTED: Final = 130

_FINDINGS: Final = (
    errors.JobNotFound,
    errors.ScheduleNotFound,
    errors.InvalidState,
    errors.DuplicateJobId,
    errors.UniqueKeyHeld,
    errors.ClaimLost,
    errors.PayloadMissing,
    errors.LogCorrupt,
    errors.LogRolledBack,
    errors.ProjectionDrift,
    errors.TreeForked,
    errors.NotPublished,
    errors.ProofRefused,
)
# What the parser raises for bad usage: typer shows only this one of its tree.
_PARSER_ERROR: Final[Any] = typer.BadParameter.__mro__[2]
_DEBUG: Final = "LEDGERQ_DEBUG"


def exit_code(error: BaseException) -> int:
    """The exit code of a program that an error ends."""
    if isinstance(error, errors.InvalidArgument | _PARSER_ERROR):
        return USAGE
    if isinstance(error, _FINDINGS):
        return FOUND
    if isinstance(error, errors.StoreInUse):
        return IN_USE
    if isinstance(error, errors.LedgerError):
        return UNREADABLE
    return BUG


def _markup() -> Any:
    """The markup of help texts, which are coloured for people at a terminal only."""
    return "rich" if sys.stdout.isatty() else None


def _new_app() -> typer.Typer:
    return typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=_markup(),
        context_settings={"help_option_names": ["--help", "-h"]},
    )


def _version(wanted: bool) -> None:
    if wanted:
        from ledgerq.eventlog.runtime.process import package_version

        print(f"ledgerq {package_version()}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Look into, operate, audit and repair the job queues of a ledgerq store.

    Exit codes: 0 fine, 1 found something, 2 wrong usage, 3 the store can't be read, 4 salvaged with losses,
    5 another process writes it.
    """
    if context.invoked_subcommand is None:
        print(context.get_help(), file=sys.stderr)
        raise typer.Exit(USAGE)


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Files to work on; without it, Python's standard library."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the store there, to look at it afterwards.")] = False,
) -> None:
    """Watch the queue work, break and be mended.

    Real work goes through a queue, a worker is killed, an index is damaged, found, and rebuilt: in under a minute.
    """
    execute(_demo(folder, keep))


async def _demo(folder: Path | None, keep: bool) -> int:
    from ledgerq.tools.demo.demo import run_demo

    return await run_demo(folder, rich_console(), keep=keep)


def bench(context: typer.Context) -> None:
    """Measure throughput and latency on this machine."""
    from ledgerq.tools.bench.bench import app

    command = typer.main.get_command(app)
    code = command.main(args=context.args, prog_name=context.command_path, standalone_mode=False)
    raise typer.Exit(code if isinstance(code, int) else 0)


def _full_app() -> typer.Typer:
    app = _new_app()
    app.callback(invoke_without_command=True)(_root)
    app.command()(demo)
    app.command()(read.stats)
    app.command()(read.jobs)
    app.command()(top.top)
    app.command()(operate.enqueue)
    app.command()(read.show)
    app.command()(worker.worker)
    app.command()(serve.serve)
    app.command()(read.history)
    app.command()(read.log)
    app.command()(diff.diff)
    app.command()(repair.audit)
    app.command()(operate.requeue)
    app.command()(operate.cancel)
    app.command()(bulk.dead)
    app.command("cancel-all")(bulk.cancel_all)
    app.command()(bulk.move)
    app.command()(schedules.schedules)
    app.command()(values.kv)
    app.command()(operate.pause)
    app.command()(operate.resume)
    app.command()(limits.limits)
    app.command()(limits.hold)
    app.command()(exporter.exporter)
    app.add_typer(_monitoring_app(), name="monitoring")
    for command in (trust.keygen, trust.publish, trust.receipt, trust.verify, witness.witness):
        app.command()(command)
    app.command("doctor")(doctor.doctor)
    passed_on = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(context_settings=passed_on)(bench)
    app.command("rebuild-projections")(repair.rebuild_projections)
    app.command()(completion.completion)
    return app


def _monitoring_app() -> typer.Typer:
    app = _new_app()
    app.callback()(commands.monitoring)
    app.command()(commands.export)
    app.command()(commands.table)
    return app


def _rebuild_app() -> typer.Typer:
    app = _new_app()
    app.command()(repair.rebuild_projections)
    return app


def run(argv: Sequence[str], *, program: str = "ledgerq") -> int:
    """Run a command line (without the program's name) and return its exit code; what went wrong is on stderr."""
    code = _outcome(argv, program)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has gone: what is still buffered must not fail once more when Python exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _outcome(argv: Sequence[str], program: str) -> int:
    app = _rebuild_app() if program == "rebuild-projections" else _full_app()
    completion.prepare_completion(program)
    try:
        command = typer.main.get_command(app)
        code = command.main(args=list(argv), prog_name=program, standalone_mode=False)
    except ClosedPipe:
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except Exception as error:
        options = argv[: argv.index("--")] if "--" in argv else argv
        return _failed(program, error, as_json="--json" in options)
    return code if isinstance(code, int) else 0


def _failed(program: str, error: Exception, *, as_json: bool) -> int:
    """Print an error on one line, and return its exit code."""
    if _DEBUG in os.environ:
        traceback.print_exception(error)
    code = exit_code(error)
    if code == BUG:
        text = f"internal error: {type(error).__name__}: {error} (set {_DEBUG}=1 for the traceback)"
    elif isinstance(error, _PARSER_ERROR):
        context = getattr(error, "ctx", None)
        path = program if context is None else context.command_path
        text = f"{error.format_message()} (see {path} --help)"
    else:
        text = str(error)
    # The parser repeats arguments as they are.
    text = redact_urls(" ".join(text.split()))
    print(json.dumps(_as_json(error, text, code)) if as_json else f"{program}: {printable(text)}", file=sys.stderr)
    return code


def _as_json(error: Exception, text: str, code: int) -> dict[str, Any]:
    permanent = not isinstance(error, errors.LedgerError) or error.permanent
    fields: dict[str, Any] = {"error": type(error).__name__, "message": text, "permanent": permanent, "exit_code": code}
    if isinstance(error, errors.StoreInUse):
        fields |= {"host": error.host, "pid": error.pid, "since_ms": error.since_ms}
    return fields


def main() -> None:
    """The console script `ledgerq`."""
    sys.exit(_program("ledgerq"))


def rebuild_main() -> None:
    """The console script `rebuild-projections`."""
    sys.exit(_program("rebuild-projections"))


def _program(name: str) -> int:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.captureWarnings(True)
    return run(sys.argv[1:], program=name)


if __name__ == "__main__":
    main()
