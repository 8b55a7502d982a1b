"""kill -9, twenty times, on one folder: what was reported is there, what was acked stays done, the ledger is clean."""

from pathlib import Path

from tests.kills import Facts, open_and_check, run_and_kill

ROUNDS = 20


async def test_killed_twenty_times_it_keeps_every_promise(tmp_path: Path) -> None:
    facts = Facts(tmp_path)
    url = (tmp_path / "store").as_uri()
    for seed in range(ROUNDS):
        await run_and_kill(tmp_path, facts, seed)
        facts.read()
        fold = await open_and_check(url, facts)
    assert len(facts.enqueued) > 1000
    assert len(facts.acked) > 300
    assert {job.state for job in fold.jobs.values()} >= {"done", "dead", "cancelled", "pending"}
