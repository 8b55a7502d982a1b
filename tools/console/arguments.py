"""The arguments and options that several commands share, and how a text becomes a time or an object."""

import getpass
import importlib
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

import typer

from ledgerq.eventlog.errors import InvalidArgument

__all__ = [
    "AcceptRollback",
    "Actor",
    "AsJson",
    "AsOf",
    "JobId",
    "JobIds",
    "Jobs",
    "MetricsHost",
    "QueueName",
    "Reason",
    "TakeOver",
    "Url",
    "Wait",
    "import_object",
    "parse_as_of",
    "parse_time",
    "system_user",
]

_TAKE_OVER = "Open the store although another process writes it; that one is fenced and stops."
_WAIT = "Wait so long for the process that writes the store to end, instead of refusing at once."

_MAX_OFFSET_DIGITS: Final = 20
_LAST_DAYS: Final = datetime.max - timedelta(days=2)


def system_user() -> str:
    """The name of the user who runs this, for the log."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid {os.getuid()}"


Url = Annotated[str, typer.Argument(metavar="URL", help="file:///folder, a path, s3://bucket/prefix, gs:// or az://")]
QueueName = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, as enqueue gave it.")]
JobIds = Annotated[list[str], typer.Argument(metavar="JOB...", help="The ids of the jobs, as enqueue gave them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one object a line for lists.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        metavar="N|TIME",
        help="How it was after the first N events of the log, or at a time (ISO 8601; local time without a zone).",
    ),
]
Actor = Annotated[
    str, typer.Option(default_factory=system_user, show_default="your user name", help="Who does it, for the log.")
]
Reason = Annotated[str, typer.Option(help="Why, for the log.")]
TakeOver = Annotated[bool, typer.Option("--take-over", help=_TAKE_OVER)]
Wait = Annotated[float, typer.Option("--wait", metavar="SECONDS", min=0.0, help=_WAIT)]
Jobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="Processes that share the work; default: 1, and for a large store one for each of 4 to 8 cores.",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(
        metavar="H", help="Where to listen; there is no authentication, so think before you open it to others."
    ),
]
AcceptRollback = Annotated[
    bool, typer.Option("--accept-rollback", help="Go on although the store lost commits that were durable.")
]


def parse_time(text: str) -> int:
    """An ISO 8601 date or time as ms since the Unix epoch; without a zone it is local time."""
    try:
        return round(_timestamp_s(datetime.fromisoformat(text)) * 1000)
    except (ValueError, OverflowError, OSError) as error:
        raise InvalidArgument(
            f"{text!r} is not a time: write 2026-01-31, 2026-01-31T12:30 or 2026-01-31T12:30:00Z"
        ) from error


def _timestamp_s(moment: datetime) -> float:
    if moment.tzinfo is not None:
        return moment.astimezone(UTC).timestamp()
    if moment < _LAST_DAYS:
        return moment.timestamp()
    # Python finds the zone's offset from a day ahead, and from 3.12 on it refuses a day that no datetime can be.
    return (moment - timedelta(days=2)).timestamp() + timedelta(days=2).total_seconds()


def parse_as_of(text: str) -> tuple[int | None, int | None]:
    """`--as-of` as (offset, None) or (None, ms since the Unix epoch)."""
    if text.isascii() and text.isdigit():
        if len(text) > _MAX_OFFSET_DIGITS:
            raise InvalidArgument(f"--as-of {text[:_MAX_OFFSET_DIGITS]}... is no offset of any log")
        return int(text), None
    try:
        return None, parse_time(text)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"--as-of {text!r} is neither an offset (a whole number) nor a time such as 2026-01-31T12:30"
        ) from error


def import_object(text: str) -> Any:
    """Import what `MODULE:NAME` names; modules in the current folder come first. Raises `InvalidArgument`."""
    module_name, colon, path = text.partition(":")
    if not colon or not module_name or not path:
        raise InvalidArgument(f"{text!r} names no object: write MODULE:NAME, for example app.jobs:worker")
    here = os.getcwd()  # noqa: PTH109 - the import system wants text
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        # It is the user's code: every error of it is reported on one clear line.
        cause = f"{type(error).__name__}: {error}"
        raise InvalidArgument(f"module {module_name!r} can't be imported: {cause}") from error
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise InvalidArgument(f"module {module_name!r} has no {path!r}") from error
    return found
