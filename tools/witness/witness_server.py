"""The HTTP server of a witness: a thread for each client, one request at a time gets to the witness."""

import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.trust.witness import MAX_REQUEST_BYTES, Answer, Witness

__all__ = ["WitnessServer"]

_CLIENT_LIMIT_S: Final = 15.0
_SUBMIT: Final = "/add-checkpoint"


class WitnessServer(ThreadingHTTPServer):
    """A server that listens; `serve_forever` in a thread, `shutdown` and `server_close` at the end."""

    daemon_threads = True

    def __init__(self, witness: Witness, host: str, port: int, clock: Clock) -> None:
        """Listen; raises `InvalidArgument` for an address that can't be had."""
        self.witness = witness
        self.clock = clock
        self.turn = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InvalidArgument(f"the witness can't listen on {host}:{port}: {error}") from error

    @property
    def url(self) -> str:
        """Its submission and monitoring prefix."""
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _CLIENT_LIMIT_S
    server: WitnessServer

    def handle(self) -> None:
        """Answer a client until it goes away, in whatever way it does that."""
        with suppress(ConnectionError):
            super().handle()

    def do_POST(self) -> None:
        """`add-checkpoint`."""
        length = self.headers.get("Content-Length", "")
        # Other alphabets have digits too, and `int` refuses thousands of them.
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_REQUEST_BYTES:
            self.close_connection = True
            return self._answer(Answer(413, b"a request has a length, and at most 64 KiB\n"))
        body = self.rfile.read(int(length))
        if self.path != _SUBMIT:
            return self._answer(Answer(404, b"there is /add-checkpoint\n"))
        try:
            with self.server.turn:
                answer = self.server.witness.add_checkpoint(body, self.server.clock.now_ms() // 1000)
        except (LedgerError, OSError) as error:
            answer = Answer(500, f"{error}\n".encode())
        return self._answer(answer)

    def do_GET(self) -> None:
        """The last checkpoint that was cosigned."""
        origin_hash, _, rest = self.path.removeprefix("/").partition("/")
        try:
            with self.server.turn:
                found = self.server.witness.checkpoint(origin_hash) if rest == "checkpoint" else Answer(404, b"\n")
        except (LedgerError, OSError) as error:
            found = Answer(500, f"{error}\n".encode())
        self._answer(found)

    def _answer(self, answer: Answer) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: what clients do is no message of the program."""
