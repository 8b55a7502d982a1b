"""A scratch view of a file store: a folder of links to its files without some of them, where other files can be tried.

A store whose newest files are damaged may be whole without them. To find out, it is opened for reading as it would be
then; the store itself is not touched, and the view is gone at the end.
"""

import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ledgerq.eventlog.files.private_folders import STORE_FOLDERS
from ledgerq.eventlog.locations import Location, parse_location

__all__ = ["scratch_view"]


@contextmanager
def scratch_view(location: Location, *, leave_out: Collection[str] = ()) -> Iterator[Location]:
    """A file store with the regular files of the one at `location`, but for those in `leave_out` ("wal/000...1.sst").

    It is to be read only: its files are symbolic links to those of the store. Raises OSError. Blocks.
    """
    folder = Path(tempfile.mkdtemp(prefix="ledgerq-view-"))
    try:
        for name in STORE_FOLDERS:
            _link(location.folder, folder, name, leave_out)
        if "anchor" not in leave_out and (location.folder / "anchor").is_file():
            (folder / "anchor").symlink_to(location.folder / "anchor")
        yield parse_location(str(folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path, name: str, leave_out: Collection[str]) -> None:
    (target / name).mkdir()
    if (source / name).is_dir():
        for path in (source / name).iterdir():
            if path.is_file() and f"{name}/{path.name}" not in leave_out:
                (target / name / path.name).symlink_to(path)
