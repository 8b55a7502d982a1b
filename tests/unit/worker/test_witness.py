"""Witnesses: what they cosign, what they refuse, and how the log asks them."""

from base64 import b64encode
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable, TreeForked
from ledgerq.eventlog.trust.cosigning import AskedWitness, cosign
from ledgerq.eventlog.trust.notes import SigningKey, checkpoint_text
from ledgerq.eventlog.trust.places import CHECKPOINT, FolderPlace
from ledgerq.eventlog.trust.tree import TileReader
from ledgerq.eventlog.trust.verifier import WITNESS_KEY, VerifierKey, check_receipt, open_checkpoint, parse_policy
from ledgerq.eventlog.trust.witness import SIZE_TYPE, Answer, Witness
from tests.support.rig import Rig
from tests.support.trees import KEY, MemoryPlace, publish_to, receipt_of, size_of

NAMES = ("w1.example", "w2.example")
KEYS = [SigningKey.of(name, bytes([number]) * 32, WITNESS_KEY) for number, name in enumerate(NAMES, 1)]
ASKED = [AskedWitness(f"https://{key.verifier.name}", key.verifier) for key in KEYS]
POLICY = parse_policy(
    f"log {KEY.verifier}\nwitness A {KEYS[0].verifier}\nwitness B {KEYS[1].verifier}\ngroup G all A B\nquorum G\n"
)


class Witnesses:
    """Two witnesses, by their addresses; `gone` ones give no answer."""

    def __init__(self, folder: Path) -> None:
        self.at_work = [Witness(FolderPlace(folder / key.verifier.name), key, [KEY.verifier]) for key in KEYS]
        self.gone: set[str] = set()
        self.asked: list[tuple[str, int]] = []
        self.now_s = 1_700_000_000

    async def send(self, url: str, body: bytes) -> tuple[int, bytes]:
        """Carry a request to the witness."""
        name = url.removeprefix("https://").removesuffix("/add-checkpoint")
        if name in self.gone:
            raise OSError("no route")
        answer = self.at_work[NAMES.index(name)].add_checkpoint(body, self.now_s)
        self.asked.append((name, answer.status))
        return answer.status, answer.body

    def close(self) -> None:
        """End both."""
        for one in self.at_work:
            one.close()


async def grow(rig: Rig, place: MemoryPlace, count: int = 3) -> None:
    """Add jobs, and publish."""
    for _ in range(count):
        await rig.queue.enqueue("q", b"x")
    await publish_to(place, rig.disk)


async def test_a_receipt_that_witnesses_have_seen(tmp_path: Path) -> None:
    witnesses, place = Witnesses(tmp_path), MemoryPlace()
    async with Rig() as rig:
        job = (await rig.queue.enqueue("q", b"x")).job_id
        with pytest.raises(StoreUnavailable, match="nothing is published"):
            await cosign(place, KEY.verifier, ASKED, send=witnesses.send)
        for count in (1, 3, 256, 2):
            await grow(rig, place, count)
            found, troubles = await cosign(place, KEY.verifier, ASKED, send=witnesses.send)
            assert ([key.name for key in found.cosigned], troubles) == ([*NAMES], [])
            assert open_checkpoint(place.files[CHECKPOINT], POLICY).seen_s == witnesses.now_s
        asked = len(witnesses.asked)
        await cosign(place, KEY.verifier, ASKED, send=witnesses.send)
        assert len(witnesses.asked) == asked  # both have signed this one
        assert len(check_receipt(await receipt_of(rig, place, job), POLICY).checkpoint.cosigned) == 2
        # One that was away is asked again, and goes on from where it was.
        await grow(rig, place)
        witnesses.gone = {NAMES[1]}
        found, troubles = await cosign(place, KEY.verifier, ASKED, send=witnesses.send)
        assert ([key.name for key in found.cosigned], troubles) == ([NAMES[0]], ["w2.example did not cosign: no route"])
        await grow(rig, place)
        witnesses.gone = set()
        assert len((await cosign(place, KEY.verifier, ASKED, send=witnesses.send))[0].cosigned) == 2
        await publish_to(place, rig.disk)  # of a checkpoint with cosignatures
        witnesses.close()
        witnesses = Witnesses(tmp_path)  # what they have seen is in their folders
        assert size_of(place) == int(witnesses.at_work[0].add_checkpoint(request(0, [], place), 1).body)
        with pytest.raises(StoreUnavailable, match="another publisher is at work"):
            Witnesses(tmp_path)
        witnesses.close()


async def test_a_log_that_does_not_go_on_is_told_apart_from_a_witness_that_is_ill(tmp_path: Path) -> None:
    witnesses, place = Witnesses(tmp_path), MemoryPlace()
    async with Rig() as rig:
        await grow(rig, place, 2)
        old = MemoryPlace(dict(place.files))
        await grow(rig, place, 3)
        await cosign(place, KEY.verifier, ASKED, send=witnesses.send)
    with pytest.raises(TreeForked, match="older copy"):
        await cosign(old, KEY.verifier, ASKED, send=witnesses.send)
    async with Rig() as other:
        fork = MemoryPlace()
        for _ in range(9):
            await other.queue.enqueue("q", b"y")
        await publish_to(fork, other.disk)
        with pytest.raises(TreeForked, match="was rewritten"):
            await cosign(fork, KEY.verifier, ASKED, send=witnesses.send)
    witnesses.close()
    place.files[CHECKPOINT] = (
        b"".join(place.files[CHECKPOINT].partition(b"\n\n")[:2])
        + KEY.sign(place.files[CHECKPOINT].partition(b"\n\n")[0] + b"\n").rpartition(b"\n\n")[2]
    )
    before = place.files[CHECKPOINT]
    liar = KEYS[1].cosign(b"another text\n", 1)
    for status, body in (
        (200, b""),
        (200, b"x"),
        (200, liar),
        (409, b"x"),
        (404, b""),
        (500, b"\xff"),
        (200, b"\n\n\n"),
    ):

        async def send(url: str, given: bytes, answer: tuple[int, bytes] = (status, body)) -> tuple[int, bytes]:
            return answer

        found, troubles = await cosign(place, KEY.verifier, ASKED[1:], send=send)
        assert (found.cosigned, len(troubles)) == ((), 1)
        assert place.files[CHECKPOINT] == before


def request(old: int, proof: list[bytes], place: MemoryPlace) -> bytes:
    """A request for a cosignature."""
    lines = [f"old {old}", *(b64encode(one).decode() for one in proof)]
    return "".join(f"{line}\n" for line in lines).encode() + b"\n" + place.files[CHECKPOINT]


async def test_each_answer_is_the_one_of_the_protocol(tmp_path: Path) -> None:
    witness, place = Witness(FolderPlace(tmp_path), KEYS[0], [KEY.verifier]), MemoryPlace()
    async with Rig() as rig:
        await grow(rig, place, 2)
        first = size_of(place)
        good = request(0, [], place)
        assert witness.checkpoint("0" * 64).status == witness.checkpoint("../x").status == 404
        for status, wrong in (
            (400, b""),
            (400, b"old 1"),
            (400, good.replace(b"old", b"Old", 1)),
            (400, good.replace(b"old 0", b"old 00", 1)),
            (400, good.replace(b"old 0\n", b"old 0\n" + b"AAAA\n" * 64, 1)),
            (400, good.replace(b"old 0\n", b"old 0\n?\n", 1)),
            (404, good.replace(b"example.com", b"example.net")),
            (403, good.replace(b"\n2\n" if first == 2 else b"\n%d\n" % first, b"\n9\n")),
            (403, request(0, [], place).rpartition(b"\xe2\x80\x94")[0] + KEYS[0].cosign(b"x", 1)),
            (400, request(first + 1, [], place)),
            (409, request(first, [], place)),
            (422, request(0, [bytes(32)], place)),
        ):
            assert witness.add_checkpoint(wrong, 5).status == status, wrong
        empty = KEY.sign(checkpoint_text("example.com/jobs", 0, bytes(32)))
        assert witness.add_checkpoint(b"old 0\n\n" + empty, 5).status == 422
        answer = witness.add_checkpoint(good, 5)
        assert answer.status == 200
        assert open_checkpoint(place.files[CHECKPOINT] + answer.body, POLICY._replace(quorum="A")).seen_s == 5
        assert witness.add_checkpoint(good, 6) == Answer(409, b"%d\n" % first, SIZE_TYPE)
        assert witness.add_checkpoint(request(first, [], place), 6).status == 200  # the same once more
        await grow(rig, place)
        proof = await TileReader(place.get, size_of(place)).consistency(first)
        for bad in (proof[:-1], [*proof, proof[0]], [bytes(32), *proof[1:]]):
            assert witness.add_checkpoint(request(first, bad, place), 7).status == 422
        assert witness.add_checkpoint(request(first, proof, place), 7).status == 200
        (name,) = [file.name for file in tmp_path.iterdir() if not file.name.startswith(".")]
        shown = witness.checkpoint(name)
        assert (shown.status, open_checkpoint(shown.body, POLICY._replace(quorum="A")).size) == (200, size_of(place))
    witness.close()
    mine, log = KEYS[0], KEY.verifier
    for key, logs in ((KEY, [log]), (mine, []), (mine, [KEYS[1].verifier]), (mine, [log, log])):
        with pytest.raises(InvalidArgument):
            Witness(FolderPlace(tmp_path), key, logs)
    for text in ("", "https://x", f"ftp://x,{KEYS[0].verifier}", f"https://x,{KEY.verifier}", "https://x,y"):
        with pytest.raises(InvalidArgument, match="a witness is URL,VKEY"):
            AskedWitness.parse(text)
    assert AskedWitness.parse(f"https://w1.example/,{KEYS[0].verifier}") == ASKED[0]
    assert SigningKey.parse(KEYS[0].encode()) == KEYS[0]
    assert VerifierKey.parse(str(KEYS[0].verifier)) == KEYS[0].verifier
