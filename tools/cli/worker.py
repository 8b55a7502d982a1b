"""The command `worker`, which runs a worker of the user's own until a signal."""

import inspect
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError, StoreInUse
from ledgerq.tools.console.arguments import AsJson, MetricsHost, Wait, import_object
from ledgerq.tools.console.opening import execute
from ledgerq.tools.console.output import Output

if TYPE_CHECKING:
    from ledgerq.worker.tasks.registry import Tasks
    from ledgerq.worker.worker import Worker

__all__ = ["worker"]

_OPEN_AGAIN_MS: Final = 1000
_CONCURRENCY: Final = 50


def worker(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:WORKER",
            help="A Worker, a function (async or not) that returns one, or Tasks.",
        ),
    ],
    url: Annotated[
        str | None, typer.Argument(metavar="[URL]", help="The store of the jobs, where the first argument names Tasks.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(metavar="N", help="How many tasks run at a time (default 50); only for Tasks.")
    ] = None,
    until_empty: Annotated[
        bool, typer.Option("--until-empty", help="Stop when there is nothing left to do, instead of waiting for jobs.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(metavar="N", help="Serve /metrics, /healthz and /readyz on this port (0: any free one)."),
    ] = None,
    metrics_host: MetricsHost = "127.0.0.1",
    share: Annotated[
        bool, typer.Option("--share", help="Share the store with other processes of this machine; only for Tasks.")
    ] = False,
    wait: Wait = 0.0,
    as_json: AsJson = False,
) -> None:
    """Run a worker until SIGTERM or SIGINT.

    On the first signal it lets running jobs end; a second one ends it at once.

    Modules are looked for in the current folder first. A queue belongs to the event loop that it was opened on, so
    MODULE:WORKER is best an async function that opens the queue, registers the handlers and returns the worker. With
    --wait it is called again each second while the store is in use, so it should open the queue first.

    MODULE:TASKS URL opens the store and runs the jobs of these tasks. With --share several workers, programs that open
    it with share=True, and commands use one store at a time.
    """
    output = Output(as_json=as_json)
    if share and metrics_port is not None:
        raise InvalidArgument("--share goes without --metrics-port: which process has the store's metrics may change")
    making = _made_worker(target, url, concurrency, wait, share=share)
    execute(_worker(making, target, until_empty, metrics_host, metrics_port, output))


async def _worker(
    making: Coroutine[Any, Any, Any],
    target: str,
    until_empty: bool,
    metrics_host: str,
    metrics_port: int | None,
    output: Output,
) -> None:
    found = await making
    if not callable(getattr(found, "run", None)) or not hasattr(found, "queue"):
        raise InvalidArgument(f"{target} is no Worker and returns none, but {type(found).__name__}")
    try:
        async with AsyncExitStack() as serving:
            if metrics_port is not None:
                from ledgerq.worker.metrics.endpoint import Metrics

                metrics = Metrics(found.queue, worker=found)
                serving.callback(metrics.close)
                server = await serving.enter_async_context(metrics.serve(metrics_host, metrics_port))
                output.state(f"metrics at {server.url}/metrics", {"metrics_url": f"{server.url}/metrics"})
            await _run(found, target, until_empty)
    finally:
        await found.queue.close()


async def _run(found: Any, target: str, until_empty: bool) -> None:
    try:
        await found.run(until_empty=until_empty)
    except LedgerError:
        raise
    except Exception as error:  # of what is around its tasks: what handlers raise ends none
        raise InvalidArgument(f"the worker of {target} failed: {type(error).__name__}: {error}") from error


async def _made_worker(target: str, url: str | None, concurrency: int | None, wait_s: float, *, share: bool) -> Any:
    from ledgerq.eventlog.clock import SystemClock, sleep_until
    from ledgerq.worker.tasks.registry import Tasks

    found, clock = import_object(target), SystemClock()
    if isinstance(found, Tasks):
        return await _task_worker(target, found, url, concurrency, wait_s, share=share)
    if url is not None or concurrency is not None or share:
        raise InvalidArgument(
            f"{target} names no Tasks: it opens its store itself, without a URL, --concurrency or --share here"
        )
    over_ms = clock.now_ms() + round(wait_s * 1000)
    while True:
        try:
            made = found() if callable(found) and not hasattr(found, "run") else found
            return await made if inspect.isawaitable(made) else made
        except StoreInUse:
            now_ms = clock.now_ms()
            if now_ms >= over_ms:
                raise
            await sleep_until(clock, min(now_ms + _OPEN_AGAIN_MS, over_ms))
        except LedgerError:
            raise
        except Exception as error:
            # It is the user's code: every error of it is reported on one clear line.
            raise InvalidArgument(f"{target} failed to make a worker: {type(error).__name__}: {error}") from error


async def _task_worker(
    target: str, tasks: "Tasks", url: str | None, concurrency: int | None, wait_s: float, *, share: bool
) -> "Worker":
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.worker import Worker

    if url is None:
        raise InvalidArgument(f"{target} names Tasks: give the store of their jobs, too, as in: worker {target} URL")
    queue = await (
        Queue.open(url, tasks=tasks, wait=wait_s, share=True) if share else Queue.open(url, tasks=tasks, wait=wait_s)
    )
    try:
        return Worker(queue, tasks=tasks, concurrency=_CONCURRENCY if concurrency is None else concurrency)
    except BaseException:
        await queue.close()
        raise
