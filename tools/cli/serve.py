"""The command that serves a queue over HTTP, until SIGTERM or SIGINT."""

import asyncio
import tomllib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.tools.console.arguments import AcceptRollback, AsJson, TakeOver, Url, Wait
from ledgerq.tools.console.opening import Access, execute, opened_store
from ledgerq.tools.console.output import Output

if TYPE_CHECKING:
    from ledgerq.worker.options import QueueOptions

__all__ = ["serve"]


def serve(
    url: Url,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where to listen (port 0: any free one).")] = (
        "127.0.0.1:8420"
    ),
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Who may do what; needed for an address that others reach.")
    ] = None,
    options: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Options of queues, in TOML: [default] and [queues.NAME].")
    ] = None,
    take_over: TakeOver = False,
    wait: Wait = 0.0,
    accept_rollback: AcceptRollback = False,
    as_json: AsJson = False,
) -> None:
    """Serve a queue to other processes and machines.

    Producers and workers reach it with Queue.connect, other languages with HTTP: /v1/openapi.json describes it. It is
    the store's one writer; commands on the same machine reach it by the store's URL, without a token. It ends at
    SIGTERM or SIGINT, or when it can't write any more; claims of its clients go on.
    """
    execute(_serve(url, listen, tokens, options, Access(take_over, wait), accept_rollback, Output(as_json=as_json)))


async def _serve(
    url: str,
    listen: str,
    tokens: Path | None,
    options_file: Path | None,
    access: Access,
    accept_rollback: bool,
    output: Output,
) -> None:
    try:
        from ledgerq.worker.service.http_server import Server, check_address, parse_address
        from ledgerq.worker.service.service_app import ServiceApp
        from ledgerq.worker.sharing.owner import serve_socket
    except ImportError as error:
        raise InvalidArgument("serve needs a server: pip install 'ledgerq[serve]'") from error
    from ledgerq.eventlog.locations import parse_location
    from ledgerq.worker.queue import Queue
    from ledgerq.worker.service.tokens import load_tokens
    from ledgerq.worker.sharing.socket_file import SocketFile
    from ledgerq.worker.signals import listen as listen_to_signals

    host, port = parse_address(listen)
    check_address(host, has_tokens=tokens is not None)
    callers = None if tokens is None else load_tokens(tokens)
    default, queues = _options(options_file)
    stop: asyncio.Future[LedgerError | None] = asyncio.get_running_loop().create_future()

    def end(failure: LedgerError | None = None) -> None:
        if not stop.done():
            stop.set_result(failure)

    async with AsyncExitStack() as ending:
        location = parse_location(url)
        store = await ending.enter_async_context(opened_store(url, access, create=True, share=location.is_file))
        file = await asyncio.to_thread(SocketFile, location.folder) if location.is_file else None
        queue = await ending.enter_async_context(
            Queue.open(url, store=store, accept_rollback=accept_rollback, default=default, queues=queues)
        )
        queue.on_failure.append(end)
        ending.callback(listen_to_signals(end))
        app = ServiceApp(queue, callers, default=default, queues=queues)
        server = await Server.start(app, host, port)
        ending.push_async_callback(server.close)
        if file is not None:
            await serve_socket(ending, file, queue, default, queues)
        output.state(f"serving {url} at {server.url}", {"location": url, "service_url": server.url})
        failure = await stop
    if failure is not None:
        raise failure


def _options(path: Path | None) -> "tuple[QueueOptions, dict[str, QueueOptions]]":
    """The options of queues in a file; raises `InvalidArgument` for what is wrong with it."""
    from ledgerq.worker.options import QueueOptions

    if path is None:
        return QueueOptions(), {}
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"the options in {path} can't be read: {error}") from error
    queues = table.get("queues", {})
    if not table.keys() <= {"default", "queues"} or not isinstance(queues, dict):
        raise InvalidArgument(f"{path} has [default], [queues.NAME], and nothing else")
    return _of(table.get("default", {})), {name: _of(given) for name, given in queues.items()}


def _of(given: Mapping[str, Any]) -> "QueueOptions":
    from ledgerq.worker.options import QueueOptions

    if not isinstance(given, dict):
        raise InvalidArgument(f"the options of a queue are a table, not {given!r}")
    # TOML writes 30 seconds as a whole number.
    values: dict[str, Any] = {
        name: float(value) if name.endswith("_s") and type(value) is int else value for name, value in given.items()
    }
    return QueueOptions(**values)
