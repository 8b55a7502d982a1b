"""A witness by the protocol c2sp.org/tlog-witness: it cosigns a log's checkpoint that goes on from the last one it saw.

So a log can't show one history to some and another one to others, if both ask for the same witness. Its state is a file
for each log, the last checkpoint it cosigned, in a folder that one witness at a time holds. What is here knows nothing
of HTTP, and blocks.
"""

import os
from collections.abc import Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable
from ledgerq.eventlog.trust.notes import SigningKey
from ledgerq.eventlog.trust.places import FolderPlace
from ledgerq.eventlog.trust.tree import check_consistency
from ledgerq.eventlog.trust.verifier import (
    LOG_KEY,
    WITNESS_KEY,
    Checkpoint,
    Policy,
    Refused,
    VerifierKey,
    decode_base64,
    number_of,
    open_checkpoint,
    split_note,
)

__all__ = ["MAX_REQUEST_BYTES", "SIZE_TYPE", "Answer", "Witness"]

MAX_REQUEST_BYTES: Final = 64 * 1024
SIZE_TYPE: Final = "text/x.tlog.size"
_MAX_PROOF_HASHES: Final = 63


class Answer(NamedTuple):
    """The answer to a request: an HTTP status, and a body."""

    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Witness:
    """A witness at work: it holds its folder until it is closed. One request at a time."""

    def __init__(self, place: FolderPlace, key: SigningKey, logs: Sequence[VerifierKey]) -> None:
        """Take the folder; raises `InvalidArgument`, and `StoreUnavailable` while another witness has it."""
        if key.verifier.kind != WITNESS_KEY or not logs or any(log.kind != LOG_KEY for log in logs):
            raise InvalidArgument("a witness needs a key made with `keygen --witness`, and the verifier keys of logs")
        self._place = place
        self._key = key
        self._logs = {log.name: log for log in logs}
        if len(self._logs) != len(logs):
            raise InvalidArgument("a witness knows one key for each log")
        self._fd = place.lock_now()

    def close(self) -> None:
        """Give the folder back."""
        os.close(self._fd)

    def checkpoint(self, origin_hash: str) -> Answer:
        """The last checkpoint that was cosigned of the log with this SHA-256 of its origin, in hexadecimal."""
        known = {_file_name(origin) for origin in self._logs}
        note = self._place.get_now(origin_hash) if origin_hash in known else None
        return Answer(404, b"no checkpoint of this log was cosigned\n") if note is None else Answer(200, note)

    def add_checkpoint(self, request: bytes, now_s: int) -> Answer:
        """Cosign the checkpoint in a request, or say why not, with the status that the protocol has for it."""
        try:
            head, gap, note = request.partition(b"\n\n")
            old_line, *lines = head.decode().split("\n")
            if not gap or not old_line.startswith("old ") or len(lines) > _MAX_PROOF_HASHES:
                return Answer(400, b"no old size, proof and checkpoint\n")
            old, proof = number_of(old_line[4:]), [decode_base64(line) for line in lines]
            text, _ = split_note(note)
        except (Refused, UnicodeDecodeError) as error:
            return Answer(400, f"{error}\n".encode())
        log = self._logs.get(text.split(b"\n", 1)[0].decode())
        if log is None:
            return Answer(404, b"this log is not known here\n")
        try:
            found = open_checkpoint(note, Policy((log,), {}, {}, "none"))
        except Refused as error:
            return Answer(403, f"{error}\n".encode())
        # Of the signatures that came with it only the log's own are kept.
        signed = [line for line in note.rpartition(b"\n\n")[2].splitlines(True) if _is_of(line, log)]
        return self._cosign(log, old, proof, found, b"".join(signed), now_s)

    def _cosign(
        self, log: VerifierKey, old: int, proof: list[bytes], found: Checkpoint, signed: bytes, now_s: int
    ) -> Answer:
        if old > found.size:
            return Answer(400, b"the old size is larger than the new one\n")
        name = _file_name(log.name)
        note = self._place.get_now(name)
        try:
            last = None if note is None else open_checkpoint(note, Policy((log,), {}, {}, "none"))
        except Refused as error:
            raise StoreUnavailable(f"what the witness has seen of {log.name} is damaged: {error}") from error
        if old != (0 if last is None else last.size):
            return Answer(409, b"%d\n" % (0 if last is None else last.size), SIZE_TYPE)
        try:
            if found.size == 0:
                raise Refused("a log is witnessed once it has a leaf")
            check_consistency(old, b"" if last is None else last.root, found.size, found.root, proof)
        except Refused as error:
            return Answer(422, f"{error}\n".encode())
        line = self._key.cosign(found.text, now_s)
        if not self._place.replace_now(name, found.text + b"\n" + signed + line, note):
            raise InvalidArgument("the witness's folder was changed by somebody else")
        return Answer(200, line)


def _is_of(line: bytes, log: VerifierKey) -> bool:
    _, name, encoded = line.decode().rstrip("\n").split(" ")
    return (name, decode_base64(encoded)[:4]) == (log.name, log.key_id)


def _file_name(origin: str) -> str:
    return sha256(origin.encode()).hexdigest()
