"""The pages of docs/: their examples run, what is made from the code is up to date, and links have targets."""

import re
import tomllib
from pathlib import Path

import pytest

from ledgerq.tools.monitoring.rules import ALERTS, DOCUMENTATION_URL
from tests.docs.made import MAKERS, PART, fresh
from tests.docs.pages import PROJECT, ROOT, Page, page_files, run_page

DOCS = ROOT / "docs"
PAGES = [Page.read(file) for file in page_files()]
RUN = [page for page in PAGES if page.name != "README.md" and page.blocks()]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MADE = {match[2]: page.name for page in PAGES for match in PART.finditer(page.text)}
# Each command, and the Python of each page, is a process of its own: this page is the sample in `make test`.
QUICK = "docs/quickstart.md"


def slug(heading: str) -> str:
    """The anchor that a heading gets, as GitHub and MkDocs make it for plain headings."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


def anchors(page: Page) -> set[str]:
    """The anchors of a page, also those of what mkdocstrings makes below a heading."""
    prose = re.sub(r"^```.*?^```$", "", page.text, flags=re.MULTILINE | re.DOTALL)
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.name == QUICK else [pytest.mark.proof]) for page in RUN],
    ids=lambda page: page.name,
)
def test_all_blocks_of_a_page_come_to_their_end(page: Page, tmp_path: Path) -> None:
    run_page(page.blocks(), tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_block_is_left_out(page: Page) -> None:
    odd = page.odd_fences()
    assert not odd, "\n".join(odd)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_is_made_from_the_code_is_up_to_date(page: Page) -> None:
    assert fresh(page.text) == page.text, f"{page.name} shows what the code was: run python -m tests.docs.made"


def test_everything_that_is_made_is_shown() -> None:
    assert set(MADE) == set(MAKERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_pages_and_headings_that_are_there(page: Page) -> None:
    bad = []
    for target in LINK.findall(page.text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page.name).parent / name if name else ROOT / page.name
        if not file.exists():
            bad.append(f"{page.name}: {target} is not there")
        elif anchor and anchor not in anchors(Page.read(file.resolve())):
            bad.append(f"{page.name}: {target}: no such heading")
    assert not bad, "\n".join(bad)


def test_each_alert_has_its_section_and_leads_there() -> None:
    page = Page.read(DOCS / "operate" / "alerts.md")
    headings = re.findall(r"^## (.+)$", page.text, re.MULTILINE)
    assert headings == [alert.name for alert in ALERTS], "one section an alert, in the order of the table"
    for alert in ALERTS:
        assert alert.runbook_url == f"{DOCUMENTATION_URL}operate/alerts/#{slug(alert.name)}"


def test_the_address_of_the_pages_is_the_same_everywhere() -> None:
    (site_url,) = re.findall(r"^site_url: (\S+)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    assert site_url == DOCUMENTATION_URL == PROJECT["urls"]["Documentation"]


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"^ +- ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))
    there = {file.relative_to(DOCS).as_posix() for file in DOCS.rglob("*.md")}
    numbered = {name for name in there if re.match(r"decisions/\d{4}-", name)}
    assert listed | numbered == there


def test_decisions_are_numbered_without_a_gap_and_listed() -> None:
    files = sorted(file.name for file in (DOCS / "decisions").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in files] == list(range(1, len(files) + 1))
    listed = LINK.findall((DOCS / "decisions" / "index.md").read_text("utf-8"))
    assert [link for link in listed if re.match(r"\d{4}-", link)] == files


def test_the_build_of_the_pages_counts_its_warnings() -> None:
    (command,) = re.findall(r"mkdocs build .*", (ROOT / "Makefile").read_text())
    assert "--strict" in command
    assert "--quiet" not in command, "it hides the warnings before they are counted"


def test_every_dependency_has_its_reason() -> None:
    text = (DOCS / "architecture" / "dependencies.md").read_text("utf-8")
    named = re.compile(r"[\[<>=~! ]")
    runtime = [named.split(line)[0] for line in PROJECT["dependencies"]]
    extras = [named.split(line)[0] for lines in PROJECT["optional-dependencies"].values() for line in lines]
    extras = [name for name in extras if name != "ledgerq" and not re.search(r"^types-|-types$|-stubs$", name)]
    bad = [name for name in runtime if not re.search(rf"^\| `{name}` \| \S", text, re.MULTILINE)]
    bad += [name for name in extras if f"`{name}" not in text]
    assert not bad, f"dependencies.md: no reason given for {bad}"


def test_pyproject_lists_what_builds_the_pages() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert any(line.startswith("mkdocs-material") for line in extras["docs"])
