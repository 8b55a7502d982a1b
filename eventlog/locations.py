"""The location of a store: one text that users type, parsed once.

The forms: `memory:///`, `file:///abs/olute`, a plain path, `s3://bucket/prefix`, `gs://bucket/prefix`,
`az://container/prefix`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.runtime.redaction import redacted

__all__ = ["Location", "parse_location"]

_OBJECT_SCHEMES: Final = ("s3", "gs", "az")
_KNOWN: Final = (
    "memory:///, file:///folder, a plain path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
)
# The object_store crate under SlateDB percent-encodes these in a path, and SlateDB then spreads one store over two
# folders ("a#b" and "a%23b"), neither of which is the one the user named. Tried on slatedb 0.17.0.
_UNSAFE: Final = re.compile(r"[^ -~]|[\\{^}%`\]\">\[~<#|*?]")
_LEFT_OUT: Final = re.compile(r"[\t\r\n]")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")


@dataclass(frozen=True, slots=True)
class Location:
    """A store's location, parsed.

    `root` is what SlateDB's `ObjectStore.resolve` takes, `database` the path of the store in there, without slashes at
    its ends, `original` the text it came from, for messages.
    """

    scheme: str
    root: str
    database: str
    original: str

    @property
    def is_file(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.scheme == "file"

    @property
    def is_memory(self) -> bool:
        """Whether it is gone when the process ends."""
        return self.scheme == "memory"

    @property
    def folder(self) -> Path:
        """The store's folder; only a file store has one."""
        if not self.is_file:
            raise InvalidArgument(f"{self.original} is not a folder of this machine")
        return Path("/" + self.database)

    @property
    def bucket(self) -> str:
        """The bucket or container; only an object store has one."""
        if self.is_file or self.is_memory:
            raise InvalidArgument(f"{self.original} is not in an object store")
        return self.root.partition("://")[2]


def parse_location(text: str) -> Location:
    """Parse a URL or a path; raises `InvalidArgument` with the reason when it names no location for a store."""
    if not isinstance(text, str):
        raise InvalidArgument(f"a {type(text).__name__} is not a place for a store: expected as text {_KNOWN}")
    if not text or "\0" in text:
        raise _refusal(text, f" is not a place for a store: expected as text {_KNOWN}")
    match = _SCHEME.match(text)
    if match is None:
        return _file(text, _absolute(text))
    scheme = match[1].lower()
    if match[2] is None or scheme not in ("memory", "file", *_OBJECT_SCHEMES):
        raise _refusal(text, f" has an unknown scheme: expected {_KNOWN}")
    # The parser of URLs would leave them out, and another location than the one written would be opened.
    _refuse(text, _LEFT_OUT.search(text), "write the place without it")
    try:
        parts = urlsplit(text)
    except ValueError:
        # Its own words repeat what may be a password.
        raise _refusal(text, f" is not a URL: expected {_KNOWN}") from None
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise _refusal(text, " has a query or a fragment, which mean nothing here; settings are options")
    if scheme == "memory":
        if parts.netloc or parts.path not in ("", "/"):
            raise _refusal(text, ": a memory store has no name, write memory:///")
        return Location("memory", "memory:///", "", text)
    if scheme == "file":
        return _file_url(text, parts.netloc, parts.path)
    return _object(text, scheme, parts.netloc, parts.path)


def _absolute(text: str) -> str:
    try:
        return str(Path(text).absolute())
    except OSError as error:
        raise _refusal(text, f": the current folder is gone ({error.strerror}); give a whole path") from error


def _parent(text: str, pieces: list[str]) -> list[str]:
    """The parent as the system resolves it: a symbolic link's parent is not the folder before it in the path."""
    try:
        return str(Path("/" + "/".join([*pieces, ".."])).resolve()).strip("/").split("/")
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, text that no path may hold
        raise _refusal(text, f" leads nowhere ({error})") from error


def _file_url(text: str, host: str, path: str) -> Location:
    if host not in ("", "localhost"):
        raise _refusal(
            text,
            " names a host: a file URL has three slashes and an absolute path, file:///folder "
            "(write a relative folder without file://)",
        )
    decoded = unquote(path, errors="surrogateescape")
    if "\0" in decoded:
        raise _refusal(text, " holds a NUL, which no path may")
    return _file(text, decoded)


def _file(text: str, path: str) -> Location:
    pieces: list[str] = []
    for piece in path.split("/"):
        if piece == "..":
            pieces = _parent(text, pieces)
        elif piece not in ("", "."):
            pieces.append(piece)
    database = "/".join(piece for piece in pieces if piece)
    if not database:
        raise _refusal(text, " is the root folder: name a folder of the store's own")
    _refuse_unsafe(text, database, "a symbolic link with a plain name to it will do")
    return Location("file", "file:///", database, text)


def _object(text: str, scheme: str, bucket: str, path: str) -> Location:
    if not bucket:
        raise _refusal(text, f" names no bucket: write {scheme}://bucket/prefix")
    if "@" in bucket or ":" in bucket:
        raise _refusal(text, ": credentials and ports go into the environment, not into the URL")
    _refuse_unsafe(text, bucket, "use another bucket")
    database = path.strip("/")
    if any(piece in ("", ".", "..") for piece in database.split("/")) and database:
        raise _refusal(text, ": a prefix has no empty part, no '.' and no '..'")
    _refuse_unsafe(text, database, "use another prefix")
    return Location(scheme, f"{scheme}://{bucket}", database, text)


def _refusal(text: str, why: str) -> InvalidArgument:
    # Credentials in a URL must not be found in a log afterwards.
    return InvalidArgument(f"{redacted(text)!r}{why}")


def _refuse_unsafe(text: str, database: str, remedy: str) -> None:
    _refuse(text, _UNSAFE.search(database), remedy)


def _refuse(text: str, found: re.Match[str] | None, remedy: str) -> None:
    if found is not None:
        raise _refusal(
            text,
            f": the store can't live under a name with {found[0]!r} (only plain ASCII letters, digits, spaces "
            f"and the signs ! $ & ' ( ) + , - . / : ; = @ _ are kept as they are); {remedy}",
        )
