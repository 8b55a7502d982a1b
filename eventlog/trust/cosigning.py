"""The log's side of c2sp.org/tlog-witness: a checkpoint is shown to witnesses, and what they sign is added to it."""

import asyncio
import http.client
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Self

from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable, TreeForked
from ledgerq.eventlog.trust.places import CHECKPOINT, Place
from ledgerq.eventlog.trust.tree import TileReader
from ledgerq.eventlog.trust.verifier import (
    WITNESS_KEY,
    Checkpoint,
    Policy,
    Refused,
    VerifierKey,
    number_of,
    open_checkpoint,
)

__all__ = ["AskedWitness", "Post", "cosign", "post"]

_LIMIT_S: Final = 20.0
_MAX_ANSWER_BYTES: Final = 64 * 1024
_CONFLICT: Final = 409
_UNPROVEN: Final = 422

Post = Callable[[str, bytes], Awaitable[tuple[int, bytes]]]
"""Sends a body to a URL by POST; gives status and body, and raises OSError when there is no answer."""


class AskedWitness(NamedTuple):
    """A witness that is asked: where, and the key by which its cosignature is known."""

    url: str
    key: VerifierKey

    @classmethod
    def parse(cls, text: str) -> Self:
        """The witness in `URL,VKEY`; raises `InvalidArgument`."""
        url, _, vkey = text.rpartition(",")
        try:
            key = VerifierKey.parse(vkey)
        except Refused as error:
            raise InvalidArgument(f"a witness is URL,VKEY: {error}") from error
        if key.kind != WITNESS_KEY or not url.startswith(("http://", "https://")):
            raise InvalidArgument("a witness is URL,VKEY: an http or https address, and the verifier key of a witness")
        return cls(url.rstrip("/"), key)


async def post(url: str, body: bytes) -> tuple[int, bytes]:
    """Send a body by POST, from a thread."""
    return await asyncio.to_thread(_post, url, body)


def _post(url: str, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, method="POST", headers={"Content-Type": "text/plain"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=_LIMIT_S) as answer:  # noqa: S310 - http or https: see `parse`
            return answer.status, answer.read(_MAX_ANSWER_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MAX_ANSWER_BYTES)
    except (http.client.HTTPException, ValueError) as error:  # what answers speaks no HTTP, or the address is none
        raise OSError(f"{type(error).__name__}: {error}") from error


async def cosign(
    place: Place, log: VerifierKey, witnesses: Sequence[AskedWitness], *, send: Post = post
) -> tuple[Checkpoint, list[str]]:
    """Show the published checkpoint to each witness that has not cosigned it, and add what they sign.

    Returns the checkpoint as it stands then, and what went wrong with whom: a witness that can't be reached is asked
    again the next time. Raises `TreeForked` when one has seen a tree that this one doesn't go on from.
    """
    note = await place.get(CHECKPOINT)
    if note is None:
        raise StoreUnavailable(f"nothing is published at {place.name}")
    policy = Policy((log,), {one.key.name: one.key for one in witnesses}, {}, "none")
    found = open_checkpoint(note, policy)
    tree = TileReader(place.get, found.size)
    lines, troubles = b"", []
    forked: TreeForked | None = None
    for witness in witnesses:
        if witness.key in found.cosigned:
            continue
        try:
            lines += await _ask(tree, found, note, log, witness, send)
        except (OSError, Refused) as error:
            troubles.append(f"{witness.key.name} did not cosign: {error}")
        except TreeForked as error:
            forked = error
    if lines or forked:
        # A witness is ahead also when another publisher was faster, and then nothing is forked.
        async with place.exclusive():
            is_last = await place.get(CHECKPOINT) == note and (
                not lines or await place.replace(CHECKPOINT, note + lines, note)
            )
        if not is_last:
            raise StoreUnavailable(f"another publisher has written to {place.name} meanwhile: try again")
    if forked:
        raise forked
    return open_checkpoint(note + lines, policy), troubles


async def _ask(
    tree: TileReader, found: Checkpoint, note: bytes, log: VerifierKey, witness: AskedWitness, send: Post
) -> bytes:
    """The line by which the witness cosigns; raises `Refused` and OSError when it doesn't."""
    old, body = 0, b""
    for _ in range(2):
        proof = [] if old in (0, found.size) else await tree.consistency(old)
        head = "".join(f"{line}\n" for line in (f"old {old}", *(b64encode(one).decode() for one in proof)))
        status, body = await send(f"{witness.url}/add-checkpoint", f"{head}\n".encode() + note)
        if status != _CONFLICT:
            break
        # It has cosigned another one before, and says of which size.
        old = number_of(body.decode(errors="replace").removesuffix("\n"))
        if old > found.size:
            raise TreeForked(
                f"the witness {witness.key.name} has seen a tree of {log.name} with {old} leaves, and the published "
                f"one has {found.size}: store or tree is an older copy"
            )
    if status == _UNPROVEN:
        raise TreeForked(
            f"the witness {witness.key.name} has seen another tree of {log.name} with {old} leaves: the log was "
            f"rewritten, or its key was used for another one ({body[:200].decode(errors='replace').strip()})"
        )
    if status != 200:
        raise Refused(f"it answered {status}: {body[:200].decode(errors='replace').strip()}")
    name = witness.key.name
    for line in body.splitlines(keepends=True):
        # Whatever else it sends is none of its cosignatures, and does not get into the note.
        one = open_checkpoint(note + line, Policy((log,), {name: witness.key}, {}, "none"))
        if witness.key in one.cosigned:
            return line
    raise Refused("its answer holds no cosignature of its key")
