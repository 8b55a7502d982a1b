"""The commands keygen, publish, receipt and verify, on a store in files."""

import asyncio
import fcntl
import shutil
import stat
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.trust.notes import SigningKey
from ledgerq.eventlog.trust.places import CHECKPOINT, FolderPlace
from ledgerq.eventlog.trust.verifier import WITNESS_KEY, VerifierKey
from ledgerq.eventlog.trust.witness import Witness
from ledgerq.tools.witness.witness_server import WitnessServer
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, Ledger, change_rows, make_ledger
from tests.unit.tools.test_cli_json import told


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return asyncio.run(make_ledger(tmp_path / "store"))


async def one_more(url: str) -> None:
    """Add a job."""
    async with Queue.open(url) as queue:
        await queue.enqueue("mail", b"more")


def test_from_a_key_to_a_verified_receipt(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    key, receipt = tmp_path / "log.key", tmp_path / "receipt"
    vkey = cli.ok("keygen", "example.com/jobs", "--out", key).out.strip()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    more = cli.ok("keygen", "example.com/more", "--out", tmp_path / "more", "--json").json
    assert more["verifier_key"].startswith("example.com/more+")
    assert "can't be made" in cli.fails(2, "keygen", "example.com/jobs", "--out", key)
    first = cli.ok("publish", ledger.url, "--key", key, "--json").json
    assert (first["origin"], first["new_leaves"], first["place"]) == (
        "example.com/jobs",
        first["size"],
        f"{ledger.url}/tlog",
    )
    assert (Path(ledger.url) / "tlog" / "log.vkey").read_text() == f"{vkey}\n"
    assert cli.ok("publish", ledger.url, "--key", key).out.startswith("0 events new at")
    assert "6 events" not in cli.ok("receipt", ledger.url, ledger.dead, "--out", receipt).out
    good = cli.ok("verify", receipt, "--key", vkey)
    assert good.out.startswith(f"verified: job {ledger.dead}, 3 events")
    assert receipt.read_text() == cli.ok("receipt", ledger.url, ledger.dead).out
    found = cli.ok("receipt", ledger.url, ledger.dead, "--json").json
    assert (found["receipt"], found["events"], found["job_id"]) == (receipt.read_text(), 3, ledger.dead)
    policy = tmp_path / "policy"
    policy.write_text(f"log {vkey}\nquorum none\n")
    events = cli.ok("verify", receipt, "--policy", policy, "--json").json["events"]
    assert [event["event"] for event in events] == ["enqueued", "claimed", "nacked"]
    # The store's owner alone can't make one that shows less.
    receipt.write_bytes(receipt.read_bytes().replace(b"index", b"index 1", 1))
    assert "proves nothing" in cli.fails(1, "verify", receipt, "--key", vkey)
    assert "and either --key or --policy" in cli.fails(2, "verify", receipt)
    assert "no verifier key" in cli.fails(1, "verify", receipt, "--key", "x")
    program = tmp_path / "verifier.py"
    cli.ok("verify", "--program", program)
    assert b"def check_receipt" in program.read_bytes()
    cli.ok("audit", ledger.url, "--deep")


@pytest.mark.proof
def test_what_contradicts_the_key_is_not_published(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    key, other, place = tmp_path / "k", tmp_path / "other", tmp_path / "published"
    for file in (key, other):
        cli.ok("keygen", "example.com/jobs", "--out", file)
    shutil.copytree(ledger.url, tmp_path / "old")
    asyncio.run(one_more(ledger.url))
    assert "nothing is published" in cli.fails(1, "receipt", ledger.url, ledger.dead, "--tree", place)
    cli.ok("publish", ledger.url, place, "--key", key)
    assert "not signed by the key" in cli.fails(1, "publish", ledger.url, place, "--key", other)
    assert "lost its end or is another one" in cli.fails(1, "publish", tmp_path / "old", place, "--key", key)
    shutil.rmtree(place)
    assert "older copy" in cli.fails(1, "publish", tmp_path / "old", place, "--key", key)
    cli.ok("publish", ledger.url, place, "--key", key)
    assert "can't be read" in cli.fails(2, "publish", ledger.url, "--key", tmp_path / "none")
    assert "holds no private key" in cli.fails(2, "publish", ledger.url, "--key", place / "log.vkey")
    assert "can't be used" in cli.fails(3, "publish", ledger.url, key, "--key", key)
    asyncio.run(one_more(ledger.url))
    assert "older copy" in cli.fails(1, "publish", tmp_path / "old", tmp_path / "elsewhere", "--key", key)
    assert "is not published yet" in cli.fails(1, "receipt", ledger.url, newest(cli, ledger), "--tree", place)


def newest(cli: Cli, ledger: Ledger) -> str:
    """The id of the newest pending job."""
    found: str = cli.ok("jobs", ledger.url, "mail", "--state", "pending", "--json").lines[-1]["job_id"]
    return found


@contextmanager
def served(folder: Path, key: Path, vkey: str) -> Iterator[str]:
    """A witness that serves from a thread; gives its address."""
    log = VerifierKey.parse(vkey)
    at_work = Witness(FolderPlace(folder), SigningKey.parse(key.read_text()), [log])
    server = WitnessServer(at_work, "127.0.0.1", 0, ManualClock())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        at_work.close()


def asked(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """The answer of a server."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.proof
def test_a_witness_cosigns_over_http(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    key, own, receipt = tmp_path / "k", tmp_path / "w", tmp_path / "r"
    vkey = cli.ok("keygen", "example.com/jobs", "--out", key).out.strip()
    seer = cli.ok("keygen", "w.example", "--witness", "--out", own).out.strip()
    assert "a witness needs a key" in cli.fails(2, "witness", tmp_path / "x", "--key", key, "--log", vkey)
    assert "a witness is URL,VKEY" in cli.fails(2, "publish", ledger.url, "--key", key, "--witness", "x,y")
    publish = ["publish", ledger.url, "--key", key, "--witness"]
    with served(tmp_path / "seen", own, vkey) as url:
        assert cli.ok(*publish, f"{url},{seer}", "--json").json["witnesses"] == ["w.example"]
        asyncio.run(one_more(ledger.url))
        assert ", cosigned by w.example" in cli.ok(*publish, f"{url},{seer}").out
        note = (Path(ledger.url) / "tlog" / CHECKPOINT).read_bytes()
        name = sha256(b"example.com/jobs").hexdigest()
        assert asked(f"{url}/{name}/checkpoint") == (200, note)
        assert [asked(f"{url}/{path}")[0] for path in ("", name, f"{'0' * 64}/checkpoint", "x/y/z")] == [404] * 4
        assert [asked(f"{url}/{path}", b"x")[0] for path in ("add-checkpoint", "x")] == [400, 404]
        busy = ("witness", tmp_path / "x", "--key", own, "--log", vkey, "--port", url.rpartition(":")[2])
        assert "the witness can't listen" in cli.fails(2, *busy)
    asyncio.run(one_more(ledger.url))
    ran = cli.ok(*publish, f"{url},{seer}", "--json")
    assert ran.json["witnesses"] == []
    assert "w.example did not cosign" in ran.err
    policy = tmp_path / "policy"
    policy.write_text(f"log {vkey}\nwitness W {seer}\nquorum W\n")
    cli.ok("receipt", ledger.url, ledger.dead, "--out", receipt)
    assert "not cosigned as the policy asks" in cli.fails(1, "verify", receipt, "--policy", policy)
    with served(tmp_path / "seen", own, vkey) as url:
        cli.ok(*publish, f"{url},{seer}")
    cli.ok("receipt", ledger.url, ledger.dead, "--out", receipt)
    assert "cosigned by w.example" in cli.ok("verify", receipt, "--policy", policy).out


@pytest.mark.proof
async def test_a_witness_runs_until_it_is_stopped(tmp_path: Path) -> None:
    own = SigningKey.of("w.example", bytes(32), WITNESS_KEY)
    (tmp_path / "w").write_text(own.encode())
    log = str(SigningKey.of("example.com/jobs", bytes(32)).verifier)
    found = await told("witness", str(tmp_path / "seen"), "--key", str(tmp_path / "w"), "--log", log, "--port", "0")
    assert found["verifier_key"] == str(own.verifier)


def test_a_store_without_its_secret_is_not_published(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    cli.ok("keygen", "example.com/jobs", "--out", tmp_path / "k")
    asyncio.run(change_rows(ledger.url, {keys.SECRET_KEY: None}))
    assert "secret is missing" in cli.fails(1, "publish", ledger.url, "--key", tmp_path / "k")


async def test_a_folder_has_one_publisher_at_a_time_and_whole_files(tmp_path: Path) -> None:
    place, other = FolderPlace(tmp_path / "a" / "b"), FolderPlace(tmp_path / "a" / "b")
    async with place.exclusive():
        with pytest.raises(Exception, match="another publisher is at work"):
            async with other.exclusive():
                pass
        assert await place.create("tile/0/000", b"x")
        assert not await place.create("tile/0/000", b"y")
        assert await other.get("tile/0/000") == b"x"
        assert await place.replace(CHECKPOINT, b"1", None)
        assert not await place.replace(CHECKPOINT, b"2", None)
        assert not await place.replace(CHECKPOINT, b"2", b"0")
        assert await place.replace(CHECKPOINT, b"2", b"1")
        assert await place.create("tile/0/001.p/3", b"x")
        await place.sync()
        await place.remove_folder("tile/0/001.p")
        await place.remove_folder("tile/0/001.p")
    async with other.exclusive():
        assert await other.get("tile/0/001.p/3") is None
    left = sorted(str(path.relative_to(tmp_path / "a" / "b")) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".publisher.lock", CHECKPOINT, "tile/0/000"]
    assert stat.S_IMODE((tmp_path / "a" / "b" / CHECKPOINT).stat().st_mode) == 0o644


def test_one_key_signs_one_tree_at_a_time(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    """Also for two places: each of two copies of a store could get its tree signed there."""
    key = tmp_path / "log.key"
    cli.ok("keygen", "example.com/jobs", "--out", key)
    with key.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "another publisher signs with" in cli.fails(3, "publish", ledger.url, tmp_path / "a", "--key", key)
    cli.ok("publish", ledger.url, tmp_path / "a", "--key", key)
    # Where what was signed can't be kept, nothing is shown.
    (tmp_path / "log.key.signed").unlink()
    (tmp_path / "log.key.signed").mkdir()
    assert "can't be used" in cli.fails(3, "publish", ledger.url, tmp_path / "b", "--key", key)
    assert not (tmp_path / "b" / CHECKPOINT).exists()
