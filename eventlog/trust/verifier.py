"""The verifier of receipts: one file that needs Python's library, `cryptography` and `msgpack`, and nothing of ledgerq.

    python verifier.py RECEIPT --key VKEY | --policy FILE

A receipt holds one proof for each event of a job, in the format of c2sp.org/tlog-proof. Here is all that is checked:
the log's signature of the checkpoint and the cosignatures that the policy asks for; that the record batch is in the
signed tree, and the event in the record batch; that each event names the one before it, so that none in between is
left out. What it can't show: whether more events of the job follow, and whether what an event says is true.
"""

import argparse
import base64
import binascii
import json
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

__all__ = [
    "COMMITMENT_PREFIX",
    "KIND_NAMES",
    "Checkpoint",
    "Policy",
    "ProvenEvent",
    "Receipt",
    "Refused",
    "TlogEntry",
    "VerifierKey",
    "check_receipt",
    "decode_base64",
    "job_text",
    "leaf_hash",
    "main",
    "node_hash",
    "open_checkpoint",
    "parse_policy",
    "policy_of",
    "root_of_proof",
    "verdict",
    "verdict_lines",
]

PROOF_HEADER: Final = "c2sp.org/tlog-proof@v1\n"
COMMITMENT_PREFIX: Final = b"ledgerq.dev/event/v1\n"
LOG_KEY: Final = 1
WITNESS_KEY: Final = 4
MAX_RECEIPT_BYTES: Final = 64 * 1024 * 1024
_MAX_PROOF_HASHES: Final = 63
_MAX_SIGNATURES: Final = 100
_ENTRY: Final = struct.Struct(">BQQ32s32s")
_INNER: Final = struct.Struct(">IB")
_SALT_BYTES: Final = 16
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,18}")

# The kinds of events of jobs. One that is not here is proven all the same, and shown by its number.
KIND_NAMES: Final = {
    1: "enqueued",
    2: "promoted",
    3: "claimed",
    4: "acked",
    5: "nacked",
    6: "lease-expired",
    7: "cancel-requested",
    8: "cancelled",
    9: "requeued",
    10: "swept",
    14: "dead-lettered",
    15: "deleted",
    16: "expired",
    17: "moved",
    18: "replaced",
    19: "unique-released",
    80: "step-done",
}


class Refused(ValueError):
    """What is given proves nothing, and why."""


# ---------------------------------------------------------------------- the tree of RFC 6962


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def root_of_proof(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that the inclusion proof of the leaf with this hash leads to; raises `Refused` for a wrong length."""
    if not 0 <= index < size:
        raise Refused(f"leaf {index} is not in a tree of {size} leaves")
    at, last, found = index, size - 1, leaf
    for other in proof:
        if last == 0:
            raise Refused("the inclusion proof is too long")
        if at & 1 or at == last:
            found = node_hash(other, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, other)
        at, last = at >> 1, last >> 1
    if last:
        raise Refused("the inclusion proof is too short")
    return found


# ---------------------------------------------------------------------- signed notes, keys and policies


def decode_base64(text: str) -> bytes:
    """The bytes of standard base64; raises `Refused` for anything but the one text that stands for them."""
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{text[:60]!r} is not base64") from error
    if base64.b64encode(value).decode() != text:
        raise Refused(f"{text[:60]!r} is not base64 as it is written by rule")
    return value


class VerifierKey(NamedTuple):
    """A public key with the name that signs: of a log (kind 1) or of a witness (kind 4), both Ed25519."""

    name: str
    key_id: bytes
    kind: int
    public: bytes

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """The key in `NAME+ID+BASE64`; raises `Refused`."""
        name, _, rest = text.strip().partition("+")
        id_text, _, encoded = rest.partition("+")
        raw = decode_base64(encoded)
        if not is_key_name(name) or len(raw) != 33 or raw[0] not in (LOG_KEY, WITNESS_KEY):
            raise Refused(f"{text[:80]!r} is no verifier key of an Ed25519 log or witness")
        key = cls.of(name, raw[0], raw[1:])
        if key.key_id.hex() != id_text:
            raise Refused(
                f"the verifier key of {name!r} has the id {id_text!r}, and {key.key_id.hex()} follows from it"
            )
        return key

    @classmethod
    def of(cls, name: str, kind: int, public: bytes) -> "VerifierKey":
        """The key of this name and kind, with the id that follows."""
        return cls(name, sha256(name.encode() + b"\n" + bytes((kind,)) + public).digest()[:4], kind, public)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(bytes((self.kind,)) + self.public).decode()}"

    def verify(self, text: bytes, signature: bytes) -> None:
        """Raise `Refused` unless this is the key's signature of the note's text, or its cosignature."""
        if self.kind == WITNESS_KEY:
            text = cosigned_text(text, int.from_bytes(signature[:8]))
            signature = signature[8:]
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, text)
        except InvalidSignature as error:
            raise Refused(f"the signature of {self.name} is wrong") from error


def cosigned_text(text: bytes, time_s: int) -> bytes:
    """What a witness signs of a checkpoint."""
    return b"cosignature/v1\ntime %d\n" % time_s + text


def is_key_name(name: str) -> bool:
    """Whether a key may have this name: neither spaces nor a plus, and printable."""
    return bool(name) and "+" not in name and name.isprintable() and not any(map(str.isspace, name))


class Policy(NamedTuple):
    """What makes a checkpoint good: signed by one of the logs, cosigned by the quorum."""

    logs: tuple[VerifierKey, ...]
    witnesses: dict[str, VerifierKey]
    groups: dict[str, tuple[int, tuple[str, ...]]]
    quorum: str

    def is_met(self, cosigned: Iterable[VerifierKey], name: str | None = None) -> bool:
        """Whether these witnesses are the quorum, or the group `name`."""
        name = self.quorum if name is None else name
        if name == "none":
            return True
        if name in self.witnesses:
            return self.witnesses[name] in cosigned
        least, members = self.groups[name]
        return sum(self.is_met(cosigned, member) for member in members) >= least


def policy_of(key: VerifierKey) -> Policy:
    """The policy of one who trusts this log's key and asks for no witness."""
    if key.kind != LOG_KEY:
        raise Refused(f"{key.name} is the key of a witness, not that of a log")
    return Policy((key,), {}, {}, "none")


def parse_policy(text: str) -> Policy:
    """The policy in a file of c2sp.org/tlog-policy; raises `Refused` for what is malformed."""
    logs: list[VerifierKey] = []
    witnesses: dict[str, VerifierKey] = {}
    groups: dict[str, tuple[int, tuple[str, ...]]] = {}
    quorums: list[str] = []
    members_so_far: set[str] = set()
    for line in text.split("\n"):
        match line.strip(" \t").split():
            case []:
                pass
            case [word, *_] if word.startswith("#"):
                pass
            case ["log", key] | ["log", key, _]:
                logs.append(VerifierKey.parse(key))
            case ["witness", name, key] | ["witness", name, key, _] if name not in {"none", *witnesses, *groups}:
                witnesses[name] = VerifierKey.parse(key)
            case ["group", name, least, *members] if members and name not in {"none", *witnesses, *groups}:
                k = {"all": len(members), "any": 1}.get(least) or number_of(least)
                known = all(member in witnesses or member in groups for member in members)
                if not known or not 1 <= k <= len(members) or members_so_far & {*members}:
                    raise Refused(f"the policy's group {name!r} can't be met as it is written")
                if len({*members}) != len(members):
                    raise Refused(f"the policy's group {name!r} has a member twice")
                members_so_far |= {*members}
                groups[name] = (k, tuple(members))
            case ["quorum", name] if name == "none" or name in witnesses or name in groups:
                quorums.append(name)
            case _:
                raise Refused(f"the policy's line {line[:80]!r} can't be understood")
    wrong = {key.name for key in logs if key.kind != LOG_KEY} | {
        k.name for k in witnesses.values() if k.kind == LOG_KEY
    }
    publics = [key.public for key in (*logs, *witnesses.values())]
    if len(quorums) != 1 or not logs or wrong or len({*publics}) != len(publics):
        raise Refused("a policy has one quorum, at least one log, and no key twice or of the wrong kind")
    return Policy(tuple(logs), witnesses, groups, quorums[0])


class Checkpoint(NamedTuple):
    """A signed tree: `text` is what was signed, `cosigned` which witnesses of the policy did so."""

    origin: str
    size: int
    root: bytes
    text: bytes
    cosigned: tuple[VerifierKey, ...]
    seen_s: int | None


def open_checkpoint(note: bytes, policy: Policy) -> Checkpoint:
    """The checkpoint in a signed note; raises `Refused` unless it is good by the policy."""
    text, signatures = split_note(note)
    origin, size_text, root_text, *_ = [*text.decode().split("\n"), "", ""]
    size, root = number_of(size_text), decode_base64(root_text)
    logs = [key for key in policy.logs if key.name == origin]
    if not logs or len(root) != 32:
        raise Refused(f"the checkpoint is one of {origin!r}, which is no log that is trusted here")
    is_signed, cosigned, times = False, [], []
    for name, key_id, signature in signatures:
        for key in (*logs, *policy.witnesses.values()):
            if (key.name, key.key_id) == (name, key_id):
                key.verify(text, signature)
                is_signed |= key.kind == LOG_KEY
                if key.kind == WITNESS_KEY:
                    cosigned.append(key)
                    times.append(int.from_bytes(signature[:8]))
    if not is_signed:
        raise Refused(f"the checkpoint of {origin} is not signed by the key that is trusted here")
    if not policy.is_met(cosigned):
        raise Refused(f"the checkpoint of {origin} is not cosigned as the policy asks for")
    # When the quorum had seen it: one witness that lies about the time can't make the tree older than the others know.
    by_time = sorted(zip(times, cosigned, strict=True))
    met = (by_time[n][0] for n in range(len(by_time)) if policy.is_met([key for _, key in by_time[: n + 1]]))
    return Checkpoint(origin, size, root, text, tuple(cosigned), next(met, None))


def split_note(note: bytes) -> tuple[bytes, list[tuple[str, bytes, bytes]]]:
    """The signed text of a note, and (key name, key id, signature) of each of its signatures; raises `Refused`."""
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise Refused("the checkpoint is not UTF-8") from error
    text, gap, rest = whole.rpartition("\n\n")
    lines = rest.split("\n")
    if (
        not gap
        or lines.pop()
        or not 0 < len(lines) <= _MAX_SIGNATURES
        or any(ord(char) < 32 and char != "\n" for char in whole)
    ):
        raise Refused("the checkpoint is no signed note")
    found = []
    for line in lines:
        dash, name, encoded = [*line.split(" "), "", ""][:3]
        raw = decode_base64(encoded)
        if dash != "\u2014" or line != f"{dash} {name} {encoded}" or not is_key_name(name) or len(raw) < 5:
            raise Refused(f"the checkpoint's line {line[:60]!r} is no signature")
        found.append((name, raw[:4], raw[4:]))
    return f"{text}\n".encode(), found


def number_of(text: str) -> int:
    """The number in a decimal text without leading zeros; raises `Refused` for any other text."""
    if not _NUMBER.fullmatch(text):
        raise Refused(f"{text[:30]!r} is no number as it is written by rule")
    return int(text)


# ---------------------------------------------------------------------- receipts


class TlogEntry(NamedTuple):
    """What a leaf holds: the offsets of a record batch, its BLAKE2b-256, the root of the tree of its events."""

    base_offset: int
    next_offset: int
    digest: bytes
    inner_root: bytes

    @classmethod
    def decode(cls, value: bytes) -> "TlogEntry":
        """The entry in these bytes; raises `Refused`."""
        if len(value) != _ENTRY.size or value[0] != 1:
            raise Refused("a leaf of the tree is no record batch of version 1")
        return cls(*_ENTRY.unpack(value)[1:])

    def encode(self) -> bytes:
        """The bytes that are hashed into the tree."""
        return _ENTRY.pack(1, *self)


class ProvenEvent(NamedTuple):
    """An event in the signed tree. `previous` is the offset of the job's event before it, None for the first."""

    offset: int
    time_ms: int
    epoch: int
    kind: int
    previous: int | None
    fields: tuple[Any, ...]

    @property
    def name(self) -> str:
        """Its kind, in words."""
        return KIND_NAMES.get(self.kind, f"event of kind {self.kind}")


class Receipt(NamedTuple):
    """What a receipt proves: the job's events from its first one to its last here, none left out in between."""

    job: bytes
    events: tuple[ProvenEvent, ...]
    checkpoint: Checkpoint


def check_receipt(content: bytes, policy: Policy) -> Receipt:
    """What this receipt proves under the policy; raises `Refused`, with the reason, when that is nothing."""
    if len(content) > MAX_RECEIPT_BYTES:
        raise Refused(f"this is no receipt: it is larger than {MAX_RECEIPT_BYTES} bytes")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise Refused("the receipt is not UTF-8") from error
    before, *proofs = text.split(PROOF_HEADER)
    if before or not proofs:
        raise Refused("this is no receipt: it does not begin as a proof of a transparency log does")
    opened: dict[str, Checkpoint] = {}
    events: list[ProvenEvent] = []
    for proof in proofs:
        lines, gap, note = proof.partition("\n\n")
        if not gap:
            raise Refused("a proof of the receipt has no checkpoint")
        if note not in opened:
            opened[note] = open_checkpoint(note.encode(), policy)
        events.append(_event(lines.split("\n"), opened[note]))
        _check_order(events)
        if len(opened) != 1:
            # Nothing here shows that the one tree goes on from the other: of two histories each could give a part.
            raise Refused("the receipt mixes proofs of several checkpoints")
    return Receipt(events[0].fields[0], tuple(events), opened[note])


def _event(lines: list[str], checkpoint: Checkpoint) -> ProvenEvent:
    extra_line, index_line, *hashes = [*lines, "", ""] if len(lines) < 2 else lines
    if not (extra_line.startswith("extra ") and index_line.startswith("index ") and len(hashes) <= _MAX_PROOF_HASHES):
        raise Refused("a proof of the receipt has not the lines that it must have")
    extra, index = decode_base64(extra_line[6:]), number_of(index_line[6:])
    path = [decode_base64(line) for line in hashes]
    at = _ENTRY.size + _INNER.size
    if len(extra) < at or any(len(one) != 32 for one in path):
        raise Refused("a proof of the receipt is too short")
    entry = TlogEntry.decode(extra[: _ENTRY.size])
    number, count = _INNER.unpack_from(extra, _ENTRY.size)
    inner = [extra[at + 32 * i : at + 32 * i + 32] for i in range(count)]
    hidden = extra[at + 32 * count :]
    if len(hidden) <= _SALT_BYTES:
        raise Refused("a proof of the receipt holds no event")
    commitment = sha256(COMMITMENT_PREFIX + hidden).digest()
    if root_of_proof(leaf_hash(commitment), number, entry.next_offset - entry.base_offset, inner) != entry.inner_root:
        raise Refused("the event is not the one in the record batch")
    if root_of_proof(leaf_hash(entry.encode()), index, checkpoint.size, path) != checkpoint.root:
        raise Refused("the record batch is not in the tree that was signed")
    event = _decode_event(hidden[_SALT_BYTES:])
    if event.offset != entry.base_offset + number:
        raise Refused(f"the event has offset {event.offset}, and stands at {entry.base_offset + number}")
    return event


def _decode_event(value: bytes) -> ProvenEvent:
    try:
        version, *shape = msgpack.unpackb(value, use_list=False, strict_map_key=False)
        event = ProvenEvent(*shape)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Refused(f"an event can't be decoded ({error})") from error
    numbers = (version, *event[:4], *(() if event.previous is None else (event.previous,)))
    if version != 1 or not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise Refused("an event is not of the shape that this verifier knows: a newer one may")
    if type(event.fields) is not tuple or not event.fields or type(event.fields[0]) is not bytes:
        raise Refused("an event of the receipt is of no job")
    if len(event.fields[0]) != 16:
        raise Refused("an event of the receipt is of no job")
    return event


def _check_order(events: Sequence[ProvenEvent]) -> None:
    """Raise `Refused` unless the last event follows the one before it, of the same job, with none left out."""
    last = events[-1]
    if len(events) == 1:
        if last.previous is not None or last.kind != 1:
            raise Refused(f"the receipt begins at offset {last.offset}, and the job has earlier events")
        return
    before = events[-2]
    if last.fields[0] != before.fields[0]:
        raise Refused("the receipt holds events of several jobs")
    if last.previous != before.offset:
        raise Refused(
            f"an event is left out: the one at offset {last.offset} follows one at {last.previous}, and there is "
            f"{before.offset} before it here"
        )
    if last.offset <= before.offset or last.time_ms < before.time_ms or last.epoch < before.epoch:
        raise Refused(f"the event at offset {last.offset} is before the one that it follows")


def job_text(job: bytes) -> str:
    """A job's id as people write it: a ULID."""
    number, digits = int.from_bytes(job), ""
    for _ in range(26):
        number, digit = divmod(number, 32)
        digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"[digit] + digits
    return digits


def _plain(value: Any) -> Any:
    """A field for JSON: bytes in hexadecimal."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    # What no event of ledgerq has, and a log may hold all the same.
    return value if value is None or isinstance(value, str | int | float) else repr(value)


def verdict(receipt: Receipt) -> dict[str, Any]:
    """What a receipt proves, for JSON."""
    return {
        "job_id": job_text(receipt.job),
        "origin": receipt.checkpoint.origin,
        "tree_size": receipt.checkpoint.size,
        "root": receipt.checkpoint.root.hex(),
        "witnesses": [key.name for key in receipt.checkpoint.cosigned],
        "seen_at": None if receipt.checkpoint.seen_s is None else _time(receipt.checkpoint.seen_s * 1000),
        "events": [
            {
                "offset": event.offset,
                "time": _time(event.time_ms),
                "event": event.name,
                "kind": event.kind,
                "fields": _plain(event.fields[1:]),
            }
            for event in receipt.events
        ],
    }


def _time(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


def verdict_lines(receipt: Receipt) -> list[str]:
    """What a receipt proves, for people."""
    found = verdict(receipt)
    by = f", cosigned by {', '.join(found['witnesses'])}" if found["witnesses"] else ""
    lines = [f"{one['offset']:>10}  {one['time']}  {one['event']}" for one in found["events"]]
    count = "1 event" if len(lines) == 1 else f"{len(lines)} events"
    return [
        f"verified: job {found['job_id']}, {count}, none left out between the first and the last",
        f"log {found['origin']}, in its signed tree of {found['tree_size']} record batches{by}",
        *lines,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the receipt that a command line names: 0 when it proves what it shows, 1 when it does not, 2 for misuse."""
    parser = argparse.ArgumentParser(description="Check a receipt of a ledgerq job, offline.")
    parser.add_argument("file", help="the receipt")
    known = parser.add_mutually_exclusive_group(required=True)
    known.add_argument("--key", metavar="VKEY", help="the log's verifier key, had from elsewhere than the receipt")
    known.add_argument("--policy", metavar="FILE", help="a policy: which logs are trusted, which witnesses must agree")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    try:
        with Path(options.file).open("rb") as file:
            content = file.read(MAX_RECEIPT_BYTES + 1)
        given = None if options.policy is None else Path(options.policy).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(str(error))
    try:
        policy = policy_of(VerifierKey.parse(options.key)) if given is None else parse_policy(given)
        receipt = check_receipt(content, policy)
    except Refused as error:
        print(json.dumps({"refused": str(error)}) if options.json else f"REFUSED: {error}")
        return 1
    print(json.dumps(verdict(receipt)) if options.json else "\n".join(verdict_lines(receipt)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
