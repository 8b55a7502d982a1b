"""The published tree and receipts judged by others' code: Go's `sumdb/tlog` and `sumdb/note`, and openssl."""

import shutil
import subprocess
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest

from ledgerq.eventlog.trust.notes import SigningKey
from ledgerq.eventlog.trust.places import CHECKPOINT, FolderPlace
from ledgerq.eventlog.trust.publisher import publish
from ledgerq.eventlog.trust.receipts import make_receipt
from tests.support.rig import Rig
from tests.support.trees import KEY, job_offsets, log_of

pytestmark = pytest.mark.proof

HERE = Path(__file__).parent / "judge"
BUILD_S = 240
Judge = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """The program that runs Go's code, built once."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    folder = tmp_path_factory.mktemp("judge")
    for file in HERE.iterdir():
        shutil.copy(file, folder)
    program = folder / "judge"
    built = subprocess.run(
        [go, "build", "-o", str(program), "."], cwd=folder, capture_output=True, text=True, timeout=BUILD_S, check=False
    )
    if built.returncode and ("dial tcp" in built.stderr or "lookup" in built.stderr or "requires go" in built.stderr):
        pytest.skip(f"Go can't get golang.org/x/mod here: {built.stderr.strip().splitlines()[-1]}")
    assert built.returncode == 0, built.stderr

    def run(*arguments: object) -> tuple[int, str]:
        ran = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
        )
        return ran.returncode, ran.stdout + ran.stderr

    return run


async def jobs(rig: Rig, count: int, payload: bytes = b"x") -> str:
    """Jobs in batches of one event and of many; returns the id of one."""
    for number in range(count):
        job = (await rig.queue.enqueue("q", payload)).job_id
        if number % 40 == 39:
            await rig.queue.ack_many(await rig.queue.claim("q", limit=40))
    return job


async def test_go_finds_each_leaf_and_each_older_tree_and_refuses_any_change(tmp_path: Path, judge: Judge) -> None:
    place, folder, vkey = FolderPlace(tmp_path / "tlog"), tmp_path / "tlog", str(KEY.verifier)
    async with Rig() as rig:
        older = []
        for count in (1, 2, 200, 170, 280):
            job = await jobs(rig, count)
            note = (await publish(log_of(rig.disk), place, KEY)).note
            assert note is not None
            older.append(tmp_path / f"older-{count}")
            older[-1].write_bytes(note)
            size = int(note.split(b"\n")[1])
            assert judge("tree", folder, vkey) == (0, f"good: {size} leaves\n")
        assert size > 600
        for file in older:
            assert judge("older", folder, vkey, file)[0] == 0
        receipt = tmp_path / "receipt"
        content = await make_receipt(log_of(rig.disk), place, await job_offsets(rig, job))
        receipt.write_bytes(content)
        assert judge("receipt", receipt, vkey) == (0, f"good: {content.count(b'tlog-proof')} events\n")
    # A fork of the same size, by the same key: each is good in itself, and one doesn't go on from the other.
    async with Rig() as other:
        await jobs(other, 5, b"y")
        note = (await publish(log_of(other.disk), FolderPlace(tmp_path / "fork"), KEY)).note
        assert note is not None
        (tmp_path / "fork-note").write_bytes(note)
        assert judge("tree", tmp_path / "fork", vkey)[0] == 0
        code, what = judge("older", folder, vkey, tmp_path / "fork-note")
        assert (code, what[:8]) == (1, "refused:")
    wrong = str(SigningKey.of("example.com/jobs", bytes(32)).verifier)
    assert judge("tree", folder, wrong)[0] == judge("receipt", receipt, wrong)[0] == 1
    current = {CHECKPOINT, *(f"tile/{level}/00{index}" for level in ("0", "entries") for index in range(size // 256))}
    current |= {f"tile/{level}/00{size // 256}.p/{size % 256}" for level in ("0", "entries")}
    for file in (folder / name for name in sorted({*current, f"tile/1/000.p/{size // 256}"})):
        content = file.read_bytes()
        for at in (5, len(content) // 2, len(content) - 5):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            assert judge("tree", folder, vkey)[0] == 1, (file, at)
        file.write_bytes(content)
    assert judge("tree", folder, vkey)[0] == 0
    content = receipt.read_bytes()
    for at in (30, 60, 100, 200, content.index(b"index") + 7, content.index(b"\n\n") - 10, len(content) - 10):
        receipt.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert judge("receipt", receipt, vkey)[0] != 0, at


async def test_openssl_verifies_the_signature(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    async with Rig() as rig:
        place = FolderPlace(tmp_path)
        await publish(log_of(rig.disk), place, KEY)
    text, _, signatures = (tmp_path / CHECKPOINT).read_bytes().partition(b"\n\n")
    (tmp_path / "text").write_bytes(text + b"\n")
    (tmp_path / "signature").write_bytes(b64decode(signatures.split()[2])[4:])
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + KEY.verifier.public)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der", "-rawin"]
    command += ["-in", "text", "-sigfile", "signature"]

    def verdict() -> bool:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False).returncode == 0

    assert verdict()
    (tmp_path / "text").write_bytes(text + b" \n")
    assert not verdict()
