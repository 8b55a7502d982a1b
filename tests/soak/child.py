"""The soak's process under load: it follows orders from stdin, and prints its measurements on stdout.

    python -m tests.soak.child URL RATE REPORT_EVERY

Orders and answers are JSON objects, one a line. Orders: `open` (with `facts`, a file, `seed`, `take_over`), `fence`
(likewise: a second queue is opened on the store while the first one works, which is then abandoned), `lose` (another
process will open the store), `drain` (with `limit_s`), `close`, `end`. Each is answered by `{"done": order, ...}`, or
by `{"failed": why}`. Each `REPORT_EVERY` seconds under load it prints `{"sample": {...}}`.
"""

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ledgerq.eventlog.errors import Fenced, LedgerError
from ledgerq.worker.queue import Queue
from tests.soak.load import OPTIONS, QUEUES, Counts, Load
from tests.soak.meter import Facts, Meter
from tests.soak.watched_queue import WatchedQueue

__all__ = ["Resident", "main"]

_FENCE_LIMIT_S: Final = 30.0
# Log records of single jobs, and of claims and workers that end with a writer: here all of it happens on purpose.
_EXPECTED: Final = ("writer_interrupted", "worker_failed")


class Resident:
    """A queue under load, opened and left again and again."""

    def __init__(self, url: str, *, rate: float, report_every_s: float, say: Callable[[dict[str, Any]], None]) -> None:
        self._url = url
        self._rate = rate
        self._report_every_s = report_every_s
        self._say = say
        self._queue: Queue | None = None
        self._load: Load | None = None
        self._facts: Facts | None = None
        self._sampler: asyncio.Task[None] | None = None

    async def open(self, facts: str, seed: int, take_over: bool = False) -> dict[str, Any]:
        """Open the store and put it under load; reports how long opening took."""
        start_s = time.monotonic()
        self._queue = await Queue.open(
            self._url, default=OPTIONS, queues=QUEUES, projections=[Counts()], take_over=take_over
        )
        took_s = time.monotonic() - start_s
        self._facts = Facts(Path(facts))
        meter = Meter()
        self._load = Load(WatchedQueue(self._queue, self._facts, meter), rate=self._rate, seed=seed)
        self._load.begin()
        self._sampler = asyncio.create_task(self._sample(meter, self._queue))
        return {"open_s": took_s}

    async def fence(self, facts: str, seed: int) -> dict[str, Any]:
        """Open a second queue over the one that works, and abandon that one."""
        before = (self._queue, self._load, self._facts, self._sampler)
        found = await self.open(facts, seed, take_over=True)
        await _abandon(*before)
        return found

    async def lose(self) -> dict[str, Any]:
        """Go on working until another process opens the store."""
        before = (self._queue, self._load, self._facts, self._sampler)
        self._queue = self._load = self._facts = self._sampler = None
        await _abandon(*before)
        return {}

    async def drain(self, limit_s: float) -> dict[str, Any]:
        """Let all jobs come to an end; reports whether they did."""
        assert self._load is not None
        return {"drained": await self._load.drain(limit_s)}

    async def close(self) -> dict[str, Any]:
        """End the load and close the store in good order; reports how long closing took."""
        assert self._load is not None
        assert self._queue is not None
        assert self._facts is not None
        assert self._sampler is not None
        self._sampler.cancel()
        await self._load.stop()
        start_s = time.monotonic()
        await self._queue.close()
        self._facts.close()
        self._queue = self._load = self._facts = self._sampler = None
        return {"close_s": time.monotonic() - start_s}

    async def _sample(self, meter: Meter, queue: Queue) -> None:
        while True:
            await asyncio.sleep(self._report_every_s)
            if queue.failure is None:
                self._say({"sample": {**meter.sample(), "offset": queue.log.next_offset}})


async def _abandon(
    queue: Queue | None, load: Load | None, facts: Facts | None, sampler: "asyncio.Task[None] | None"
) -> None:
    """Wait until a queue that works has noticed that it was fenced, and give back what it holds."""
    assert queue is not None
    assert load is not None
    assert facts is not None
    assert sampler is not None
    async with asyncio.timeout(_FENCE_LIMIT_S):
        failure = await load.failed()
    sampler.cancel()
    if not isinstance(failure, Fenced):
        facts.report([f"! the queue failed with {type(failure).__name__}: {' '.join(str(failure).split())}"])
    await queue.close()
    facts.close()


async def _obey(url: str, rate: float, report_every_s: float) -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    resident = Resident(url, rate=rate, report_every_s=report_every_s, say=_say)
    waiting: asyncio.Task[None] | None = None
    while line := await reader.readline():
        order = json.loads(line)
        name = order.pop("do")
        if name == "end":
            return
        if waiting is not None:
            await waiting
        waiting = asyncio.create_task(_carry_out(resident, name, order))
    # The parent is gone, and with it the reason to go on.
    os._exit(1)


async def _carry_out(resident: Resident, name: str, arguments: dict[str, Any]) -> None:
    try:
        found = await getattr(resident, name)(**arguments)
    except TimeoutError:
        _say({"failed": f"{name}: the queue did not notice within {_FENCE_LIMIT_S:g} s that it was fenced"})
    except LedgerError as error:
        _say({"failed": f"{name}: {type(error).__name__}: {error}"})
    else:
        _say({"done": name, **found})


def _say(news: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(news) + "\n")
    sys.stdout.flush()


def _is_complaint(record: logging.LogRecord) -> bool:
    return not hasattr(record, "ledgerq_job_id") and getattr(record, "ledgerq_event", None) not in _EXPECTED


def main(arguments: list[str]) -> None:
    """Run with these arguments."""
    # What else is logged is a complaint, and the conductor fails the run for it.
    handler = logging.StreamHandler()
    handler.addFilter(_is_complaint)
    logging.basicConfig(handlers=[handler], format="%(levelname)s %(name)s: %(message)s")
    url, rate, report_every_s = arguments
    asyncio.run(_obey(url, float(rate), float(report_every_s)))


if __name__ == "__main__":
    main(sys.argv[1:])
