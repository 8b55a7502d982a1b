"""The command that runs a small witness of published logs."""

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.cli.trust import needs_the_extra, read_key
from ledgerq.tools.console.arguments import AsJson
from ledgerq.tools.console.opening import execute
from ledgerq.tools.console.output import Output

if TYPE_CHECKING:
    from ledgerq.eventlog.trust.notes import SigningKey
    from ledgerq.eventlog.trust.verifier import VerifierKey

__all__ = ["witness"]

_POLL_S = 0.1


def witness(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it keeps what it has seen; only one at a time.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The key that `keygen --witness` made.")],
    log: Annotated[list[str], typer.Option("--log", metavar="VKEY", help="The verifier key of a log; repeatable.")],
    host: Annotated[str, typer.Option(metavar="H", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="The port to listen on (0: any free one).")] = 9466,
    as_json: AsJson = False,
) -> None:
    """Witness the trees of others' logs.

    Cosigns a checkpoint that goes on from the last one it has seen, by the protocol c2sp.org/tlog-witness, until
    SIGTERM or SIGINT. For TLS and limits put a proxy in front of it.
    """
    with needs_the_extra():
        from ledgerq.eventlog.trust.verifier import Refused, VerifierKey
    try:
        logs = [VerifierKey.parse(one) for one in log]
    except Refused as error:
        raise InvalidArgument(str(error)) from error
    execute(_witness(folder, read_key(key), logs, host, port, Output(as_json=as_json)))


async def _witness(
    folder: Path, key: "SigningKey", logs: "list[VerifierKey]", host: str, port: int, output: Output
) -> None:
    from ledgerq.eventlog.clock import SystemClock
    from ledgerq.eventlog.trust.places import FolderPlace
    from ledgerq.eventlog.trust.witness import Witness
    from ledgerq.tools.witness.witness_server import WitnessServer
    from ledgerq.worker.signals import listen

    stop = asyncio.Event()
    with ExitStack() as ending:
        at_work = Witness(FolderPlace(folder), key, logs)
        ending.callback(at_work.close)
        server = WitnessServer(at_work, host, port, SystemClock())
        ending.callback(server.server_close)
        ending.callback(listen(stop.set))
        thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="ledgerq-witness")
        thread.start()
        ending.callback(thread.join)
        ending.callback(server.shutdown)
        text = f"{key.verifier.name} witnesses {len(logs)} logs at {server.url}"
        output.state(text, {"witness_url": server.url, "verifier_key": str(key.verifier)})
        await stop.wait()
