"""Redaction of URLs in messages: people put credentials and signed queries where they don't belong.

A location with credentials is refused, and the refusal goes to terminals, log files and issue trackers: it must not
carry them there. What stands for something left out is `***`.
"""

import re
from typing import Final

__all__ = ["redact_urls", "redacted"]

_MARK: Final = "***"
_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()]+")
_BEGINNING: Final = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//|(?=[A-Za-z][A-Za-z0-9+.-]*:)")
# A host, by name or as [IPv6], and a port: what stands before a path in an honest URL.
_HOST: Final = re.compile(r"(\[[^\]]*\]|[^\[\]:@%]*)(:[0-9]*)?")
_PAIRS: Final = re.compile(r"[?#].*=", re.DOTALL)
_AFTER_PATH: Final = re.compile(r"[?#]")


def redacted(url: str) -> str:
    """A URL or path as the user gave it, without user, password, query and fragment."""
    match = _BEGINNING.match(url)
    if match is None:
        return _without_query(url) if _PAIRS.search(url) else url
    start, rest = match[0], url[match.end() :]
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if not start:
        # "user:password@host", or a path with a colon.
        return _MARK + _without_query(rest[rest.rindex("@") :]) if "@" in rest else url
    if not _HOST.fullmatch(host):
        # A password may hold a slash, so it can go on where the path seems to begin.
        _, at, after = rest.rpartition("@")
        return start + _MARK + (_without_query(at + after) if at else "")
    return start + _without_query(rest)


def redact_urls(text: str) -> str:
    """A message with every URL in it redacted."""
    return _URL.sub(lambda match: redacted(match[0]), text) if "://" in text else text


def _without_query(text: str) -> str:
    match = _AFTER_PATH.search(text)
    return text if match is None or match.end() == len(text) else text[: match.end()] + _MARK
