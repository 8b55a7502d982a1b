"""The commands of the transparency log: keygen, publish, receipt, verify. None of them writes a store."""

import asyncio
import fcntl
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledgerq.eventlog.errors import InvalidArgument, LedgerError, ProofRefused, StoreUnavailable
from ledgerq.tools.console.arguments import AsJson, JobId, Url
from ledgerq.tools.console.opening import execute, reading
from ledgerq.tools.console.output import Output, plural, progress

if TYPE_CHECKING:
    from ledgerq.eventlog.trust.cosigning import AskedWitness
    from ledgerq.eventlog.trust.notes import SigningKey
    from ledgerq.eventlog.trust.places import Place

__all__ = ["keygen", "publish", "receipt", "verify"]

_OWNER_ONLY = 0o600
Destination = Annotated[
    str | None, typer.Argument(metavar="[DEST]", help="A folder or a bucket; default: tlog below the store.")
]
Tree = Annotated[
    str | None, typer.Option("--tree", metavar="DEST", help="Where it is published; default: tlog below the store.")
]


@contextmanager
def needs_the_extra() -> Iterator[None]:
    """Raise `InvalidArgument` where the block can't import what signs and verifies."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cryptography":
            raise
        raise InvalidArgument("signatures need cryptography: pip install 'ledgerq[trust]'") from error


def _read(file: Path, most_bytes: int = -1) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(most_bytes)
    except OSError as error:
        raise InvalidArgument(f"{file} can't be read ({error.strerror})") from error


def _write(file: Path, content: bytes) -> None:
    try:
        file.write_bytes(content)
    except OSError as error:
        raise InvalidArgument(f"{file} can't be written ({error.strerror})") from error


@contextmanager
def _held(key_file: Path) -> Iterator[None]:
    """Keep others from signing with this key, for whatever place; raises `StoreUnavailable` while one does."""
    fd = os.open(key_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise StoreUnavailable(f"another publisher signs with {key_file}: wait for its end") from error
    finally:
        os.close(fd)


def read_key(file: Path) -> "SigningKey":
    """The private key in a file; raises `InvalidArgument`."""
    with needs_the_extra():
        from ledgerq.eventlog.trust.notes import SigningKey

    return SigningKey.parse(_read(file).decode(errors="replace"))


def keygen(
    origin: Annotated[str, typer.Argument(metavar="ORIGIN", help="The log's name for ever, such as example.com/jobs.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the private key, for you only.")],
    for_witness: Annotated[bool, typer.Option("--witness", help="Make the key of a witness of others' logs.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the key that signs a log's tree.

    Or with --witness the key of a witness, whose name is then ORIGIN.

    The private key goes into a new file, the verifier key, which auditors need, to stdout.
    """
    with needs_the_extra():
        from ledgerq.eventlog.trust.notes import SEED_BYTES, SigningKey
        from ledgerq.eventlog.trust.verifier import LOG_KEY, WITNESS_KEY

    key = SigningKey.of(origin, secrets.token_bytes(SEED_BYTES), WITNESS_KEY if for_witness else LOG_KEY)
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _OWNER_ONLY)
    except OSError as error:
        raise InvalidArgument(f"{out} can't be made ({error.strerror}): a key never replaces a file") from error
    with os.fdopen(fd, "w") as file:
        file.write(key.encode())
    output = Output(as_json=as_json)
    if as_json:
        output.json({"origin": origin, "verifier_key": str(key.verifier), "file": str(out)})
    else:
        output.line(str(key.verifier))


def publish(
    url: Url,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="The private key that keygen made.")],
    destination: Destination = None,
    every: Annotated[
        float | None, typer.Option("--every", metavar="SECONDS", min=1.0, help="Again and again, until Ctrl-C.")
    ] = None,
    witness: Annotated[
        list[str] | None, typer.Option("--witness", metavar="URL,VKEY", help="Have it cosigned; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish the log as a signed tree.

    Reads the store beside its writer, adds what is new, and signs nothing that isn't consistent with what is there.
    """
    execute(_publish(url, destination, key, every, witness or [], Output(as_json=as_json)))


async def _publish(
    url: str, destination: str | None, key_file: Path, every: float | None, witnesses: list[str], output: Output
) -> None:
    with needs_the_extra():
        from ledgerq.eventlog.trust.cosigning import AskedWitness
        from ledgerq.eventlog.trust.places import open_place
    key = read_key(key_file)
    asked = [AskedWitness.parse(one) for one in witnesses]
    place = open_place(url, destination)
    while True:
        try:
            await _publish_once(url, place, key, key_file, asked, output, quiet=output.as_json or every is not None)
        except LedgerError as error:
            if every is None or error.permanent:
                raise
            output.note(f"{error}; trying again in {every:g} s")
        if every is None:
            return
        await asyncio.sleep(every)


async def _publish_once(
    url: str,
    place: "Place",
    key: "SigningKey",
    key_file: Path,
    witnesses: "list[AskedWitness]",
    output: Output,
    *,
    quiet: bool,
) -> None:
    from ledgerq.eventlog.trust.cosigning import cosign
    from ledgerq.eventlog.trust.places import FolderPlace
    from ledgerq.eventlog.trust.publisher import publish

    # Beside the key, and not with the store or the tree: whoever owns those can put older copies of both in place.
    memory, name = FolderPlace(key_file.parent), f"{key_file.name}.signed"
    with _held(key_file):
        signed = await memory.get(name)

        async def remember(note: bytes) -> None:
            nonlocal signed
            if note != signed and not await memory.replace(name, note, signed):
                raise StoreUnavailable(f"{key_file}.signed was changed by another publisher: try again")
            signed = note

        async with reading(url) as log:
            with progress("publishing", quiet=quiet) as report:
                done = await publish(log, place, key, signed=signed, remember=remember, progress=report)
        if done.note is not None:
            await remember(done.note)
    cosigned: list[str] = []
    if witnesses and done.note is not None:
        checkpoint, troubles = await cosign(place, key.verifier, witnesses)
        cosigned = [one.name for one in checkpoint.cosigned]
        for trouble in troubles:
            output.note(trouble)
    if output.as_json:
        fields = {"place": place.name, "origin": key.verifier.name, "size": done.size, "root": done.root.hex()}
        more = {"new_events": done.events, "new_leaves": done.leaves, "witnesses": cosigned}
        output.json(fields | {"next_offset": done.next_offset} | more)
    else:
        output.line(
            f"{plural(done.events, 'event')} new at {place.name}; {key.verifier.name}, {done.size:,} record batches, "
            f"root {done.root.hex()[:16]}{''.join(f', cosigned by {name}' for name in cosigned)}"
        )
    output.flush()


def receipt(
    url: Url,
    job: JobId,
    tree: Tree = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where to write it; default: stdout.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the receipt of a job.

    Proofs of all its events, which others verify without the store.
    """
    execute(_receipt(url, job, tree, out, Output(as_json=as_json)))


async def _receipt(url: str, job_id: str, destination: str | None, out: Path | None, output: Output) -> None:
    from ledgerq.eventlog.entropy import job_id_bytes
    from ledgerq.projections.view import LedgerView

    with needs_the_extra():
        from ledgerq.eventlog.trust.places import open_place
        from ledgerq.eventlog.trust.receipts import make_receipt
    wanted, place = job_id_bytes(job_id), open_place(url, destination)
    async with reading(url) as log:
        records = await LedgerView(log).history(wanted)
        content = await make_receipt(log, place, [record.offset for record in records])
    if out is not None:
        _write(out, content)
    if output.as_json:
        place_of_it = {"receipt": content.decode()} if out is None else {"file": str(out)}
        output.json({"job_id": job_id, "events": len(records), "bytes": len(content), **place_of_it})
    elif out is None:
        sys.stdout.write(content.decode())
    else:
        output.line(f"{out}: {plural(len(records), 'event')}, {plural(len(content), 'byte')}")


def verify(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The receipt.")] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="VKEY", help="The log's verifier key, had from elsewhere.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Which logs are trusted, which witnesses must agree."),
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option("--program", metavar="FILE", help="Write the verifier, one Python file, and nothing else."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a receipt, offline.

    Needs neither the store nor the published tree.
    """
    with needs_the_extra():
        from ledgerq.eventlog.trust import verifier
    if program is not None:
        _write(program, _read(Path(verifier.__file__)))
        return
    if file is None or (key is None) == (policy is None):
        raise InvalidArgument("name a receipt, and either --key or --policy")
    content, text = (
        _read(file, verifier.MAX_RECEIPT_BYTES + 1),
        "" if policy is None else _read(policy).decode(errors="surrogateescape"),
    )
    try:
        trusted = verifier.parse_policy(text) if key is None else verifier.policy_of(verifier.VerifierKey.parse(key))
        found = verifier.check_receipt(content, trusted)
    except verifier.Refused as error:
        raise ProofRefused(f"{file} proves nothing: {error}") from error
    output = Output(as_json=as_json)
    if as_json:
        output.json(verifier.verdict(found))
        return
    for line in verifier.verdict_lines(found):
        output.line(line)
