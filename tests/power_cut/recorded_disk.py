"""A file system in memory that is fed with recorded system calls, so that a power cut can be had at any moment.

It knows the calls that programs use on files; another one that touches a watched file is an error.
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.power_cut.kernel_files import (
    NOTE,
    Change,
    Inode,
    Notes,
    Tree,
    after_a_cut,
    durable_names,
    live_names,
    manifest_of,
)
from tests.power_cut.system_calls import Call

__all__ = ["Disk"]

# Calls that change no data and no names.
_HARMLESS: Final = ("fcntl", "ioctl", "close", "close_range")


# Calls that make a name, and where among their arguments it is.
_NEW_NAME: Final = {"mkdir": 0, "mkdirat": 1, "link": 1, "linkat": 3, "rename": 1, "renameat": 3, "renameat2": 3}


class _Opened:
    """What a file descriptor stands for."""

    def __init__(self, inode: Inode, *, appends: bool) -> None:
        self.inode = inode
        self.appends = appends
        self.position = 0


class Disk:
    """The files below the folder `root`, and what was written to the files of `sinks`, which lie elsewhere."""

    def __init__(self, root: Path, *, sinks: Mapping[str, Path], tree: Tree | None = None) -> None:
        self.notes: Notes = {}
        self.sinks = {name: bytearray() for name in sinks}
        self._root = Inode(is_folder=True)
        self._prefix = f"{root}/"
        self._sink_paths = {str(path): name for name, path in sinks.items()}
        self._sink_fds: dict[int, str] = {}
        self._fds: dict[int, _Opened] = {}
        self._begun: dict[int, Call] = {}
        self._hurried: set[int] = set()
        self._removed: dict[tuple[Inode, str], Inode] = {}
        self._syncing: dict[int, tuple[Inode, bytes, int, int]] = {}
        self._number = 0
        self._changed = False
        self._pending: list[Change] = []
        for path, data in sorted((tree or {}).items()):
            self._load(path, data)

    def _load(self, path: str, data: bytes | None) -> None:
        folder, name = self._find(self._prefix + path)
        assert folder is not None
        inode = Inode(is_folder=data is None)
        inode.data[:] = data or b""
        inode.sync(bytes(inode.data), 0)
        folder.names[name] = folder.durable[name] = inode

    def restart(self) -> None:
        """Another process begins; the kernel is the same, and may have done what the one before was killed in."""
        self._fds.clear()
        self._sink_fds.clear()
        self._syncing.clear()
        left = [call for call in self._begun.values() if call.name in _NEW_NAME and call.thread not in self._hurried]
        self._begun = {-number: call._replace(thread=-number) for number, call in enumerate(left, 1)}
        self._hurried.clear()

    # ------------------------------------------------------------------ the calls

    def step(self, call: Call) -> bool:
        """Take in the beginning or the end of a call; whether a cut after it leaves something else than before it."""
        self._changed = False
        if call.result is None:
            self._begun[call.thread] = call
            self._hurried.discard(call.thread)
            self._begin(call)
        else:
            self._begun.pop(call.thread, None)
            if call.result >= 0:
                handler = getattr(self, f"_end_{call.name}", None)
                if handler is not None:
                    handler(call, *call.arguments)
                elif call.name not in _HARMLESS and self._concerns(call):
                    raise NotImplementedError(f"{call.name} on a watched file: {call.arguments}")
            self._syncing.pop(call.thread, None)
        return self._changed

    def _begin(self, call: Call) -> None:
        """What must be seen when a call begins."""
        first = call.arguments[0] if call.arguments else b""
        fd = int(first) if isinstance(first, str) and first.isdigit() else -1
        if call.name == "close":
            # The number is free before the call's end is seen.
            self._fds.pop(fd, None)
            self._sink_fds.pop(fd, None)
        elif call.name in ("fsync", "fdatasync") and fd in self._fds:
            inode = self._fds[fd].inode
            self._syncing[call.thread] = inode, bytes(inode.data), inode.written, self._number
        elif call.name == "write" and fd in self._sink_fds:
            assert isinstance(call.arguments[1], bytes)
            self.sinks[self._sink_fds[fd]] += call.arguments[1]
            self._changed = True

    def _end_open(self, call: Call, path: bytes, flags: str, *_: bytes | str) -> None:
        self._end_openat(call, "AT_FDCWD", path, flags)

    def _end_openat(self, call: Call, at: str, path: bytes, flags: str, *_: bytes | str) -> None:
        assert call.result is not None
        text = path.decode()
        if text in self._sink_paths:
            self._sink_fds[call.result] = self._sink_paths[text]
            return
        parent, name = self._find(text, at)
        if parent is None:
            return
        inode = self._looked_up(parent, name) if name else parent
        if inode is None and "O_CREAT" in flags:
            inode = self._create(parent, name)
        elif inode is None:
            # The end of its removal was seen before that of this call.
            inode = self._removed.get((parent, name))
            assert inode is not None, f"{text} was opened, and is not there"
        if "O_TRUNC" in flags:
            inode.resize(0)
            self._changed = True
        self._fds[call.result] = _Opened(inode, appends="O_APPEND" in flags)

    def _end_dup(self, call: Call, fd: str, *_: bytes | str) -> None:
        assert call.result is not None
        if int(fd) in self._fds:
            self._fds[call.result] = self._fds[int(fd)]

    _end_dup2 = _end_dup3 = _end_dup

    def _end_fcntl(self, call: Call, fd: str, what: str, *_: bytes | str) -> None:
        if what.startswith("F_DUPFD"):
            self._end_dup(call, fd)

    def _end_lseek(self, call: Call, fd: str, *_: bytes | str) -> None:
        assert call.result is not None
        if int(fd) in self._fds:
            self._fds[int(fd)].position = call.result

    def _end_write(self, call: Call, fd: str, data: bytes, *_: bytes | str) -> None:
        assert call.result is not None
        opened = self._fds.get(int(fd))
        if opened is not None:
            at = len(opened.inode.data) if opened.appends else opened.position
            opened.inode.write(at, data[: call.result])
            self._changed = True
            opened.position = at + call.result

    _end_writev = _end_write

    def _end_pwrite64(self, call: Call, fd: str, data: bytes, _count: str, at: str, *_: bytes | str) -> None:
        opened = self._fds.get(int(fd))
        if opened is not None:
            opened.inode.write(int(at), data[: call.result])
            self._changed = True

    _end_pwritev = _end_pwritev2 = _end_pwrite64

    def _end_ftruncate(self, call: Call, fd: str, size_bytes: str) -> None:
        if int(fd) in self._fds:
            self._fds[int(fd)].inode.resize(int(size_bytes))
            self._changed = True

    def _end_fsync(self, call: Call, *_: bytes | str) -> None:
        if call.thread not in self._syncing:
            return
        inode, data, written, number = self._syncing[call.thread]
        self._changed = True
        if not inode.is_folder:
            inode.sync(data, written)
            return
        left: list[Change] = []
        for change in self._pending:
            if change.folder is inode and change.number <= number:
                change.apply(durable_names)
            else:
                left.append(change)
        self._pending = left

    _end_fdatasync = _end_fsync

    # ------------------------------------------------------------------ the names

    def _end_mkdir(self, call: Call, path: bytes, *_: bytes | str) -> None:
        self._end_mkdirat(call, "AT_FDCWD", path)

    def _end_mkdirat(self, call: Call, at: str, path: bytes, *_: bytes | str) -> None:
        folder, name = self._find(path.decode(), at)
        if folder is not None and call.thread not in self._hurried:
            self._create(folder, name, is_folder=True)

    def _end_unlink(self, call: Call, path: bytes) -> None:
        self._end_unlinkat(call, "AT_FDCWD", path)

    _end_rmdir = _end_unlink

    def _end_unlinkat(self, call: Call, at: str, path: bytes, *_: bytes | str) -> None:
        folder, name = self._find(path.decode(), at)
        if folder is not None:
            gone = self._looked_up(folder, name)
            assert gone is not None, f"{path!r} was removed, and is not there"
            self._removed[folder, name] = gone
            self._change(folder, (folder, name, None, gone))

    def _end_link(self, call: Call, old: bytes, new: bytes) -> None:
        self._end_linkat(call, "AT_FDCWD", old, "AT_FDCWD", new)

    def _end_linkat(self, call: Call, at: str, old: bytes, new_at: str, new: bytes, *_: bytes | str) -> None:
        (source, name), (folder, new_name) = self._find(old.decode(), at), self._find(new.decode(), new_at)
        if source is None and folder is not None:
            raise NotImplementedError(f"a link to a file from elsewhere: {old!r}, {new!r}")
        if source is not None and folder is not None and call.thread not in self._hurried:
            target = self._looked_up(source, name)
            assert target is not None, f"{old!r} was linked, and is not there"
            self._change(folder, (folder, new_name, target, None))

    def _end_rename(self, call: Call, old: bytes, new: bytes) -> None:
        self._end_renameat(call, "AT_FDCWD", old, "AT_FDCWD", new)

    def _end_renameat(self, call: Call, at: str, old: bytes, new_at: str, new: bytes, *_: bytes | str) -> None:
        (source, name), (folder, new_name) = self._find(old.decode(), at), self._find(new.decode(), new_at)
        if (source is None) != (folder is None):
            raise NotImplementedError(f"a rename across the border: {old!r}, {new!r}")
        if source is not None and folder is not None and call.thread not in self._hurried:
            target = self._looked_up(source, name)
            assert target is not None, f"{old!r} was renamed, and is not there"
            self._removed[source, name] = target
            self._change(folder, (folder, new_name, target, None), (source, name, None, target))
            if new_name == NOTE:
                self._take_note(folder, bytes(target.data))

    _end_renameat2 = _end_renameat

    def _take_note(self, store: Inode, note: bytes) -> None:
        manifest: Inode | None = store
        for name in manifest_of(note).split("/"):
            manifest = manifest.names.get(name) if manifest is not None else None
        if manifest is not None:
            self.notes[note] = bytes(manifest.data)

    def _find(self, path: str, at: str = "AT_FDCWD") -> tuple[Inode | None, str]:
        """The folder of a path and the name in it; no folder when it is not watched."""
        if path.startswith("/"):
            if not f"{path}/".startswith(self._prefix):
                return None, ""
            folder, rest = self._root, path[len(self._prefix) :]
        elif at != "AT_FDCWD" and int(at) in self._fds:
            folder, rest = self._fds[int(at)].inode, path
        else:
            return None, ""
        names = [name for name in rest.split("/") if name not in ("", ".")]
        assert ".." not in names, path
        for name in names[:-1]:
            inner = self._looked_up(folder, name)
            assert inner is not None, f"{path} was used, and has no folder"
            folder = inner
        return folder, names[-1] if names else ""

    def _looked_up(self, folder: Inode, name: str) -> Inode | None:
        """What has this name; a call that makes it may have done so already, though its end was not seen yet."""
        if name not in folder.names:
            for call in [*self._begun.values()]:
                if call.name not in _NEW_NAME or call.thread in self._hurried:
                    continue
                at = _NEW_NAME[call.name]
                path, place = call.arguments[at], call.arguments[at - 1] if "at" in call.name else "AT_FDCWD"
                assert isinstance(path, bytes)
                assert isinstance(place, str)
                if path.decode().rpartition("/")[2] == name and self._find(path.decode(), place) == (folder, name):
                    getattr(self, f"_end_{call.name}")(call, *call.arguments)
                    self._hurried.add(call.thread)
        return folder.names.get(name)

    def _create(self, folder: Inode, name: str, *, is_folder: bool = False) -> Inode:
        inode = Inode(is_folder=is_folder)
        self._change(folder, (folder, name, inode, None))
        return inode

    def _change(self, folder: Inode, *parts: tuple[Inode, str, Inode | None, Inode | None]) -> None:
        self._changed = True
        self._number += 1
        change = Change(self._number, folder, parts)
        self._pending.append(change)
        change.apply(live_names)

    def _concerns(self, call: Call) -> bool:
        """Whether a call that isn't modelled touches what is watched."""
        if call.name in ("sync", "chdir", "fchdir"):
            return True
        fds = [int(word) for word in call.arguments if isinstance(word, str) and word.isdigit()]
        paths = [word.decode() for word in call.arguments if isinstance(word, bytes) and word.startswith(b"/")]
        if call.name.startswith("symlink"):
            # Where it leads to may be watched; what is changed is the folder that it is in.
            paths = paths[1:]
        return any(fd in self._fds for fd in fds[:2]) or any(self._find(path)[0] is not None for path in paths)

    # ------------------------------------------------------------------ what is left

    def after_a_cut(self, model: str, rng: random.Random) -> Tree:
        """The files that a power cut at this moment leaves."""
        return after_a_cut(self._root, self._pending, model, rng)
