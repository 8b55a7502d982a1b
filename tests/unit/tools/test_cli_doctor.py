"""The doctor: its reports on good locations and bad ones, and that it leaves nothing behind."""

import asyncio
import errno
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import from_url

from ledgerq.eventlog.anchor import SLOT_BYTES, decode_slot
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.tools.doctor import storage_checks
from ledgerq.tools.doctor.storage_checks import Check, check_rules, file_system
from ledgerq.tools.doctor.storage_probe import Written
from ledgerq.worker.queue import Queue
from tests.s3.servers import bucket, s3_server
from tests.support.cli_rig import Cli, make_ledger

__all__ = ["bucket", "s3_server"]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def statuses(answer: Any) -> dict[str, str]:
    return {check["name"]: check["status"] for check in answer["checks"]}


def test_a_good_place_without_a_store(cli: Cli, tmp_path: Path) -> None:
    answer = cli.ok("doctor", tmp_path / "new", "--json").json
    assert answer["healthy"] is True
    found = statuses(answer)
    assert list(found) == [
        *("reachable and writable", "file system", "free space", "permissions", "fsync", "conditional create"),
        *("read and list after write", "latency", "clock", "ledgerq store"),
    ]
    assert found["conditional create"] == found["read and list after write"] == "ok"
    assert all(check["measured"] for check in answer["checks"])
    assert list(tmp_path.iterdir()) == [], "it leaves nothing behind"


def test_a_good_store(cli: Cli, tmp_path: Path) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    before = sorted(path for path in tmp_path.rglob("*"))
    answer = cli.ok("doctor", ledger.url, "--json").json
    found = {check["name"]: check["measured"] for check in answer["checks"]}
    assert found["ledgerq store"].startswith("format 3, 11 events")
    assert found["last writer"].endswith(", closed")
    assert found["anchor"].startswith("11 events")
    assert sorted(path for path in tmp_path.rglob("*")) == before
    text = cli.ok("doctor", ledger.url).out.splitlines()
    assert text[-1] == "all 12 checks passed"
    assert re.match(r"ok +fsync +\d+\.\d\d ms", next(line for line in text if "fsync" in line))


def test_a_rolled_back_store(cli: Cli, tmp_path: Path) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    other = asyncio.run(make_ledger(tmp_path / "other"))
    cli.ok("enqueue", other.url, "mail", "x")
    (Path(ledger.url) / "anchor").write_bytes((Path(other.url) / "anchor").read_bytes())
    answer = cli("doctor", ledger.url, "--json")
    assert (answer.code, answer.json["healthy"], statuses(answer.json)["anchor"]) == (1, False, "fail")
    (Path(ledger.url) / "anchor").unlink()
    answer = cli("doctor", ledger.url, "--json")
    assert (answer.code, statuses(answer.json)["anchor"]) == (0, "warn")


def test_a_damaged_slot_of_the_anchor(cli: Cli, tmp_path: Path) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    anchor = Path(ledger.url) / "anchor"
    data = bytearray(anchor.read_bytes())
    slots = {at: decode_slot(bytes(data[at : at + SLOT_BYTES])) for at in (0, 4096)}
    found = sorted((slot[0], at) for at, slot in slots.items() if slot is not None)
    older, newer = found[0][1], found[1][1]
    data[newer + 60] ^= 1
    anchor.write_bytes(data)
    # The log has a commit after the other slot's: that is what this one named.
    assert statuses(cli.ok("doctor", ledger.url, "--json").json)["anchor"] == "ok"
    data[newer + 60] ^= 1
    data[older + 60] ^= 1
    anchor.write_bytes(data)
    answer = cli("doctor", ledger.url, "--json")
    assert (answer.code, statuses(answer.json)["anchor"]) == (0, "warn")
    for _ in range(2):
        cli.ok("enqueue", ledger.url, "mail", "x")
    assert statuses(cli.ok("doctor", ledger.url, "--json").json)["anchor"] == "ok"


def test_a_read_only_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the system's answer is given for it.
    def refuse(fd: int, content: bytes, offset: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    monkeypatch.setattr(os, "pwrite", refuse)
    ran = cli("doctor", ledger.url, "--json")
    first, *others = ran.json["checks"]
    assert (ran.code, first["status"]) == (1, "fail")
    assert "Read-only file system" in first["measured"]
    assert "mount it for writing" in first["advice"]
    assert [check["name"] for check in others] == ["ledgerq store", "anchor", "last writer"], "reading it still works"
    assert "fail  reachable and writable" in cli("doctor", ledger.url).out


def test_places_that_cannot_be(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "no" / "folder"):
        answer = cli("doctor", place, "--json")
        assert (answer.code, statuses(answer.json)["reachable and writable"]) == (1, "fail")
    assert "ends with its process" in cli.fails(2, "doctor", "memory:///")


@pytest.mark.proof
def test_a_bucket(cli: Cli, bucket: str) -> None:
    answer = cli.ok("doctor", f"s3://{bucket}/some/prefix", "--json").json
    found = statuses(answer)
    assert list(found) == [
        *("reachable and writable", "conditional create", "conditional update", "metadata"),
        *("read and list after write", "latency", "clock", "ledgerq store"),
    ]
    assert set(found.values()) == {"ok"}
    assert [item for page in obstore.list(from_url(f"s3://{bucket}")) for item in page] == []


@pytest.mark.proof
def test_a_bucket_that_is_not_there(cli: Cli, bucket: str) -> None:
    answer = cli("doctor", f"s3://{bucket}-none/prefix", "--json")
    (check,) = answer.json["checks"]
    assert (answer.code, check["status"]) == (1, "fail")
    assert "there is no bucket" in check["measured"]


# The rules, on a store that breaks them


class FakeProbe:
    """A probe of a right store, but for the faults given."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken
        self._objects: dict[str, tuple[bytes, int, str | None]] = {}
        self._written = 0

    async def put(self, name: str, content: bytes, *, mark: str | None = None) -> Written:
        self._written += 1
        self._objects[name] = (content, self._written, mark)
        return Written(str(self._written), None)

    async def put_new(self, name: str, content: bytes) -> bool:
        if name in self._objects and "create" not in self._broken:
            if "refused but written" in self._broken:
                await self.put(name, content)
            return False
        await self.put(name, content)
        return True

    async def put_over(self, name: str, content: bytes, known: Written) -> bool:
        if "update" in self._broken or str(self._objects[name][1]) == known.e_tag:
            await self.put(name, content)
            return "no update" not in self._broken
        return False

    async def get(self, name: str) -> bytes | None:
        if "outage" in self._broken:
            raise OSError("connection\nreset")
        found = self._objects.get(name)
        return None if found is None else found[0]

    async def mark(self, name: str) -> str | None:
        return None if "metadata" in self._broken else self._objects[name][2]

    async def names(self) -> list[str]:
        return [] if "listing" in self._broken else list(self._objects)

    async def modified_ms(self, name: str) -> int:
        return 0

    async def delete(self, name: str) -> None:
        if "delete" not in self._broken:
            del self._objects[name]


def judge(*broken: str) -> dict[str, Check]:
    checks = asyncio.run(check_rules(FakeProbe(*broken), conditional_update=True))
    return {check.name: check for check in checks if check.status != "ok"}


def test_a_right_store_passes() -> None:
    assert judge() == {}


@pytest.mark.parametrize(
    ("broken", "name", "status"),
    [
        ("create", "conditional create", "fail"),
        ("refused but written", "conditional create", "fail"),
        ("update", "conditional update", "fail"),
        ("no update", "conditional update", "fail"),
        ("metadata", "metadata", "warn"),
        ("listing", "read and list after write", "fail"),
        ("delete", "read and list after write", "fail"),
    ],
)
def test_each_broken_rule_is_found(broken: str, name: str, status: str) -> None:
    (found,) = judge(broken).values()
    assert (found.name, found.status) == (name, status)
    assert found.advice


def test_an_outage_fails_every_rule_it_meets() -> None:
    found = judge("outage")
    assert set(found) == {"conditional create", "conditional update", "read and list after write"}
    assert {check.measured for check in found.values()} == {"connection"}


def test_a_store_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(FakeProbe):
        async def mark(self, name: str) -> str | None:
            await asyncio.Event().wait()
            return None

    monkeypatch.setattr(storage_checks, "_STEP_LIMIT_S", 0.02)
    checks = asyncio.run(check_rules(Hanging(), conditional_update=True))
    (found,) = [check for check in checks if check.status == "fail"]
    assert (found.name, found.measured) == ("metadata", "no answer within 0.02 s")


@pytest.mark.parametrize(
    ("ahead_ms", "status"), [(0, "ok"), (-1999, "ok"), (30_000, "warn"), (-30_000, "warn"), (16 * 60_000, "fail")]
)
def test_clocks(ahead_ms: float, status: str) -> None:
    assert storage_checks._check_clock(ahead_ms).status == status


def test_a_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10 * 10**9)
    check = storage_checks._check_clock(0)
    assert (check.status, check.measured) == ("fail", "this machine's clock shows 1970-01-01 00:00:10 UTC")
    assert "set the clock" in (check.advice or "")


def test_a_log_that_is_ahead_of_the_clock(cli: Cli, tmp_path: Path) -> None:
    url = f"{tmp_path}/s"

    async def write() -> None:
        clock = ManualClock(SystemClock().now_ms() + 3 * 24 * 3600 * 1000)
        async with Queue.open(url, clock=clock) as queue:
            await queue.enqueue("q", b"x")

    asyncio.run(write())
    answer = cli.ok("doctor", url, "--json").json
    (check,) = [check for check in answer["checks"] if check["name"] == "ledgerq store"]
    assert check["status"] == "warn"
    assert "which is 2 days, 23:59:" in check["measured"]
    assert "--into NEW" in check["advice"]


# The folder


MOUNTS = r"""22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
23 22 0:5 / /srv rw - nfs4 server:/srv rw
24 22 0:6 / /srv/with\040space rw - tmpfs tmpfs rw
25 22 0:7 / /srv/with\040space rw - xfs /dev/x rw
broken line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/x", "ext4"), ("/srv", "nfs4"), ("/srv/a", "nfs4"), ("/srvant", "ext4"), ("/srv/with space/s", "xfs")],
)
def test_file_system_types(tmp_path: Path, folder: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert file_system(Path(folder), str(tmp_path / "mounts")) == kind
    assert file_system(Path(folder), str(tmp_path / "none")) == "unknown"


@pytest.mark.parametrize(("kind", "status"), [("tmpfs", "warn"), ("nfs4", "warn"), ("fuse.x", "warn"), ("ext4", "ok")])
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, status: str) -> None:
    monkeypatch.setattr(storage_checks, "file_system", lambda _: kind)
    assert storage_checks._check_file_system(tmp_path).status == status


def test_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    (folder / "wal").mkdir(parents=True)
    folder.chmod(0o777)
    found = storage_checks._check_permissions(folder)
    assert (found.status, found.advice) == ("warn", "chmod o-w the folder")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "wal")
    found = storage_checks._check_permissions(folder)
    assert (found.status, found.measured.endswith("no access to wal")) == ("fail", True)


def test_a_disk_that_cannot_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    assert storage_checks._check_fsync(tmp_path).status == "fail"
    assert list(tmp_path.iterdir()) == []


def test_little_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5 * 1024**2}))
    assert storage_checks._check_space(tmp_path).status == "warn"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machines_file_system_is_known(tmp_path: Path) -> None:
    assert file_system(tmp_path) != "unknown"


def test_files_that_are_to_be_set_aside_and_those_that_were(cli: Cli, tmp_path: Path) -> None:
    ledger = asyncio.run(make_ledger(tmp_path / "store"))
    manifest = max((tmp_path / "store" / "manifest").iterdir())
    manifest.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    answer = cli("doctor", ledger.url, "--json")
    assert answer.code == 1
    (check,) = [check for check in answer.json["checks"] if check["status"] == "fail"]
    assert f"manifest/{manifest.name}" in check["measured"]
    assert f"manifest/{manifest.name}" in check["advice"]
    assert "start the writer" in check["advice"]
    assert sorted(tmp_path.rglob("*")) == before, "it only looks"

    async def opened() -> None:
        async with Queue.open(ledger.url):
            pass

    asyncio.run(opened())
    found = {check["name"]: check for check in cli.ok("doctor", ledger.url, "--json").json["checks"]}
    assert found["set aside"]["status"] == "ok"
    assert "set-aside/" in found["set aside"]["measured"]
