"""The permissions of a store's files: for its owner alone, whatever the umask; older folders keep their modes."""

import asyncio
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledgerq.eventlog.files.private_folders import make_parts, make_private
from ledgerq.eventlog.recorded_audit import RecordedAudit, write_recorded_audit
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, make_ledger

NOBODY = 65534
PARTS = {"manifest", "wal", "compacted", "compactions", "gc"}


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """With which new files are readable by all."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def has_lists(folder: Path) -> bool:
    """Whether this file system has access control lists."""
    make_private(folder)
    return "system.posix_acl_default" in os.listxattr(folder)


async def test_a_new_store_is_its_owners_alone(tmp_path: Path) -> None:
    store = tmp_path / "store"
    async with Queue.open(str(store)) as queue:
        await queue.enqueue("mail", b"a secret")
        await write_recorded_audit(str(store), RecordedAudit(1, 2, 0, True, False))
    async with Queue.open(str(store)) as queue:
        await queue.enqueue("mail", b"a secret")
    folders = [store, *(path for path in store.rglob("*") if path.is_dir())]
    files = [path for path in store.rglob("*") if not path.is_dir()]
    assert {folder.name for folder in folders} == {"store", *PARTS}
    assert {mode(folder) for folder in folders} == {0o700}
    assert {mode(store / name) for name in ("anchor", "audit")} == {0o600}
    if has_lists(tmp_path / "other"):
        assert {mode(file) for file in files} == {0o600}


async def test_in_a_folder_that_was_there_what_is_new_is_closed_and_the_folder_stays_as_it_was(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(0o755)
    async with Queue.open(str(store)) as queue:
        await queue.enqueue("mail", b"a secret")
    assert mode(store) == 0o755
    assert {path.name: mode(path) for path in store.iterdir() if path.is_dir()} == dict.fromkeys(PARTS, 0o700)
    assert mode(store / "anchor") == 0o600


async def test_a_store_that_was_opened_to_a_group_stays_so(tmp_path: Path) -> None:
    store = tmp_path / "store"
    await make_ledger(store)
    (store / "gc").rmdir()
    for folder in (store, *(path for path in store.iterdir() if path.is_dir())):
        folder.chmod(0o2750)
    await make_ledger(store)
    assert {mode(store / part) for part in PARTS} == {0o2750}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_what_root_makes_in_a_store_of_somebody_elses_is_given_to_its_owner(tmp_path: Path) -> None:
    store = tmp_path / "store"
    await make_ledger(store)
    for path in (store, *store.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    (store / "gc").rmdir()
    (store / "anchor").unlink()
    async with Queue.open(str(store)) as queue:
        for number in range(20):
            await queue.enqueue("mail", b"%d" % number)
        await write_recorded_audit(str(store), RecordedAudit(1, 2, 0, True, False))
        # Also while it is open, and if it were killed now.
        assert {path.name for path in (store / "wal").iterdir() if path.stat().st_uid != NOBODY} == set()
    assert {str(path) for path in (store, *store.rglob("*")) if path.stat().st_uid != NOBODY} == set()


def test_without_access_control_lists_the_folders_are_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    make_private(tmp_path / "refused")
    monkeypatch.delattr(os, "listxattr")
    make_private(tmp_path / "store")
    make_parts(tmp_path / "store")
    make_parts(tmp_path / "store")
    assert {mode(path) for path in (tmp_path / "store").iterdir()} == {0o700}


def test_a_list_that_is_handed_down_stays(tmp_path: Path) -> None:
    if not has_lists(tmp_path / "above"):
        pytest.skip("this file system has no access control lists")
    own = os.getxattr(tmp_path / "above", "system.posix_acl_default").replace(b"\x04\x00\x00", b"\x04\x00\x05")
    os.setxattr(tmp_path / "above", "system.posix_acl_default", own)
    make_private(tmp_path / "above" / "store")
    assert os.getxattr(tmp_path / "above" / "store", "system.posix_acl_default") == own


def test_the_doctor_warns_of_a_folder_that_others_can_look_into(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(make_ledger(tmp_path / "store"))
    cli = Cli(capsys, monkeypatch)

    def permissions() -> tuple[str, str]:
        found = {check["name"]: check for check in cli.ok("doctor", tmp_path / "store", "--json").json["checks"]}
        return found["permissions"]["status"], found["permissions"]["measured"]

    assert permissions()[0] == "ok"
    for others, status in ((0o750, "ok"), (0o755, "warn"), (0o701, "warn"), (0o704, "warn")):
        (tmp_path / "store").chmod(others)
        found, measured = permissions()
        assert found == status
        assert ("every user may look into it" in measured) == (status == "warn")
