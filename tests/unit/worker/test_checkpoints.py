"""The noting of published checkpoints in the log, by its writer."""

import logging

import pytest

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import Checkpointed
from ledgerq.eventlog.trust import places
from ledgerq.eventlog.trust.places import CHECKPOINT
from ledgerq.worker.engine.checkpoints import Checkpoints
from tests.support.rig import Rig
from tests.support.trees import KEY, MemoryPlace, publish_to


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> MemoryPlace:
    """The place where the queues of a test find checkpoints."""
    found = MemoryPlace()
    monkeypatch.setattr(places, "open_place", lambda url, destination: found)
    return found


def noting() -> Rig:
    """A rig whose queue notes checkpoints."""
    return Rig(checkpoints=Checkpoints(str(KEY.verifier), every=10))


async def after_a_while(rig: Rig) -> list[Checkpointed]:
    """Let the queue look; all that is noted then."""
    await rig.advance(10)
    return [event for event in await rig.events() if isinstance(event, Checkpointed)]


async def test_a_checkpoint_is_noted_once_and_never_for_the_sake_of_a_note(place: MemoryPlace) -> None:
    async with noting() as rig:
        await rig.queue.enqueue("q", b"x")
        assert await after_a_while(rig) == []
        first = await publish_to(place, rig.disk)
        event = Checkpointed("example.com/jobs", KEY.verifier.key_id, first.size, first.next_offset, first.root)
        assert await after_a_while(rig) == [event]
        assert await after_a_while(rig) == [event]
        # The note itself is published, and that is not noted: else a quiet log would grow for ever.
        assert (await publish_to(place, rig.disk)).events == 1
        assert await after_a_while(rig) == [event]
        await rig.queue.enqueue("q", b"y")
        last = await publish_to(place, rig.disk)
        assert [one.root for one in await after_a_while(rig)] == [first.root, last.root]
        await rig.reopen()
        assert len(await after_a_while(rig)) == 3  # one more at an opening, at most
        assert len(await after_a_while(rig)) == 3


async def test_what_is_not_of_this_log_or_not_signed_is_not_noted(
    place: MemoryPlace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "ledgerq.queue")
    other, forged = Rig(), MemoryPlace()
    async with other:
        await other.queue.enqueue("q", b"y")
    await publish_to(forged, other.disk)
    async with noting() as rig:
        await rig.queue.enqueue("q", b"x")
        await publish_to(place, rig.disk)
        good = dict(place.files)
        note = good[CHECKPOINT]
        for wrong in (note.replace(b"jobs", b"jobz"), b"", note[:-9] + b"AAAAAAA=\n"):
            place.files = good | {CHECKPOINT: wrong}
            assert await after_a_while(rig) == []
            assert caplog.records[-1].__dict__["ledgerq_event"] == "checkpoint_unnoted"
        place.files = forged.files  # a good tree, of another log
        assert await after_a_while(rig) == []
        assert "this log doesn't hold" in caplog.text
        place.files = good
        assert len(await after_a_while(rig)) == 1


@pytest.mark.parametrize(
    ("checkpoints", "what"),
    [
        (Checkpoints("x", "y"), "verifier key"),
        (Checkpoints(str(KEY.verifier)), "no place to publish to"),
        (Checkpoints(str(KEY.verifier), "y", every=0.5), "every is a number of seconds from 1"),
    ],
)
async def test_settings_that_make_no_sense_open_nothing(checkpoints: Checkpoints, what: str) -> None:
    rig = Rig(checkpoints=checkpoints)
    with pytest.raises(InvalidArgument, match=what):
        await rig.open()
    await rig.open(checkpoints=None)  # the first one left no writer
    await rig.queue.close()
