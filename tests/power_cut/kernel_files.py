"""Files and folders as a kernel holds them and as they were synced, and what a power cut leaves of them.

Only what was synced is sure to be there after a cut. A file's data is synced by a sync of the file that began after it
was written, a name (a new one, a changed one, one that is gone) by a sync of its folder. Of the rest anything may be
there; `MODELS` names the ways in which it is chosen.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "MODELS",
    "NOTE",
    "Change",
    "Inode",
    "Notes",
    "Tree",
    "after_a_cut",
    "durable_names",
    "live_names",
    "manifest_of",
    "renew_notes",
    "tree_of",
    "true_notes",
    "write_tree",
]

MODELS: Final = ("strict", "empty", "half", "zeros", "killed", "mixed")
"""
    strict  only what was synced, names as synced
    empty   all names as they were, of unsynced data nothing
    half    all names, half of the unsynced data; a write over old data is torn
    zeros   all names, files at their full length, zeros for unsynced data
    killed  everything
    mixed   each unsynced file and each unsynced change of a name is there or not, as chance has it
"""

Tree = dict[str, bytes | None]
"""Files by their paths below the root, and what is in them; folders have None."""

_CHANCES: Final = (0.0, 0.1, 0.5, 0.9, 1.0)
# Changes of names reach the disk in their order, as journals keep it; else in any.
_IN_ORDER_CHANCE: Final = 0.3
_SECTOR_BYTES: Final = 512


class Inode:
    """A file or a folder, as the kernel holds it and as it was synced."""

    def __init__(self, *, is_folder: bool = False) -> None:
        self.is_folder = is_folder
        self.data = bytearray()
        self.synced = b""
        self.shortest = 0
        self.written = 0
        self.writes: list[tuple[int, int, bytes]] = []
        self.names: dict[str, Inode] = {}
        self.durable: dict[str, Inode] = {}

    def write(self, at: int, data: bytes) -> None:
        """Put bytes at an offset; a gap is zeros."""
        self.data.extend(bytes(max(0, at - len(self.data))))
        self.data[at : at + len(data)] = data
        self.written += 1
        self.writes.append((self.written, at, data))

    def resize(self, size_bytes: int) -> None:
        """Cut it, or add zeros."""
        self.data.extend(bytes(max(0, size_bytes - len(self.data))))
        del self.data[size_bytes:]
        self.shortest = min(self.shortest, size_bytes)

    def sync(self, data: bytes, written: int) -> None:
        """It was synced as it was after so many writes."""
        self.synced = data
        self.shortest = min(len(data), len(self.data))
        self.writes = [write for write in self.writes if write[0] > written]

    def after_a_cut(self, model: str, rng: random.Random) -> bytes:
        """What is in the file afterwards."""
        if model == "mixed":
            model = rng.choice(("strict", "empty", "half", "zeros", "killed", "cut", "holes"))
        if model == "killed":
            return bytes(self.data)
        if model == "strict":
            return self.synced
        kept, size_bytes = self.synced[: self.shortest], len(self.data)
        if model == "empty":
            return kept
        if model == "zeros":
            return kept + bytes(size_bytes - len(kept))
        if model == "holes":
            parts = [bytes(self.data[at : at + _SECTOR_BYTES]) for at in range(len(kept), size_bytes, _SECTOR_BYTES)]
            return kept + b"".join(rng.choice((part, bytes(len(part)))) for part in parts)
        share = 0.5 if model == "half" else rng.random()
        torn = bytearray(kept)
        for _, at, data in self.writes:
            part = data[: max(0, min(len(kept) - at, int(len(data) * share)))]
            torn[at : at + len(part)] = part
        end = len(kept) + int((size_bytes - len(kept)) * share)
        return bytes(torn + self.data[len(kept) : end])


class Change(NamedTuple):
    """Names that change together; a sync of `folder` makes them durable. A part: where, what is there, what was."""

    number: int
    folder: Inode
    parts: tuple[tuple[Inode, str, Inode | None, Inode | None], ...]

    @property
    def is_removal(self) -> bool:
        return all(target is None for _, _, target, _ in self.parts)

    def apply(self, names_in: Callable[[Inode], dict[str, Inode]]) -> None:
        """Do it to these names of the folders."""
        for folder, name, target, was in self.parts:
            if target is not None:
                names_in(folder)[name] = target
            elif names_in(folder).get(name) is was:
                names_in(folder).pop(name, None)


def live_names(folder: Inode) -> dict[str, Inode]:
    """The names in a folder as programs see them."""
    return folder.names


def durable_names(folder: Inode) -> dict[str, Inode]:
    """The names in a folder that are on the disk."""
    return folder.durable


def after_a_cut(root: Inode, pending: Sequence[Change], model: str, rng: random.Random) -> Tree:
    """The files below a folder that a power cut leaves; the changes `pending` are not surely there."""
    names_in: Callable[[Inode], dict[str, Inode]] = live_names
    if model == "strict":
        names_in = durable_names
    elif model == "mixed":
        names_in = _mixed_names(pending, rng)
    return dict(_walk(root, "", names_in, model, rng))


def _mixed_names(pending: Sequence[Change], rng: random.Random) -> Callable[[Inode], dict[str, Inode]]:
    """Synced names with some of the changes since: the first so many, or any of them."""
    copies: dict[Inode, dict[str, Inode]] = {}

    def names_in(folder: Inode) -> dict[str, Inode]:
        return copies.setdefault(folder, dict(folder.durable))

    if rng.random() < _IN_ORDER_CHANCE:
        chosen = [*pending[: rng.randint(0, len(pending))]]
    else:
        chance, removal_chance = rng.choice(_CHANCES), rng.choice(_CHANCES)
        chosen = [change for change in pending if rng.random() < (removal_chance if change.is_removal else chance)]
    for change in chosen:
        change.apply(names_in)
    return names_in


def _walk(
    folder: Inode, path: str, names_in: Callable[[Inode], dict[str, Inode]], model: str, rng: random.Random
) -> Iterator[tuple[str, bytes | None]]:
    for name, inode in sorted(names_in(folder).items()):
        if inode.is_folder:
            yield path + name, None
            yield from _walk(inode, f"{path}{name}/", names_in, model, rng)
        else:
            yield path + name, inode.after_a_cut(model, rng)


def write_tree(tree: Tree, folder: Path) -> None:
    """Lay these files into a folder; for its owner alone, as a store is made."""
    for path, data in tree.items():
        if data is None:
            (folder / path).mkdir(mode=0o700)
        else:
            (folder / path).touch(mode=0o600)
            (folder / path).write_bytes(data)


def tree_of(folder: Path) -> Tree:
    """The files that are in a folder."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
    }


Notes = dict[bytes, bytes]
"""Notes in a store's file `synced`, which name a manifest by its number and inode, and what was in that manifest."""

NOTE: Final = "synced"


_NOTE_FORM: Final = re.compile(rb"(\d+) (\d+)\n")


def manifest_of(note: bytes) -> str:
    """Where the manifest is that a note names; nowhere when the note is torn."""
    found = _NOTE_FORM.fullmatch(note)
    return f"manifest/{int(found[1]):020d}.manifest" if found else "manifest/none"


def true_notes(folder: Path) -> Notes:
    """The notes of the stores in a folder that name the file that is there."""
    notes: Notes = {}
    for path in folder.glob(f"*/{NOTE}"):
        note = path.read_bytes()
        manifest = path.parent / manifest_of(note)
        if manifest.exists() and manifest.stat().st_ino == int(note.split()[1]):
            notes[note] = manifest.read_bytes()
    return notes


def renew_notes(folder: Path, notes: Notes) -> None:
    """Let notes that are true name the inodes that files have where a disk was laid out."""
    for path in folder.glob(f"*/{NOTE}"):
        note = path.read_bytes()
        manifest = path.parent / manifest_of(note) if note in notes else path
        if note in notes and manifest.exists() and manifest.read_bytes() == notes[note]:
            path.write_bytes(b"%s %d\n" % (note.split()[0], manifest.stat().st_ino))
