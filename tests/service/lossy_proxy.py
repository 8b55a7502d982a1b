"""A proxy on the way to a service that loses requests and answers, as planned."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Literal, Self

__all__ = ["LossyProxy", "Loss"]

Loss = Literal["no", "request", "answer"]
"""What is lost of an exchange: nothing, the request, or the answer to a request that was done."""


class LossyProxy:
    """The proxy; `port` is the service's, and can be changed. Exchanges beyond the plan lose nothing."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.plan: deque[Loss] = deque()
        self.lost: list[Loss] = []
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._relay(reader, writer)
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service_reader, service = await asyncio.open_connection("127.0.0.1", self.port)
        loss: Loss | None = None  # of the exchange on its way
        asking = asyncio.ensure_future(reader.read(65536))
        answering = asyncio.ensure_future(service_reader.read(65536))
        try:
            while True:
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                if asking.done():
                    if not (data := asking.result()):
                        return
                    if loss is None:
                        loss = self.plan.popleft() if self.plan else "no"
                    if loss == "request":
                        self.lost.append(loss)
                        return
                    service.write(data)
                    asking = asyncio.ensure_future(reader.read(65536))
                elif answering.done():
                    if not (data := answering.result()):
                        return
                    if loss == "answer":
                        self.lost.append(loss)
                        return
                    loss = None
                    writer.write(data)
                    answering = asyncio.ensure_future(service_reader.read(65536))
        finally:
            for waiting in (asking, answering):
                waiting.cancel()
            await asyncio.gather(asking, answering, return_exceptions=True)
            service.transport.abort()
