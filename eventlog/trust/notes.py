"""Signed notes as logs and witnesses make them: the private key, and the checkpoint that it signs or cosigns.

The format is c2sp.org/signed-note, that of keys is Go's `golang.org/x/mod/sumdb/note`. verifier.py has the other side.
"""

from base64 import b64encode
from typing import Final, NamedTuple, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.trust.verifier import (
    LOG_KEY,
    WITNESS_KEY,
    Refused,
    VerifierKey,
    cosigned_text,
    decode_base64,
    is_key_name,
)

__all__ = ["SigningKey", "checkpoint_text"]

_PREFIX: Final = ("PRIVATE", "KEY")
SEED_BYTES: Final = 32


class SigningKey(NamedTuple):
    """A private key of a log or a witness: `seed` is secret; `verifier` is what others check its signatures with."""

    seed: bytes
    verifier: VerifierKey

    def __repr__(self) -> str:
        """Without the secret, which would get into messages and tracebacks."""
        return f"SigningKey({self.verifier})"

    @classmethod
    def of(cls, name: str, seed: bytes, kind: int = LOG_KEY) -> Self:
        """The key of this log or witness from 32 random bytes; raises `InvalidArgument` for a name that none has."""
        if not is_key_name(name):
            raise InvalidArgument(
                f"{name!r} is no name of a log: it has neither spaces nor a plus, as example.com/jobs"
            )
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
        return cls(seed, VerifierKey.of(name, kind, public))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key in the text that `encode` makes; raises `InvalidArgument`, which doesn't repeat any of it."""
        private, key, name, key_id, encoded = [*text.strip().split("+", 4), "", "", "", "", ""][:5]
        try:
            raw = decode_base64(encoded)
        except Refused:
            raw = b""
        if (private, key) != _PREFIX or len(raw) != 1 + SEED_BYTES or raw[0] not in (LOG_KEY, WITNESS_KEY):
            raise InvalidArgument("the file holds no private key of a log or a witness: make one with ledgerq keygen")
        found = cls.of(name, raw[1:], raw[0])
        if found.verifier.key_id.hex() != key_id:
            raise InvalidArgument(f"the private key of {name!r} is damaged: its id doesn't follow from it")
        return found

    def encode(self) -> str:
        """The key as one line of text."""
        encoded = b64encode(bytes((self.verifier.kind,)) + self.seed).decode()
        return "+".join((*_PREFIX, self.verifier.name, self.verifier.key_id.hex(), encoded)) + "\n"

    def sign(self, text: bytes) -> bytes:
        """The note of this text with the signature of a log."""
        return text + b"\n" + self._line(self._signature(text))

    def cosign(self, text: bytes, time_s: int) -> bytes:
        """The line of a note by which a witness says that it saw this checkpoint then."""
        return self._line(time_s.to_bytes(8) + self._signature(cosigned_text(text, time_s)))

    def _signature(self, text: bytes) -> bytes:
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(text)

    def _line(self, signature: bytes) -> bytes:
        return f"\u2014 {self.verifier.name} {b64encode(self.verifier.key_id + signature).decode()}\n".encode()


def checkpoint_text(origin: str, size: int, root: bytes) -> bytes:
    """The text of a checkpoint, which is signed."""
    return f"{origin}\n{size}\n{b64encode(root).decode()}\n".encode()
