"""The README's table of metrics is the one that the catalogue makes."""

from pathlib import Path

from ledgerq.projections.metrics_catalogue import markdown

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- /metrics -->\n"


def test_the_readme_has_the_table_of_the_code() -> None:
    text = README.read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    found = text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip()
    wanted = markdown().strip()
    assert found == wanted, "put `ledgerq.projections.metrics_catalogue.markdown()` between the two marks"
