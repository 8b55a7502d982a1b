"""What an attacker, a broken witness or a crash could make of trees, keys and receipts, and can't."""

import asyncio
import json
import socket
import threading
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import msgpack
import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable, TreeForked
from ledgerq.eventlog.trust import verifier
from ledgerq.eventlog.trust.cosigning import AskedWitness, cosign, post
from ledgerq.eventlog.trust.notes import SigningKey, checkpoint_text
from ledgerq.eventlog.trust.places import CHECKPOINT, FolderPlace
from ledgerq.eventlog.trust.publisher import publish
from ledgerq.eventlog.trust.receipts import make_receipt
from ledgerq.eventlog.trust.tree import check_consistency
from ledgerq.eventlog.trust.verifier import (
    WITNESS_KEY,
    Refused,
    TlogEntry,
    check_receipt,
    leaf_hash,
    node_hash,
    open_checkpoint,
    parse_policy,
    policy_of,
)
from ledgerq.eventlog.trust.witness import Witness
from ledgerq.tools.witness.witness_server import WitnessServer
from tests.support.rig import Rig
from tests.support.trees import KEY, ORIGIN, Killed, MemoryPlace, log_of, publish_to
from tests.unit.projections.formats import format_2_ledger

POLICY = policy_of(KEY.verifier)
WITNESS = SigningKey.of("w.example", bytes(32), WITNESS_KEY)
ASKED = AskedWitness("https://w.example", WITNESS.verifier)


def signed_proof(offset: int, kind: int, previous: int | None, more: object = None) -> bytes:
    """The proof of an event that is alone in a signed tree of one leaf."""
    hidden = bytes(16) + msgpack.packb([1, offset, 5, 1, kind, previous, [bytes(16), more]])
    inner = leaf_hash(sha256(verifier.COMMITMENT_PREFIX + hidden).digest())
    entry = TlogEntry(offset, offset + 1, bytes(32), inner).encode()
    note = KEY.sign(checkpoint_text(ORIGIN, 1, leaf_hash(entry)))
    extra = b64encode(entry + bytes(5) + hidden)
    return verifier.PROOF_HEADER.encode() + b"extra " + extra + b"\nindex 0\n\n" + note


def test_a_receipt_of_two_trees_is_refused() -> None:
    first, second = signed_proof(0, 1, None), signed_proof(7, 4, 0)
    assert len(check_receipt(first, POLICY).events) == 1
    with pytest.raises(Refused, match="several checkpoints"):
        check_receipt(first + second, POLICY)


def test_fields_that_no_event_has_are_shown_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for odd in ({b"a": 1}, msgpack.Timestamp(1, 2), msgpack.ExtType(3, b"x"), [None, 1.5, "x"]):
        (tmp_path / "r").write_bytes(signed_proof(0, 1, None, odd))
        assert verifier.main([str(tmp_path / "r"), "--key", str(KEY.verifier), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["tree_size"] == 1


def test_a_note_with_very_many_signatures_is_refused() -> None:
    note = KEY.sign(checkpoint_text(ORIGIN, 1, bytes(32)))
    line = note.rpartition(b"\n\n")[2]
    assert open_checkpoint(note + 99 * line, POLICY).size == 1
    with pytest.raises(Refused, match="no signed note"):
        open_checkpoint(note + 100 * line, POLICY)


def test_a_consistency_proof_is_made_of_hashes() -> None:
    left, right, other = bytes(32), b"r" * 32, b"o" * 32
    old, after = node_hash(left, right), node_hash(right, other)
    check_consistency(3, old, 4, node_hash(left, after), [right, other, left])
    # The same bytes, cut at another place: what follows from them is no tree.
    with pytest.raises(Refused, match="no hash"):
        check_consistency(3, old, 4, node_hash(left + right, node_hash(b"", other)), [b"", other, left + right])


async def test_an_empty_tree_is_refused_wherever_it_is_read() -> None:
    place = MemoryPlace()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        await publish_to(place, rig.disk)
        place.files[CHECKPOINT] = KEY.sign(checkpoint_text(ORIGIN, 0, sha256(b"").digest()))
        with pytest.raises(TreeForked, match="tree is empty"):
            await publish_to(place, rig.disk)
        with pytest.raises(Exception, match="tree is empty"):
            await make_receipt(log_of(rig.disk), place, [0])


async def test_the_key_of_a_witness_signs_no_tree_and_no_key_shows_its_secret() -> None:
    place = MemoryPlace()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        with pytest.raises(InvalidArgument, match="key of a witness"):
            await publish_to(place, rig.disk, WITNESS)
    assert place.files == {}
    assert str(KEY.seed) not in f"{KEY!r} {KEY}"


async def test_what_is_signed_is_remembered_before_others_see_it() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        shown: list[bytes | None] = []
        kept: list[bytes] = []
        place = MemoryPlace()

        async def remember(note: bytes) -> None:
            shown.append(place.files.get(CHECKPOINT))
            kept.append(note)

        done = await publish(log_of(rig.disk), place, KEY, remember=remember)
        assert (shown, kept) == ([None], [done.note])

        async def killed(note: bytes) -> None:
            raise Killed

        await rig.queue.enqueue("q", b"y")
        with pytest.raises(Killed):
            await publish(log_of(rig.disk), place, KEY, signed=kept[0], remember=killed)
        assert place.files[CHECKPOINT] == kept[0]


async def test_a_witness_that_is_ahead_of_a_slow_publisher_is_no_fork() -> None:
    place = MemoryPlace()
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        await publish_to(place, rig.disk)
        before = place.files[CHECKPOINT]

        async def ahead(url: str, body: bytes) -> tuple[int, bytes]:
            # Another publisher was faster, here and at the witness.
            await rig.queue.enqueue("q", b"y")
            await publish_to(place, rig.disk)
            return 409, b"99\n"

        with pytest.raises(StoreUnavailable, match="another publisher"):
            await cosign(place, KEY.verifier, [ASKED], send=ahead)
        assert place.files[CHECKPOINT] != before
        # And what a witness says against the log does not lose what another one has signed.
        good = SigningKey.of("g.example", b"g" * 32, WITNESS_KEY)
        text = place.files[CHECKPOINT].partition(b"\n\n")[0] + b"\n"

        async def both(url: str, body: bytes) -> tuple[int, bytes]:
            return (409, b"99\n") if "w.example" in url else (200, good.cosign(text, 5))

        with pytest.raises(TreeForked, match="older copy"):
            await cosign(place, KEY.verifier, [ASKED, AskedWitness("https://g.example", good.verifier)], send=both)
        assert b"g.example" in place.files[CHECKPOINT]


async def test_the_checkpoint_of_a_folder_is_cosigned_under_its_lock(tmp_path: Path) -> None:
    place = FolderPlace(tmp_path)
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x")
        await publish(log_of(rig.disk), place, KEY)
    note = await place.get(CHECKPOINT)
    assert note is not None
    text = note.partition(b"\n\n")[0] + b"\n"

    async def send(url: str, body: bytes) -> tuple[int, bytes]:
        return 200, WITNESS.cosign(text, 5)

    async with FolderPlace(tmp_path).exclusive():
        with pytest.raises(StoreUnavailable, match="another publisher is at work"):
            await cosign(place, KEY.verifier, [ASKED], send=send)
    assert await place.get(CHECKPOINT) == note
    assert len((await cosign(place, KEY.verifier, [ASKED], send=send))[0].cosigned) == 1


async def test_a_witness_that_speaks_no_http_is_one_that_did_not_answer() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"garbage\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    with pytest.raises(OSError, match="BadStatusLine"):
        await post(f"http://{host}:{port}/add-checkpoint", b"x")
    with pytest.raises(OSError, match="InvalidURL"):
        await post("http://127.0.0.1:x/add-checkpoint", b"x")
    server.close()


def asked(server: WitnessServer, request: bytes) -> bytes:
    """The status line of the answer to these bytes."""
    with socket.create_connection(server.server_address[:2], timeout=20) as client:  # type: ignore[arg-type]
        client.sendall(request)
        return client.makefile("rb").readline()


def test_hostile_requests_and_a_damaged_folder_get_an_answer(tmp_path: Path) -> None:
    witness = Witness(FolderPlace(tmp_path), WITNESS, [KEY.verifier])
    server = WitnessServer(witness, "127.0.0.1", 0, ManualClock())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        for length in (b"\xb2", b"9" * 5000, b"-1", b"+1", b"", b"1_0"):
            request = b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: " + length + b"\r\n\r\n"
            assert b" 413 " in asked(server, request)
        name = sha256(ORIGIN.encode()).hexdigest()
        (tmp_path / name).write_bytes(b"damaged")
        body = b"old 0\n\n" + KEY.sign(checkpoint_text(ORIGIN, 1, bytes(32)))
        request = b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        assert b" 500 " in asked(server, request)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        assert b" 500 " in asked(server, f"GET /{name}/checkpoint HTTP/1.1\r\n\r\n".encode())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        witness.close()


async def test_a_store_of_the_format_before_has_nothing_to_publish_and_is_not_called_damaged() -> None:
    place, disk = MemoryPlace(), format_2_ledger().disk
    done = await publish_to(place, disk)
    assert (done.note, done.size, place.files) == (None, 0, {})
    with pytest.raises(TreeForked, match="older copy"):
        await publish_to(place, disk, signed=KEY.sign(checkpoint_text(ORIGIN, 1, bytes(32))))


def test_one_witness_of_a_quorum_can_not_date_a_tree_back() -> None:
    text = checkpoint_text(ORIGIN, 1, bytes(32))
    witnesses = [SigningKey.of(f"w{number}.example", bytes([number]) * 32, WITNESS_KEY) for number in (1, 2, 3)]
    lines = "".join(f"witness W{number} {one.verifier}\n" for number, one in enumerate(witnesses))
    policy = parse_policy(f"log {KEY.verifier}\n{lines}group G 2 W0 W1 W2\nquorum G\n")
    times = (0, 1_700_000_001, 1_700_000_000)
    note = KEY.sign(text) + b"".join(one.cosign(text, time) for one, time in zip(witnesses, times, strict=True))
    assert open_checkpoint(note, policy).seen_s == 1_700_000_000
