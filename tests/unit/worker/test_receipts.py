"""Receipts: what a verifier accepts is what the log holds, and any change is refused."""

import json
import random
import subprocess
import sys
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerq.eventlog.codec import EVENT_TYPES
from ledgerq.eventlog.entropy import job_id_bytes, job_id_text
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt
from ledgerq.eventlog.events import Checkpointed, JobEvent
from ledgerq.eventlog.trust import verifier
from ledgerq.eventlog.trust.notes import SigningKey, checkpoint_text
from ledgerq.eventlog.trust.verifier import (
    KIND_NAMES,
    PROOF_HEADER,
    Refused,
    VerifierKey,
    check_receipt,
    job_text,
    open_checkpoint,
    parse_policy,
    policy_of,
)
from ledgerq.projections.fold import Fold
from ledgerq.tools.console.descriptions import event_name
from ledgerq.worker.queue import Queue
from tests.support.rig import Rig
from tests.support.trees import KEY, MemoryPlace, job_offsets, publish_to, receipt_of

POLICY = policy_of(KEY.verifier)


async def retried(queue: Queue) -> str:
    """A job that was requeued after it died: claimed twice."""
    job = (await queue.enqueue("q", b"x", max_attempts=1)).job_id
    (claim,) = await queue.claim("q")
    await queue.nack(claim, "no luck")
    await queue.requeue(job, actor="ann", reason="mended")
    (claim,) = await queue.claim("q")
    await queue.ack(claim)
    return job


async def made(jobs: int = 1) -> tuple[list[bytes], list[str]]:
    """Receipts of jobs that were requeued, and the jobs' ids."""
    async with Rig() as rig:
        ids = [await retried(rig.queue) for _ in range(jobs)]
        place = MemoryPlace()
        await publish_to(place, rig.disk)
        receipts = [await receipt_of(rig, place, job) for job in ids]
        for job, receipt in zip(ids, receipts, strict=True):
            found = check_receipt(receipt, POLICY)
            assert job_text(found.job) == job
            assert [event.offset for event in found.events] == await job_offsets(rig, job)
            history = await rig.queue.history(job)
            assert [event.name for event in found.events] == [event_name(record.event) for record in history]
            assert [event.time_ms for event in found.events] == [record.time_ms for record in history]
        return receipts, ids


def split(receipt: bytes) -> list[bytes]:
    """The proofs of a receipt."""
    return [PROOF_HEADER.encode() + proof for proof in receipt.split(PROOF_HEADER.encode())[1:]]


async def test_an_event_that_is_left_out_is_noticed() -> None:
    (receipt, other), _ = await made(2)
    proofs, others = split(receipt), split(other)
    assert len(proofs) == 6
    for number in range(1, 5):
        with pytest.raises(Refused, match="an event is left out"):
            check_receipt(b"".join(proofs[:number] + proofs[number + 1 :]), POLICY)
    # (claimed, dead, requeued) can be cut from a history, and the rest obeys the state machine.
    with pytest.raises(Refused, match="an event is left out"):
        check_receipt(b"".join([proofs[0], *proofs[4:]]), POLICY)
    with pytest.raises(Refused, match="has earlier events"):
        check_receipt(b"".join(proofs[1:]), POLICY)
    with pytest.raises(Refused, match="several jobs"):
        check_receipt(b"".join([*proofs[:2], others[2]]), POLICY)
    with pytest.raises(Refused, match="left out"):
        check_receipt(b"".join([proofs[0], *proofs]), POLICY)
    # Its beginning is a receipt too: of what had happened until then.
    assert len(check_receipt(b"".join(proofs[:3]), POLICY).events) == 3
    for nothing in (b"", b"x", PROOF_HEADER.encode(), b"\xff", receipt[1:], receipt[:-1], b"\n" + receipt):
        with pytest.raises(Refused):
            check_receipt(nothing, POLICY)


def flips(receipt: bytes, bits: list[int]) -> None:
    """Check that the receipt is refused with each of these bits changed."""
    for bit in bits:
        changed = bytearray(receipt)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Refused):
            check_receipt(bytes(changed), POLICY)


async def test_a_changed_bit_is_refused() -> None:
    (receipt,), _ = await made()
    short = b"".join(split(receipt)[:2])
    flips(short, [8 * at + random.Random(at).randrange(8) for at in range(len(short))])


@pytest.mark.proof
async def test_each_changed_bit_is_refused() -> None:
    (receipt,), _ = await made()
    short = b"".join(split(receipt)[:2])
    flips(short, [*range(8 * len(short))])


def extra_of(proof: bytes) -> bytes:
    """The extra data of a proof."""
    return b64decode(proof.split(b"\n")[1][6:])


def with_extra(proof: bytes, extra: bytes) -> bytes:
    """The proof with other extra data."""
    lines = proof.split(b"\n")
    return b"\n".join([lines[0], b"extra " + b64encode(extra), *lines[2:]])


async def test_only_what_the_rules_allow_is_a_proof() -> None:
    (receipt,), _ = await made()
    first = split(receipt)[0]
    extra = extra_of(first)
    check_receipt(with_extra(first, extra), POLICY)
    cases = [extra[:at] for at in range(len(extra))] + [extra + b"\0", b"\2" + extra[1:]]
    for case in cases:
        with pytest.raises(Refused):
            check_receipt(with_extra(first, case), POLICY)
    text = first.decode()
    for before, after in (
        ("index ", "index 0"),
        ("index ", "index +"),
        ("index ", "Index "),
        ("extra ", "extra  "),
        ("\n\n", "\n\n\n"),
        ("example.com/jobs\n", "example.com/jobs\n0"),
        ("\u2014 ", "- "),
        ("\u2014 example", "\u2014  example"),
        ("\n\u2014", "\nx\n\u2014"),
    ):
        changed = text.replace(before, after, 1)
        assert changed != text
        with pytest.raises(Refused):
            check_receipt(changed.encode(), POLICY)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.text(max_size=100), st.integers(0, 4))
def test_whatever_is_no_receipt_is_refused(raw: bytes, text: str, where: int) -> None:
    note = KEY.sign(checkpoint_text("example.com/jobs", 1, bytes(32)))
    header = PROOF_HEADER.encode()
    cases = [
        raw,
        header + raw,
        header + b"extra " + b64encode(raw) + b"\nindex 0\n\n" + note,
        header + text.encode(errors="replace") + b"\n\n" + note,
        header + b"extra \nindex 0\n\n" + note[: len(text)] + raw,
    ]
    with pytest.raises(Refused):
        check_receipt(cases[where], POLICY)
    for parse in (lambda: VerifierKey.parse(text), lambda: parse_policy(text)):
        with pytest.raises(Refused):
            parse()
    with pytest.raises(Refused):
        open_checkpoint(raw, POLICY)


def cosigned(note: bytes, witness: SigningKey, time_s: int) -> bytes:
    """The note with the cosignature of a witness."""
    key = VerifierKey.of(witness.verifier.name, verifier.WITNESS_KEY, witness.verifier.public)
    text = note.partition(b"\n\n")[0] + b"\n"
    signed = witness.sign(b"cosignature/v1\ntime %d\n" % time_s + text)
    signature = b64decode(signed.rstrip().rpartition(b" ")[2])[4:]
    line = b64encode(key.key_id + time_s.to_bytes(8) + signature).decode()
    return note + f"\u2014 {key.name} {line}\n".encode()


def test_a_policy_asks_for_witnesses() -> None:
    witnesses = [SigningKey.of(f"w{number}.example", bytes([number]) * 32) for number in range(1, 5)]
    keys = [VerifierKey.of(one.verifier.name, verifier.WITNESS_KEY, one.verifier.public) for one in witnesses]
    lines = [f"log {KEY.verifier} https://example.com/", "# four", ""]
    lines += [f"witness W{number} {key}" for number, key in enumerate(keys)]
    policy = parse_policy("\n".join([*lines, "group A 2 W0 W1 W2", "\tgroup B all A W3 ", "quorum B"]) + "\n")
    note = KEY.sign(checkpoint_text("example.com/jobs", 1, bytes(32)))
    for numbers, is_met in (((), False), ((0, 1), False), ((0, 3), False), ((0, 2, 3), True), ((0, 1, 2, 3), True)):
        now = note
        for number in numbers:
            now = cosigned(now, witnesses[number], 1_700_000_000 + number)
        if is_met:
            found = open_checkpoint(now, policy)
            assert (found.cosigned, found.seen_s) == (tuple(keys[number] for number in numbers), 1_700_000_003)
        else:
            with pytest.raises(Refused, match="cosigned as the policy asks"):
                open_checkpoint(now, policy)
    # A bad signature of a known key spoils the note, those of unknown keys are passed over.
    forged = SigningKey(bytes(32), witnesses[0].verifier)
    with pytest.raises(Refused, match=r"signature of w1\.example is wrong"):
        open_checkpoint(cosigned(now, forged, 1), policy)
    unknown = cosigned(now, SigningKey.of("w9.example", bytes(32)), 1)
    assert open_checkpoint(unknown, policy).cosigned == tuple(keys)
    assert open_checkpoint(unknown, POLICY).cosigned == ()
    for wrong in (
        ["quorum W9"],
        [],
        ["quorum none", "quorum none"],
        ["group A 4 W0 W1 W2", "quorum A"],
        ["group A 0 W0", "quorum A"],
        ["group A any W0 W0", "quorum A"],
        ["group A any W0", "group B any W0", "quorum B"],
        ["group A any B", "group B any W0", "quorum B"],
        ["group W0 any W1", "quorum W0"],
        [f"witness W9 {keys[0]}", "quorum none"],
        [f"witness W9 {KEY.verifier}", "quorum none"],
        [f"log {keys[0]}", "quorum none"],
        ["quorum none none"],
    ):
        with pytest.raises(Refused):
            parse_policy("\n".join([*lines, *wrong]))
    with pytest.raises(Refused):
        parse_policy("quorum none")
    with pytest.raises(Refused, match="key of a witness"):
        policy_of(keys[0])


def test_keys_are_those_of_the_specification() -> None:
    text = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
    key = VerifierKey.parse(text)
    assert (str(key), key.name) == (text, "example.com/foo")
    signature = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
    raw = b64decode(signature)
    assert raw[:4] == key.key_id
    key.verify(b"This is an example message.\n", raw[4:])
    with pytest.raises(Refused):
        key.verify(b"This is an example message!\n", raw[4:])
    assert SigningKey.parse(KEY.encode()) == KEY
    for wrong in ("", KEY.encode()[1:], KEY.encode().replace("jobs", "jobz"), text, KEY.encode()[:-3]):
        with pytest.raises(InvalidArgument):
            SigningKey.parse(wrong)
    for name in ("", "a b", "a+b", "a\nb"):
        with pytest.raises(InvalidArgument, match="no name of a log"):
            SigningKey.of(name, bytes(32))


def test_the_verifier_knows_all_events_of_jobs_by_their_names() -> None:
    kinds = {kind: event for kind, event in EVENT_TYPES.items() if event in JobEvent.__args__}
    assert sorted(kinds) == sorted(KIND_NAMES)
    for kind, event in kinds.items():
        assert event.__struct_fields__[0] == "id"
        words = "".join(f"-{char.lower()}" if char.isupper() else char for char in event.__name__).lstrip("-")
        assert KIND_NAMES[kind] == words
    for id in (bytes(16), bytes(range(16)), b"\xff" * 16):
        assert job_id_bytes(job_text(id)) == id
        assert job_text(id) == job_id_text(id)


async def test_the_verifier_stands_alone(tmp_path: Path) -> None:
    """One file, run where there is no ledgerq: standard library, cryptography and msgpack."""
    (receipt,), (job,) = await made()
    program, file, policy = tmp_path / "alone.py", tmp_path / "r", tmp_path / "policy"
    program.write_bytes(Path(verifier.__file__).read_bytes())
    file.write_bytes(receipt)
    policy.write_text(f"log {KEY.verifier}\nquorum none\n")
    seen = "import runpy, sys; sys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    seen += "finally: assert not {'ledgerq', 'slatedb', 'obstore'} & {*sys.modules}"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", seen, str(program), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env={}, capture_output=True, text=True, timeout=60, check=False)

    good = run(file, "--policy", policy, "--json")
    found = json.loads(good.stdout)
    assert (good.returncode, found["job_id"], len(found["events"])) == (0, job, 6)
    file.write_bytes(b"".join(split(receipt)[2:]))
    bad = run(file, "--key", KEY.verifier)
    what = "REFUSED: the receipt begins at offset 3, and the job has earlier events\n"
    assert (bad.returncode, bad.stdout) == (1, what)


def test_a_fold_refuses_a_checkpoint_that_the_log_cannot_have_had() -> None:
    def event(size: int, offset: int, origin: str = "a") -> Checkpointed:
        return Checkpointed(origin, b"abcd", size, offset, bytes(32))

    fold = Fold()
    fold.apply(10, 1, event(3, 10))
    fold.apply(11, 1, event(3, 10))
    fold.apply(12, 1, event(1, 2, "b"))
    for wrong in (event(2, 11), event(4, 9), event(4, 14), event(4, 0)):
        with pytest.raises(LogCorrupt, match="can't have had"):
            fold.apply(13, 1, wrong)
