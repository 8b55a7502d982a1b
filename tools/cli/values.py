"""The command that shows keys and their values."""

from typing import Annotated

import typer

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.tools.console.arguments import AsJson, Url
from ledgerq.tools.console.opening import execute, reading
from ledgerq.tools.console.output import Output, plural

__all__ = ["kv"]

_PAGE_KEYS = 1000
Key = Annotated[str | None, typer.Argument(metavar="[KEY]", help="Show the value of this key.")]
Prefix = Annotated[str, typer.Option(metavar="TEXT", help="List the keys that begin with this.")]
AsOf = Annotated[int | None, typer.Option("--as-of", metavar="OFFSET", help="What KEY had before this offset.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many keys.")]


def kv(
    url: Url, key: Key = None, prefix: Prefix = "", as_of: AsOf = None, limit: Limit = 100, as_json: AsJson = False
) -> None:
    """List the keys that jobs set, or show a value.

    Only the newest value of a key is kept: of an older one --as-of shows the version and the digest.
    """
    output = Output(as_json=as_json)
    if key is None:
        if as_of is not None:
            raise InvalidArgument("--as-of is for one key: name it")
        execute(_list(url, prefix, limit, output))
    else:
        execute(_show(url, key, as_of, output))


async def _list(url: str, prefix: str, limit: int, output: Output) -> None:
    from ledgerq.projections.value_view import ValueView
    from ledgerq.projections.values import KvKey
    from ledgerq.tools.console.value_descriptions import KEY_COLUMNS, key_json, key_row

    found, after = list[KvKey](), None
    async with reading(url) as log:
        while len(found) < limit:
            page = await ValueView(log).keys(prefix, limit=min(_PAGE_KEYS, limit - len(found)), after=after)
            found += page.keys
            if (after := page.next) is None:
                break
    if output.as_json:
        for one in found:
            output.json(key_json(one))
        return
    if found:
        output.table(KEY_COLUMNS, [key_row(one) for one in found], right=("version", "bytes"))
    output.line(plural(len(found), "key") + ("" if after is None else ", and there are more: see --limit"))


async def _show(url: str, key: str, as_of: int | None, output: Output) -> None:
    from ledgerq.projections.value_view import ValueView
    from ledgerq.tools.console.value_descriptions import past_json, past_text

    async with reading(url) as log:
        found = await ValueView(log).at(key, await log.end() if as_of is None else as_of)
    if found is None:
        raise InvalidArgument(f"key {key!r} has no value" + ("" if as_of is None else f" before offset {as_of}"))
    if output.as_json:
        output.json(past_json(key, found))
    else:
        output.line(past_text(found))
