"""`ledgerq exporter`: the metrics of a store that another process writes, from what is durable in it.

The store is opened read-only: nothing is written and no writer is fenced. It is read in the background, at an interval,
so a scrape costs the store nothing and is answered however the store does. What the pages show is of one commit; when
that was read is `ledgerq_read_timestamp_seconds`, and `/readyz` is about whether it is still so.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ledgerq.eventlog.errors import StoreNotFound, StoreUnavailable
from ledgerq.tools.console.arguments import AsJson, MetricsHost, Url
from ledgerq.tools.console.opening import execute, refuse_memory
from ledgerq.tools.console.output import Output

if TYPE_CHECKING:
    from ledgerq.tools.exporter.follower import Follower

__all__ = ["exporter"]

# Beside the worker, whose metrics are on the port before.
_DEFAULT_PORT: Final = 9465
_DEFAULT_INTERVAL_S: Final = 5.0


def exporter(
    url: Url,
    port: Annotated[int, typer.Option(metavar="N", help="The port to serve on (0: any free one).")] = _DEFAULT_PORT,
    host: MetricsHost = "127.0.0.1",
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", help="How often the store is read.")
    ] = _DEFAULT_INTERVAL_S,
    as_json: AsJson = False,
) -> None:
    """Serve a store's metrics, without its writer.

    /metrics, /healthz and /readyz, until SIGTERM or SIGINT. The store is only read: its writer is not disturbed, and
    need not run. A store that is not there yet, or can't be reached, is waited for.
    """
    refuse_memory(url)
    execute(_export(url, host, port, interval, Output(as_json=as_json)))


async def _export(url: str, host: str, port: int, interval_s: float, output: Output) -> None:
    from prometheus_client.registry import CollectorRegistry

    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.tools.exporter.follower import Follower
    from ledgerq.worker.metrics.asgi import MetricsApp
    from ledgerq.worker.metrics.server import start_server
    from ledgerq.worker.signals import listen

    stop = asyncio.Event()
    follower = Follower(url, clock=SystemClock(), interval_s=interval_s)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(follower)
    async with AsyncExitStack() as ending:
        ending.callback(listen(stop.set))
        server = await start_server(MetricsApp(registry, follower.reasons), host, port)
        ending.push_async_callback(follower.close)
        ending.push_async_callback(server.close)
        at = f"{server.url}/metrics"
        output.state(f"metrics of {url} at {at}", {"location": url, "metrics_url": at})
        following = asyncio.create_task(_follow(follower, output), name="ledgerq-follow")
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            for task in (following, stopping):
                task.cancel()
            await asyncio.gather(following, stopping, return_exceptions=True)


async def _follow(follower: "Follower", output: Output) -> None:
    """Read the store again and again. An error that waiting can't mend (a wrong URL) ends the program at the start."""
    try:
        await follower.refresh()
    except (StoreNotFound, StoreUnavailable) as error:
        output.state(f"not read yet, trying again: {error}", {"readable": False, "reason": str(error)})
    was_readable = follower.reason is None
    while True:
        await follower.pause()
        await follower.try_refresh()
        if (follower.reason is None) != was_readable:
            was_readable = not was_readable
            text = "the store is read again" if was_readable else f"trying again: {follower.reason}"
            output.state(text, {"readable": was_readable, "reason": follower.reason})
