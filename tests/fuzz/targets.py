"""The fuzz targets: one function for each parser of outside bytes, raising only for a defect.

`TARGETS` are shared by Hypothesis (test_fuzz_bytes.py) and by atheris (coverage_guided.py). A refusal with an error of
ours is no defect. Neither is an encoding that is not the one this version writes (a long header for a short array,
say): the chain digests a batch's raw bytes and the audit compares an index row's, so nothing rests on encoding it anew;
what is accepted must mean the same when it is written again.
"""

import codecs
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgpack

from ledgerq.eventlog import codec
from ledgerq.eventlog.anchor import SLOT_BYTES, decode_slot, encode_slot
from ledgerq.eventlog.codec import KIND_OF, NO_DIGEST, decode_batch, decode_head, encode_batch, encode_head, pack
from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.errors import FormatTooNew, InvalidArgument, LedgerError, LogCorrupt, ProjectionDrift
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.side_records import decode_payload, decode_result, decode_text, encode_payload, encode_sealed
from ledgerq.eventlog.terms import decode_terms, encode_terms
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import parse_key
from ledgerq.projections.indexes import decode_job, index_entries
from ledgerq.projections.stats import QueueCounters
from ledgerq.tools.cli.app import run
from ledgerq.tools.console import descriptions, job_descriptions

__all__ = ["COMMANDS", "OLD_KIND", "TARGETS", "command_line", "run_command_line"]

# A kind that an upcast of this file's own turns into `Promoted`: nothing in the catalogue has changed so far.
OLD_KIND = 200
_KINDS = (*codec.EVENT_TYPES, OLD_KIND, 0, 255)
_EXIT_CODES = {0, 1, 2, 3}


def batch(data: bytes) -> None:
    """A record batch: decoded, then shown, folded and indexed."""
    _batch(data)


def events(data: bytes) -> None:
    """A valid batch around kinds and rows of the fuzzer's choice: a byte chooses each kind, msgpack makes the rows."""
    kinds, _, rest = data.partition(b"\0")
    unpacker = msgpack.Unpacker(io.BytesIO(rest), use_list=False, strict_map_key=False, max_buffer_size=1 << 20)
    rows: list[Any] = []
    with contextlib.suppress(ValueError, TypeError, msgpack.UnpackException):
        for row in unpacker:
            rows.append(row)
    chosen = bytes(_KINDS[kind % len(_KINDS)] for kind in kinds[: len(rows)])
    outer = (7, NO_DIGEST, 1_700_000_000_000, chosen, rows[: len(chosen)])
    with contextlib.suppress(ValueError, OverflowError):
        _batch(msgpack.packb((1, *outer), unicode_errors="replace"))
        _batch(msgpack.packb((2, *outer, [0] * len(chosen)), unicode_errors="replace"))


@contextlib.contextmanager
def _an_upcast() -> Iterator[None]:
    codec.UPCASTS[OLD_KIND] = (2, lambda row: (row[0], *row[3:]))
    try:
        yield
    finally:
        del codec.UPCASTS[OLD_KIND]


def _batch(value: bytes) -> None:
    try:
        with _an_upcast():
            found = decode_batch(0, value)
    except LedgerError:
        return
    kinds = bytes(KIND_OF[type(event)] for event in found.events)
    again = encode_batch(
        found.epoch, found.previous, found.time_ms, kinds, found.events, found.distances or [0] * len(kinds)
    )
    assert decode_batch(0, again)._replace(digest=found.digest, distances=found.distances) == found
    for record in found.records():
        descriptions.record_line(record)
        json.dumps(descriptions.record_json(record))
    fold = Fold()
    try:
        fold.apply_batch(found)
    except LogCorrupt:
        return
    for job in fold.jobs.values():
        index_entries(job)
        _show(job)
        assert decode_job(pack(job)) == job
    for counters in fold.counters.values():
        assert QueueCounters.decode(counters.encode()).now == counters.now


def _show(job: Any) -> None:
    json.dumps(job_descriptions.job_json(job))
    job_descriptions.job_row(job)
    job_descriptions.job_facts(job, None)


def head(data: bytes) -> None:
    """The row `m/head`."""
    try:
        found = decode_head(data)
    except LogCorrupt:
        return
    assert decode_head(encode_head(found)) == found


def anchor(data: bytes) -> None:
    """One slot of an anchor; a checksum guards it, so the fuzzer gets a right one."""
    for slot in (data, _sealed(data)):
        found = decode_slot(slot)
        if found is not None:
            assert encode_slot(*found) == slot[:SLOT_BYTES] or slot[: SLOT_BYTES - 16].count(0)
            assert decode_slot(encode_slot(*found)) == found


def _sealed(data: bytes) -> bytes:
    from hashlib import blake2b

    body = (b"ledgerqA\0\1" + data).ljust(SLOT_BYTES - 16, b"\0")[: SLOT_BYTES - 16]
    return body + blake2b(body, digest_size=16).digest()


def payload(data: bytes) -> None:
    """A payload record."""
    try:
        record = decode_payload(data)
    except ValueError:
        return
    assert decode_payload(encode_payload(*record)) == record
    json.dumps(job_descriptions.payload_json(record))


def text(data: bytes) -> None:
    """The row of a text or a result."""
    for decode in (decode_text, decode_result):
        try:
            found = decode(data)
        except ValueError:
            continue
        assert decode(encode_sealed(bytes(16), found)) == found


def terms(data: bytes) -> None:
    """The packed terms of a job."""
    try:
        found = decode_terms(data)
    except (ValueError, FormatTooNew):
        return
    assert decode_terms(encode_terms(found)) == found


def job(data: bytes) -> None:
    """A row of the job range, and all that is made of a job."""
    try:
        found = decode_job(data)
    except ProjectionDrift:
        return
    index_entries(found)
    _show(found)
    assert decode_job(pack(found)) == found


def stats(data: bytes) -> None:
    """A row of the stats range."""
    try:
        found = QueueCounters.decode(data)
    except ProjectionDrift:
        return
    assert QueueCounters.decode(found.encode()).view("q") == found.view("q")
    json.dumps(descriptions.stats_json(found.view("q")))
    descriptions.stats_table([found.view("q")])


def key(data: bytes) -> None:
    """An index row's key and value, in any damage."""
    size = data[0] if data else 0
    row, value = data[1 : 1 + size], data[1 + size :]
    parse_key(row, value).text.encode("utf-8", "surrogateescape")
    for prefix in (b"i/pending/", b"i/unique/", b"i/finished/"):
        assert parse_key(prefix + row, value).range_name == prefix.decode().strip("i/")


def location(data: bytes) -> None:
    """A URL or a path, as a command line or a program gives it, and a job's id."""
    for errors in ("surrogateescape", "surrogatepass", "replace"):
        text = codecs.decode(data, "utf-8", errors) if errors != "surrogatepass" else _any_text(data)
        try:
            found = parse_location(text)
        except InvalidArgument:
            pass
        else:
            assert not found.database.startswith("/")
            assert ".." not in found.database.split("/")
            assert found.is_memory or found.database or found.bucket
        with contextlib.suppress(InvalidArgument):
            assert job_id_text(job_id_bytes(text)) == text.upper()


def _any_text(data: bytes) -> str:
    """Text with anything that Python's text can hold, lone surrogates too."""
    return data.decode("utf-16-le", "surrogatepass") if len(data) % 2 == 0 else data.decode("latin-1")


# ---------------------------------------------------------------------- the command line

# Those that end by themselves, leave other programs alone, and load no module that the words name.
COMMANDS = [
    "stats",
    "jobs",
    "show",
    "history",
    "log",
    "audit",
    "enqueue",
    "requeue",
    "cancel",
    "pause",
    "resume",
    "rebuild-projections",
    "doctor",
    "worker",
]
_WORDS = [
    "mail",
    "--json",
    "--as-of",
    "--from",
    "--until",
    "--limit",
    "--state",
    "--after",
    "--deep",
    "--check",
    "--only",
    "--into",
    "--reason",
    "--actor",
    "--take-over",
    "--accept-rollback",
    "--priority",
    "--delay",
    "--run-at",
    "--max-attempts",
    "--unique-key",
    "--unique-until",
    "--header",
    "--job-id",
    "--against",
    "--help",
    "-",
    "--",
    "-1",
    "0",
    "18446744073709551616",
    "nan",
    "inf",
    "1e400",
    "-0",
    "2026-01-31T12:30",
    "0001-01-01",
    "9999-12-31",
    "pending",
    "claimed",
    "01ARZ3NDEKTSV4RRFFQ69G5FAV",
    "a=b",
    "=",
    "copy",
]
# Words that would lead out of the folder, load code, or never end.
_FORBIDDEN = re.compile(r"/|^~|\.\.|--follow|^-\w*f|--projection|^--into=.")


def command_line(data: bytes) -> list[str]:
    """A command line: the first byte is the command; of what 0xff separates, a single byte is one of `_WORDS`."""
    words = data[1:].split(b"\xff")
    argv = [COMMANDS[data[0] % len(COMMANDS)] if data else ""]
    if words[0][:1] != b"!":
        argv.append("store")
    for word in words:
        text = _WORDS[word[0] % len(_WORDS)] if len(word) == 1 else word.decode("utf-8", "surrogateescape")
        if not _FORBIDDEN.search(text) and not (argv[0] == "worker" and ":" in text):
            argv.append(text)
    return argv


def arguments(data: bytes) -> None:
    """A command line in a folder of its own, with a store in it."""
    run_command_line(command_line(data))


def run_command_line(argv: list[str]) -> int:
    """Run it; it must end with an exit code of ours, and a failure with one line and no more."""
    folder = _folder()
    before = Path.cwd()
    stdin, out, err = sys.stdin, io.StringIO(), io.StringIO()
    sys.stdin = io.TextIOWrapper(io.BytesIO(b"from the standard input"))
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(argv)
    finally:
        os.chdir(before)
        sys.stdin = stdin
    said = err.getvalue()
    assert code in _EXIT_CODES, (argv, code, said)
    assert "Traceback" not in said, (argv, said)
    if code in (2, 3) and argv and argv[0]:
        assert said.count("\n") == 1, (argv, said)
    return code


@cache
def _folder() -> Path:
    """A temporary folder that holds a store with a job; it is removed when the process ends."""
    import atexit

    folder = tempfile.TemporaryDirectory(prefix="ledgerq-fuzz-")
    atexit.register(folder.cleanup)
    before = Path.cwd()
    os.chdir(folder.name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            assert run(["enqueue", "store", "mail", "text"]) == 0
    finally:
        os.chdir(before)
    return Path(folder.name)


_ALL = (batch, events, head, anchor, payload, text, terms, job, stats, key, location, arguments)
TARGETS: dict[str, Callable[[bytes], None]] = {target.__name__: target for target in _ALL}
