"""Escaping of foreign text, so that it fits one line of a log or a terminal.

Names, errors and reasons come from callers, handlers and operators. A newline in one forges a line, an escape
sequence steers the terminal, a mark for right-to-left writing shows another text than the one that is there.
"""

import re
from typing import Final

__all__ = ["printable", "printable_json"]

_NOT_ASCII: Final = re.compile(r"[^ -~]")


def printable(text: str) -> str:
    """`text` on one line, with each character that is not visible as an escape: `\\n`, `\\x1b`, `\\u202e`."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode()


def printable_json(document: str) -> str:
    """The same JSON `document` without characters that steer a terminal; JSON itself escapes those below U+0020."""
    if document.isprintable():
        return document
    return _NOT_ASCII.sub(lambda match: match[0] if match[0].isprintable() else _json_escape(match[0]), document)


def _json_escape(sign: str) -> str:
    """JSON's escape, in UTF-16: a character beyond U+FFFF takes two."""
    units = sign.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
