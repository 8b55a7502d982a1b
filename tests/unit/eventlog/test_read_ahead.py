"""Reading ahead: the same pages in the same order, one of them early, and nothing left behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from ledgerq.eventlog.read_ahead import read_ahead
from ledgerq.eventlog.store import Row

PAGES: list[list[Row]] = [[(b"a", b"")], [(b"b", b"")], [(b"c", b"")]]


class Scan:
    """Pages, and how many of them were asked for; `fails` is raised after the last one."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.asked = 0
        self.has_ended = False
        self._fails = fails

    async def pages(self) -> AsyncIterator[list[Row]]:
        try:
            for page in PAGES:
                self.asked += 1
                yield page
            if self._fails is not None:
                raise self._fails
        finally:
            self.has_ended = True


async def test_each_page_is_asked_for_while_the_one_before_is_worked_on() -> None:
    scan = Scan()
    seen = [(page, scan.asked) async for page in read_ahead(scan.pages())]
    assert seen == [(PAGES[0], 2), (PAGES[1], 3), (PAGES[2], 3)]


async def test_what_a_scan_raises_is_raised_after_the_pages_before() -> None:
    seen: list[list[Row]] = []
    with pytest.raises(ValueError, match="damaged"):
        async for page in read_ahead(Scan(ValueError("damaged")).pages()):
            seen.append(page)
    assert seen == PAGES


async def test_a_caller_that_leaves_early_leaves_no_task_and_no_open_scan() -> None:
    scan = Scan()
    async with aclosing(read_ahead(scan.pages())) as pages:
        async for _ in pages:
            break
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert scan.has_ended
