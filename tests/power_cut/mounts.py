"""File systems in image files, mounted by loop devices, that can be cut off as a power cut does it.

The shutdown ioctl lets nothing that is still in memory reach the disk, not even the journal: xfstests tests recovery by
it. Only what is mounted here is ever touched, and all of it is taken away again in the end.
"""

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["FILE_SYSTEMS", "Mount", "mounted", "why_no_mounts"]

# _IOR('X', 125, u32): the same for ext4 and xfs; 2: do not flush the journal.
_SHUTDOWN: Final = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
_WITHOUT_JOURNAL: Final = struct.pack("I", 2)


class _Kind(NamedTuple):
    make: tuple[str, ...]
    size_bytes: int


FILE_SYSTEMS: Final = {
    "ext4": _Kind(("mkfs.ext4", "-q", "-F"), 192 << 20),
    "xfs": _Kind(("mkfs.xfs", "-q", "-f"), 320 << 20),
}


def why_no_mounts(kind: str) -> str:
    """Why no such file system can be mounted and cut off here; an empty string when it can."""
    if os.geteuid() != 0:
        return "only root can mount file systems"
    missing = [name for name in (FILE_SYSTEMS[kind].make[0], "mount", "umount", "losetup") if not shutil.which(name)]
    if missing:
        return f"{', '.join(missing)}: not installed"
    try:
        with tempfile.TemporaryDirectory() as folder, mounted(kind, Path(folder)) as mount:
            mount.cut()
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or b""
        return f"no {kind} can be mounted and cut off here: {said.decode(errors='replace').strip() or error}"
    return ""


class Mount:
    """A file system on a loop device, mounted at `folder`."""

    def __init__(self, image: Path, folder: Path, options: str) -> None:
        self.folder = folder
        self._image = image
        self._options = f"loop,{options}" if options else "loop"

    def attach(self) -> None:
        """Mount it; what its journal holds is replayed."""
        _run("mount", "-o", self._options, str(self._image), str(self.folder))

    def cut(self) -> None:
        """From now on nothing reaches the disk any more, and every write and sync fails."""
        fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_JOURNAL)
        finally:
            os.close(fd)

    def detach(self) -> None:
        """Unmount it; no process may use it any more."""
        _run("umount", str(self.folder))

    def drop(self) -> None:
        """Unmount it whatever it takes, and give the loop device back."""
        # What was cut off can't be looked at any more, so whether it is mounted is asked of umount alone.
        subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)
        found = subprocess.run(
            ["losetup", "--noheadings", "--output", "NAME", "-j", str(self._image)], capture_output=True, check=False
        )
        for device in found.stdout.decode().split():
            subprocess.run(["losetup", "-d", device], capture_output=True, check=False)


@contextlib.contextmanager
def mounted(kind: str, place: Path, options: str = "") -> Iterator[Mount]:
    """A new, empty file system whose image and mount point are in the folder `place`, for the block."""
    image, folder = place / "image", place / "mount"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(FILE_SYSTEMS[kind].size_bytes)
    _run(*FILE_SYSTEMS[kind].make, str(image))
    mount = Mount(image, folder, options)
    try:
        mount.attach()
        yield mount
    finally:
        mount.drop()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
