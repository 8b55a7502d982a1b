"""The store's folders, made so that only their owner may enter them and read payloads.

SlateDB makes folders and files in threads of its own, with the modes that the process's umask leaves: mostly readable
by all. The umask belongs to the whole program, so it is left alone; what protects a store are its folders. They are
made here, before SlateDB would, with mode 0700. Where the file system has access control lists, a default one makes the
files in them 0600 as well, also those that SlateDB makes.

A folder that was there before keeps the mode that its owner gave it. What root makes in another user's store is given
to the store's owner, who could not open the store any more otherwise.
"""

import contextlib
import os
import struct
from pathlib import Path
from typing import Final

__all__ = ["STORE_FOLDERS", "heir_of", "make_parts", "make_private", "readable_by_others"]

_OWNER_ONLY: Final = 0o700
# All that SlateDB ever makes.
STORE_FOLDERS: Final = ("manifest", "wal", "compacted", "compactions", "gc")
_OTHERS: Final = 0o005
# Version 2 of the kernel's form, then tag, permissions and id of an entry: all to the owner, nothing to its group and
# to others. See acl(5) and include/uapi/linux/posix_acl_xattr.h.
_DEFAULT_LIST: Final = "system.posix_acl_default"
_NO_ID: Final = 2**32 - 1
_OWNER_ONLY_LIST: Final = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, _NO_ID) for tag, permissions in ((0x01, 7), (0x04, 0), (0x20, 0))
)


def make_private(folder: Path) -> None:
    """Make a folder that only its owner may enter, as its files will be. Raises OSError, also when it is there."""
    folder.mkdir(_OWNER_ONLY)
    # Some file systems have no such lists; and a list that the folder above hands down is an administrator's wish.
    with contextlib.suppress(OSError, AttributeError):
        if _DEFAULT_LIST not in os.listxattr(folder):
            os.setxattr(folder, _DEFAULT_LIST, _OWNER_ONLY_LIST)


def make_parts(folder: Path) -> None:
    """Make the folders inside the store in `folder` that are not there yet. Raises OSError.

    In an older store, or one that was opened to others on purpose, a new one is as open as the others.
    """
    model = folder / STORE_FOLDERS[0]
    mode = model.stat().st_mode & 0o7777 if model.is_dir() else _OWNER_ONLY
    heir = heir_of(folder)
    for part in STORE_FOLDERS:
        with contextlib.suppress(FileExistsError):
            if mode == _OWNER_ONLY:
                make_private(folder / part)
            else:
                (folder / part).mkdir(_OWNER_ONLY)
                (folder / part).chmod(mode)
            if heir is not None:
                os.chown(folder / part, *heir)


def heir_of(folder: Path) -> tuple[int, int] | None:
    """The user and group to whom root gives what it makes in `folder`, which is theirs; None for all others.

    Raises OSError.
    """
    if os.geteuid() != 0:
        return None
    found = folder.stat()
    return (found.st_uid, found.st_gid) if found.st_uid != 0 else None


def readable_by_others(folder: Path) -> bool:
    """Whether users who are neither the owner nor of its group may look into `folder`. Raises OSError."""
    return bool(folder.stat().st_mode & _OTHERS)
