"""Objects of a store harmed in every way: unharmed, rebuilt exactly, or refused by name; never a wrong answer.

A sample of the matrix that has each kind of object with each kind of damage in it, and each fifth byte of one store's
newest manifest; in `make test`, some of these and each 900th byte. The whole matrix runs by hand:
python -m tests.damage.matrix --all
"""

import asyncio
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledgerq.eventlog.log import LogReader
from tests.damage.matrix import (
    Case,
    Result,
    all_cases,
    build_stores,
    run_cases,
    run_commands,
    sample_of,
    scratch_folder,
)

JOBS = 2
MAX_RSS_KIB = 400 * 1024
# No multiple of the sizes of a manifest's fields, so that each place within them has its turn.
BYTES_APART = 5
KINDS = {"manifest", "wal", "compacted", "compactions", "gc", "anchor", "store"}
FOLDER = re.compile(r"/\S*/(scratch|commands)-\d+/\w+-\d+")


@pytest.fixture(scope="module")
def root() -> Iterator[Path]:
    """The undamaged stores."""
    with tempfile.TemporaryDirectory(prefix="ledgerq-damage-", dir=scratch_folder()) as name:
        asyncio.run(build_stores(Path(name)))
        yield Path(name)


def none_is_wrong(results: list[Result]) -> None:
    wrong = [result for result in results if result.outcome == "wrong"]
    assert not wrong, f"{len(wrong)} of {len(results)} cases:\n" + "\n".join(result.describe() for result in wrong[:5])


@pytest.mark.proof
async def test_there_is_every_kind_of_object_with_every_damage(root: Path) -> None:
    cases = all_cases(root)
    assert {case.kind for case in cases} == KINDS
    assert len({case.name for case in cases if not case.is_newest_byte}) == sum(not c.is_newest_byte for c in cases)
    damages = {(case.kind, case.damage) for case in cases}
    assert {(case.kind, case.damage) for case in sample_of(cases, each=1, every_byte_of="")} == damages
    assert len(damages) == 5 * 8 + 8 + 1
    for folder in ("crashed", "closed"):
        manifest = max((root / folder / "manifest").iterdir())
        bytes_ = [c.argument // 8 for c in cases if c.is_newest_byte and c.store == folder]  # type: ignore[operator]
        assert bytes_ == list(range(manifest.stat().st_size))


async def test_some_damages_are_harmless_or_mended_or_refused_by_name(root: Path) -> None:
    results = await run_cases(root, [*few(root)[9::16], *newest_bytes(root)[900::1800]], jobs=1)
    none_is_wrong(results)
    assert "unharmed" in {result.outcome for result in results}
    assert max(result.peak_rss_kib for result in results) < MAX_RSS_KIB


@pytest.mark.proof
async def test_each_damage_is_harmless_or_mended_or_refused_by_name(root: Path) -> None:
    results = await run_cases(root, sample_of(all_cases(root), each=1, every_byte_of=""), jobs=JOBS)
    none_is_wrong(results)
    assert {result.outcome for result in results} >= {"unharmed", "healed", "rebuilt", "salvaged"}
    assert max(result.peak_rss_kib for result in results) < MAX_RSS_KIB


@pytest.mark.proof
async def test_no_byte_of_the_newest_manifest_leads_to_a_wrong_answer(root: Path) -> None:
    results = await run_cases(root, newest_bytes(root)[::BYTES_APART], jobs=JOBS)
    none_is_wrong(results)
    assert {result.outcome for result in results} <= {"unharmed", "healed", "salvaged"}
    assert max(result.peak_rss_kib for result in results) < MAX_RSS_KIB


def newest_bytes(root: Path) -> list[Case]:
    """Each byte of one store's newest manifest."""
    return [case for case in all_cases(root) if case.is_newest_byte and case.store == "closed"]


def few(root: Path) -> list[Case]:
    """One case of each kind of object and each store."""
    cases = sample_of(all_cases(root), each=1, every_byte_of="")
    return list({(case.store, case.kind): case for case in cases}.values())


@pytest.mark.proof
async def test_a_process_that_has_seen_other_stores_says_the_same_as_a_new_one(root: Path) -> None:
    cases = few(root)

    def told(results: list[Result]) -> list[tuple[str, dict[str, str]]]:
        return [(r.outcome, {step: FOLDER.sub("", text) for step, text in r.said.items()}) for r in results]

    assert told(await run_cases(root, cases, jobs=1)) == told(await run_cases(root, cases, jobs=JOBS, fresh=True))


@pytest.mark.proof
async def test_the_command_line_says_it_on_one_line(root: Path) -> None:
    none_is_wrong(await run_commands(root, few(root), jobs=JOBS))


@pytest.mark.proof
async def test_the_judge_finds_a_tail_that_is_passed_over(root: Path, tmp_path: Path) -> None:
    """The same child on a ledgerq that does not check its anchor: what it finds is what the anchor is for."""
    cases = [case for case in all_cases(root) if case.kind == "store"]
    patch = (
        "from ledgerq.eventlog.log import LogReader\n"
        "async def no(self, anchor, **more): pass\n"
        "LogReader.check_anchor = no\n"
    )
    results = await run_cases(root, cases, jobs=1, before=patch)
    assert [result.outcome for result in results] == ["wrong"] * len(cases)
    assert LogReader.check_anchor.__name__ == "check_anchor"
