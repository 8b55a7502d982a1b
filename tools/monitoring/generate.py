"""The generator of the files for Prometheus and Grafana, and the paths of all of them.

    python -m ledgerq.tools.monitoring.generate      make them anew, after a change of the tables

`ledgerq monitoring export` writes them for users.
"""

from pathlib import Path
from typing import Final

from ledgerq.tools.monitoring.dashboard import dashboard_file
from ledgerq.tools.monitoring.rules import alerts_file, records_file

__all__ = ["FOLDER", "NAMES", "contents", "made"]

FOLDER: Final = Path(__file__).parent / "files"

NAMES: Final = (
    "prometheus.yml",
    "rules/ledgerq_records.yml",
    "rules/ledgerq_alerts.yml",
    "grafana/ledgerq.json",
)
"""The files, by their paths below a folder; the first is written by hand."""


def made() -> dict[str, str]:
    """The files made from the tables, by path."""
    return dict(zip(NAMES[1:], (records_file(), alerts_file(), dashboard_file()), strict=True))


def contents() -> dict[str, str]:
    """The files in the package, by path."""
    return {name: (FOLDER / name).read_text("utf-8") for name in NAMES}


def main() -> None:
    """Make the files anew."""
    for name, text in made().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
