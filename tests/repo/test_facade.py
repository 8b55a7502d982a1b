"""`import ledgerq`: a help that can be read, and each public name in every place where it is looked for."""

import ast
import pydoc
from pathlib import Path

import ledgerq

ERRORS = ("ledgerq.eventlog.errors", "ledgerq.worker.remote.service_errors")
MAX_WORDS = 5_000  # not lines: some Pythons give each argument one of its own


def test_help_can_be_read_and_names_what_there_is() -> None:
    text = pydoc.plain(pydoc.render_doc(ledgerq))
    assert len(text.split()) < MAX_WORDS
    errors = {name for name, home in ledgerq._HOME.items() if home in ERRORS}
    assert not [name for name in {*ledgerq._HOME} - errors if name not in text]


def test_each_name_is_found_and_listed_and_known_to_type_checkers() -> None:
    tree = ast.parse(Path(ledgerq.__file__).read_text("utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    typed = {
        alias.asname: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert typed == ledgerq._HOME
    assert {*ledgerq._HOME, "events"} <= {*dir(ledgerq)}
    for name in (*ledgerq._HOME, *ledgerq.__all__):
        assert getattr(ledgerq, name) is not None
