"""The lanes of a client: no call is left waiting, whatever ends in the same turn of the event loop."""

import asyncio

import pytest

from ledgerq.worker.remote import wire
from ledgerq.worker.remote.lanes import Lanes, Results
from tests.support.loops import settle


class Line:
    """A service that answers when it is told to."""

    def __init__(self) -> None:
        self.sent: list[asyncio.Future[None]] = []

    async def send(self, ops: list[bytes]) -> Results:
        """One request."""
        self.sent.append(asyncio.get_running_loop().create_future())
        await self.sent[-1]
        return [wire.OpResult() for _ in ops], False

    async def answer(self) -> None:
        """Answer all requests at once."""
        for future in self.sent:
            if not future.done():
                future.set_result(None)
        await settle()


async def test_a_call_made_while_all_lanes_end_is_sent() -> None:
    line = Line()
    lanes = Lanes(line.send, lambda: None)

    async def calls(times: int) -> None:
        for _ in range(times):
            await lanes.call([b"x"])

    callers = []
    for times in (2, 1):  # the second one has nothing more to call when both are answered together
        callers.append(asyncio.create_task(calls(times)))
        await settle()
    assert len(line.sent) == 2
    await line.answer()
    assert len(line.sent) == 3
    await line.answer()
    await asyncio.gather(*callers)
    await lanes.close()


async def test_an_error_that_nobody_foresaw_reaches_the_callers_and_the_lane_goes_on() -> None:
    failing = True

    async def send(ops: list[bytes]) -> Results:
        if failing:
            raise RuntimeError("Session is closed")
        return [wire.OpResult() for _ in ops], False

    lanes = Lanes(send, lambda: None)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="Session is closed"):
            await lanes.call([b"x"])
    failing = False
    assert len((await lanes.call([b"x", b"y"]))[0]) == 2
    await lanes.close()
