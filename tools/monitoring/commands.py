"""`ledgerq monitoring`: the files for Prometheus and Grafana, and the table of all metrics."""

from pathlib import Path
from typing import Annotated

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.console.arguments import AsJson
from ledgerq.tools.console.output import Output

__all__ = ["export", "monitoring", "table"]


def monitoring() -> None:
    """Files for Prometheus and Grafana."""


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; it is made if it is not there.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write rules, an example configuration and the dashboard.

    Recording and alerting rules and an example prometheus.yml for Prometheus, and a dashboard that Grafana imports as
    it is. What is there already and differs is left alone, all of it, unless --force is given.
    """
    from ledgerq.tools.monitoring.generate import contents

    output = Output(as_json=as_json)
    try:
        written = _write(folder, contents(), force)
    except OSError as error:
        where = folder if error.filename is None else error.filename
        raise InvalidArgument(f"{where} can't be written: {error.strerror or error}; name another folder") from error
    if as_json:
        output.json({"folder": str(folder), "files": written})
    else:
        for name in written:
            output.line(str(folder / name))


def _write(folder: Path, texts: dict[str, str], force: bool) -> list[str]:
    """Write all of them or, when one is in the way, none."""
    differing = [name for name, text in texts.items() if (folder / name).exists() and _differs(folder / name, text)]
    if differing and not force:
        raise InvalidArgument(
            f"{', '.join(str(folder / name) for name in differing)}: there already, and different; "
            "name another folder, or overwrite with --force"
        )
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return [*texts]


def _differs(path: Path, text: str) -> bool:
    return path.read_bytes() != text.encode()


def table(as_json: AsJson = False) -> None:
    """Print all metrics as a table.

    It is Markdown: name, type, labels, where it comes from, what it means, and what to do about it.
    """
    from ledgerq.projections.metrics.catalogue import CATALOGUE, markdown

    output = Output(as_json=as_json)
    if as_json:
        for spec in CATALOGUE.values():
            output.json(spec._asdict())
        return
    for line in markdown().splitlines():
        output.line(line)
