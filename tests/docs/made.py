"""The parts of the pages that are made from the code: tables, drawings, lists of commands.

    python -m tests.docs.made      make them anew, after a change of what they show

A part stands between `<!-- made: NAME -->` and `<!-- /made -->`. A test compares each with what the code makes.
"""

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import typer

from ledgerq.eventlog import errors
from ledgerq.eventlog.codec import EVENT_TYPES
from ledgerq.eventlog.commit import Answers
from ledgerq.eventlog.events import UniqueReleased
from ledgerq.eventlog.facts import Id
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.job import TRANSITIONS, evolve
from ledgerq.projections.metrics.catalogue import markdown as metrics
from ledgerq.tools.cli import app
from ledgerq.worker.engine import decisions, settlement
from ledgerq.worker.engine.commit_rows import index_changes
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.queue import Queue
from ledgerq.worker.remote import service_errors
from tests.docs.pages import ROOT, page_files

__all__ = ["MAKERS", "PART", "fresh"]

PART: Final = re.compile(r"(<!-- made: ([a-z-]+) -->\n)(.*?)(<!-- /made -->\n)", re.DOTALL)


def _first(text: str | None) -> str:
    """The first paragraph of a docstring on one line, for a table's cell."""
    return " ".join((text or "").split("\n\n")[0].split()).replace("|", "\\|")


# ---------------------------------------------------------------------- jobs and events


def states() -> str:
    """The table of transitions as a drawing."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for event, moves in TRANSITIONS.items():
        if event is UniqueReleased:
            continue  # in any state, which stays
        for before, afters in moves.items():
            for after in afters:
                ends = ("[*]" if before == "new" else before, after)
                arrows.setdefault(ends, []).append(_name(event))
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items()]
    return "\n".join([*lines, "    gone --> [*]", "```"]) + "\n"


def _name(event: type[Any]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", event.__name__).lower()


def transitions() -> str:
    """The same as a table."""
    lines = ["| event | from | to |", "|---|---|---|"]
    for event, moves in TRANSITIONS.items():
        lines += [f"| {_name(event)} | {before} | {', '.join(afters)} |" for before, afters in moves.items()]
    return "\n".join(lines) + "\n"


def events() -> str:
    """Every kind of event with its number and fields."""
    lines = []
    for kind, event in EVENT_TYPES.items():
        fields = inspect.get_annotations(event)
        shown = ", ".join(f"`{name}`: {_type(kind)}" for name, kind in fields.items())
        lines += [f"### {event.__name__}", "", f"Kind {kind}, `{_name(event)}`. {_all(event.__doc__)}", "", shown, ""]
    return "\n".join(lines)


def _type(annotation: Any) -> str:
    if annotation is Id:
        return "16 bytes"
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    return re.sub(r"Literal\[(.*)\]", lambda found: found[1].replace("'", "").replace(", ", " or "), text)


def _all(text: str | None) -> str:
    return " ".join((text or "").split())


# ---------------------------------------------------------------------- errors, commands


def error_table() -> str:
    """Every error, with whether the same call can help later, and the exit code of a command that ends by it."""
    lines = ["| error | meaning | permanent | exit code |", "|---|---|---|---|"]
    for error in (getattr(module, name) for module in (errors, service_errors) for name in module.__all__):
        name = error.__name__
        code = app.exit_code(error.__new__(error))
        lines.append(f"| `{name}` | {_first(error.__doc__)} | {'yes' if error.permanent else 'no'} | {code} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Every command with its arguments and options."""
    return "\n".join(_commands(typer.main.get_command(app._full_app()), "ledgerq"))


def _commands(group: Any, path: str) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
            continue
        arguments = [_metavar(one) for one in command.params if not one.opts[0].startswith("-")]
        usage = " ".join([path, name, *arguments])
        yield from (f"### {path} {name}", "", f"`{usage}`", "", _paragraphs(command.help), "")
        options = [one for one in command.params if one.opts[0].startswith("-")]
        if options:
            yield from ("| option | meaning |", "|---|---|")
            yield from (f"| {_option(one)} | {_first(one.help)} |" for one in options)
            yield ""


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\f")[0].split("\n\n"))


def _metavar(argument: Any) -> str:
    text = argument.metavar or argument.name.upper()
    return text if argument.required or text.startswith("[") else f"[{text}]"


def _option(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{name}{value}`" for name in option.opts).replace("|", "\\|")


# ---------------------------------------------------------------------- architecture

_LAYERS: Final = ("eventlog", "projections", "worker", "tools")


def layers() -> str:
    """Which layer really imports which, read from the sources."""
    found: set[tuple[str, str]] = set()
    for layer in _LAYERS:
        for file in (ROOT / layer).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ledgerq."):
                    found.add((layer, (node.module or "").split(".")[1]))
    lines = ["```mermaid", "flowchart RL"]
    lines += [f'    {layer}["{layer}/"]' for layer in _LAYERS]
    lines += [f"    {upper} --> {lower}" for upper, lower in sorted(found) if upper != lower]
    return "\n".join([*lines, "```"]) + "\n"


def sub_packages() -> str:
    """The folders inside the layers, each by the first paragraph of its package."""
    lines = ["| inside | holds |", "|---|---|"]
    for layer in _LAYERS:
        for file in sorted((ROOT / layer).glob("*/__init__.py")):
            lines.append(
                f"| `{layer}/{file.parent.name}/` | {_first(ast.get_docstring(ast.parse(file.read_text('utf-8'))))} |"
            )
    return "\n".join(lines) + "\n"


class Step(NamedTuple):
    """One arrow of the life of a commit: who calls what of whom. `what` is a function of the code."""

    who: str
    whom: str
    what: Callable[..., Any]
    why: str


_LIFE: Final = (
    Step("caller", "Queue", Queue.ack, "the queue is in order"),
    Step("Queue", "decisions", settlement.ack, "the claim is current"),
    Step("decisions", "Queue", decisions.ack, "events, or a refusal"),
    Step("Queue", "state", WriterState.apply, "a new fact"),
    Step("state", "log", EventLog.append, "its place in the open commit"),
    Step("state", "state", evolve, "the job after it"),
    Step("Queue", "log", EventLog.committed, "the caller waits"),
    Step("log", "state", WriterState.fill, "what follows from the commit"),
    Step("state", "state", index_changes, "rows after, less rows before"),
    Step("log", "store", SlateStore.commit, "one write batch, flushed and synced"),
    Step("log", "state", WriterState.committed, "it is durable"),
    Step("log", "caller", Answers.give, "the waiting calls return"),
)


def life() -> str:
    """The life of a commit as a drawing; each arrow names a function that is there."""
    lines = ["```mermaid", "sequenceDiagram"]
    lines += [f"    participant {one}" for one in ("caller", "Queue", "decisions", "state", "log", "store")]
    for who, whom, what, why in _LIFE:
        name = what.__qualname__ if "." in what.__qualname__ else f"{what.__module__.split('.')[-1]}.{what.__name__}"
        lines.append(f"    {who}->>{whom}: {name}: {why}")
    return "\n".join([*lines, "```"]) + "\n"


MAKERS: Final[dict[str, Callable[[], str]]] = {
    "states": states,
    "transitions": transitions,
    "events": events,
    "errors": error_table,
    "commands": commands,
    "layers": layers,
    "sub-packages": sub_packages,
    "life": life,
    "metrics": metrics,
}


def fresh(text: str) -> str:
    """A page's text with each made part as the code makes it."""
    return PART.sub(lambda part: f"{part[1]}{MAKERS[part[2]]()}{part[4]}", text)


def main() -> None:
    """Make all parts anew."""
    for file in page_files():
        text = file.read_text("utf-8")
        if (made := fresh(text)) != text:
            file.write_text(made, "utf-8")
            print(file.relative_to(ROOT))


if __name__ == "__main__":
    main()
