"""The commands that prove and mend: audit and rebuild-projections, against damage of several kinds."""

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from ledgerq.eventlog import keys
from ledgerq.projections.index_keys import pending_prefix, stats_key
from ledgerq.tools.console.opening import reading
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, Ledger, change_rows, make_ledger


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return asyncio.run(make_ledger(tmp_path_factory.mktemp("pristine") / "store"))


@pytest.fixture
def ledger(pristine: Ledger, tmp_path: Path) -> Ledger:
    shutil.copytree(pristine.url, tmp_path / "store")
    return pristine._replace(url=str(tmp_path / "store"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def rows_of(url: str, prefix: bytes) -> dict[bytes, bytes]:
    async def read() -> dict[bytes, bytes]:
        async with reading(url) as log:
            pages = log.store.scan(prefix, keys.after_prefix(prefix))
            return {key: value async for rows in pages for key, value in rows}

    return asyncio.run(read())


def damage(url: str) -> None:
    """One row missing, one altered, one too many."""
    (pending,) = rows_of(url, pending_prefix("mail"))
    wrong_stats = rows_of(url, stats_key("other"))[stats_key("other")]
    asyncio.run(
        change_rows(url, {pending: None, stats_key("mail"): wrong_stats, b"i/claimed/" + bytes(16): b""}),
    )


def test_audit_of_what_is_whole(cli: Cli, ledger: Ledger) -> None:
    answer = cli.ok("audit", ledger.url, "--deep", "--json").json
    assert (answer["clean"], answer["events"], answer["jobs"], answer["payloads"]) == (True, 11, 4, 4)
    assert answer["head"]["offset"] == answer["anchor"]["offset"] == 11
    assert answer["differences"] == []
    assert cli.ok("audit", ledger.url, "--json").json["payloads"] is None
    text = cli.ok("audit", ledger.url).out
    assert text.endswith("result  clean: the indexes are what follows from the log\n")
    assert answer["head"]["digest"] in text


def test_audit_names_each_difference_and_rebuild_mends_it(cli: Cli, ledger: Ledger) -> None:
    before = rows_of(ledger.url, b"i/")
    damage(ledger.url)
    found = cli("audit", ledger.url, "--json")
    assert (found.code, found.err) == (1, "")
    assert found.json["difference_count"] == 3
    kinds = {row["range"]: (row["expected"] is None, row["found"] is None) for row in found.json["differences"]}
    assert kinds == {"pending": (False, True), "stats": (False, False), "claimed": (True, False)}
    text = cli("audit", ledger.url)
    assert text.code == 1
    assert "no such row" in text.out
    assert "result  3 differences: mend with rebuild-projections" in text.out

    checked = cli("rebuild-projections", ledger.url, "--check", "--json")
    assert (checked.code, checked.json["difference_count"]) == (1, 3)
    assert [cli("rebuild-projections", ledger.url, "--check", "--only", name).code for name in ("jobs", "stats")] == [
        1,
        1,
    ]
    mended = cli.ok("rebuild-projections", ledger.url, "--reason", "a test", "--actor", "ann", "--json").json
    assert (mended["changed"], mended["rows_put"], mended["rows_deleted"]) == (True, 2, 1)
    assert rows_of(ledger.url, b"i/") == before
    last = cli.ok("log", ledger.url, "--json").lines[-1]
    assert (last["event"], last["actor"], last["reason"], last["names"]) == (
        "rebuilt",
        "ann",
        "a test",
        ["jobs", "stats"],
    )
    cli.ok("audit", ledger.url, "--deep")
    again = cli.ok("rebuild-projections", ledger.url)
    assert again.out.endswith("nothing differed, nothing was written\n")


def test_rebuild_only_one(cli: Cli, ledger: Ledger) -> None:
    damage(ledger.url)
    assert cli.ok("rebuild-projections", ledger.url, "--only", "stats", "--json").json["projections"] == ["stats"]
    left = {row["range"] for row in cli("audit", ledger.url, "--json").json["differences"]}
    assert left == {"pending", "claimed"}
    assert cli.ok("rebuild-projections", ledger.url, "--only", "stats", "--check", "--json").json["clean"] is True
    for more in ([], ["--check"]):
        assert "there is no projection" in cli.fails(2, "rebuild-projections", ledger.url, "--only", "x", *more)


@pytest.mark.proof
def test_one_is_not_rebuilt_where_all_must_be(cli: Cli, ledger: Ledger) -> None:
    damage(ledger.url)
    asyncio.run(change_rows(ledger.url, {keys.REBUILD_KEY: b"\x91\xc0"}))
    assert "leave out --only" in cli.fails(2, "rebuild-projections", ledger.url, "--only", "stats")
    assert "leave out --only" in cli.fails(2, "rebuild-projections", ledger.url, "--only", "stats", "--until", 7)
    cli.ok("rebuild-projections", ledger.url)
    cli.ok("audit", ledger.url)


def test_rebuild_is_a_program_of_its_own(cli: Cli, ledger: Ledger) -> None:
    damage(ledger.url)
    program = "rebuild-projections"
    assert "Usage: rebuild-projections" in cli.ok("--help", program=program).out
    assert cli(ledger.url, "--check", program=program).code == 1
    cli.ok(ledger.url, program=program)
    cli.ok(ledger.url, "--check", program=program)
    assert cli.fails(3, f"{ledger.url}-none", program=program).startswith("rebuild-projections: there is no store")
    assert "--only and" in cli.fails(2, ledger.url, "--check", "--into", "x", program=program)
    assert "--until only" in cli.fails(2, ledger.url, "--only", "jobs", "--into", "x", program=program)


@pytest.mark.proof
def test_a_changed_log_is_refused_unless_it_is_cut(cli: Cli, ledger: Ledger) -> None:
    batches = rows_of(ledger.url, keys.LOG_PREFIX)
    changed = keys.log_key(7)
    asyncio.run(change_rows(ledger.url, {changed: batches[changed].replace(b"mail", b"male", 1)}))
    line = cli.fails(1, "audit", ledger.url)
    assert "corrupt at offset 7" in line
    assert "--until 7" in line
    assert "corrupt at offset 7" in cli.fails(1, "audit", ledger.url, "--json")
    assert "corrupt at offset 7" in cli.fails(1, "rebuild-projections", ledger.url)
    cut = cli.ok("rebuild-projections", ledger.url, "--until", 7, "--json").json
    assert (cut["events"], cut["jobs"]) == (7, 2)
    assert cli.ok("audit", ledger.url, "--deep", "--json").json["events"] == 8
    assert cli.ok("jobs", ledger.url, "mail", "--json").out.count("\n") == 2


@pytest.mark.proof
def test_a_log_in_which_nothing_is_wrong_is_not_cut(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    events = cli.ok("audit", ledger.url, "--json").json["events"]
    line = cli.fails(2, "rebuild-projections", ledger.url, "--until", 7)
    assert f"{events - 7} events would be lost" in line
    assert f"rebuild-projections {ledger.url} --into NEW_URL --until 7" in line
    assert cli.ok("audit", ledger.url, "--json").json["events"] == events
    cli.ok("rebuild-projections", ledger.url, "--until", events)
    copied = cli.ok("rebuild-projections", ledger.url, "--into", tmp_path / "new", "--until", 7, "--json").json
    assert copied["events"] == 7


def test_a_shorter_copy_ends_with_a_whole_commit_and_is_reported_as_copied(cli: Cli, tmp_path: Path) -> None:
    async def enqueue() -> None:
        async with Queue.open(str(tmp_path / "old")) as queue:
            await queue.enqueue_many("mail", [b"1", b"2", b"3"])

    asyncio.run(enqueue())
    copied = cli.ok("rebuild-projections", tmp_path / "old", "--into", tmp_path / "new", "--until", 3)
    assert "the last commit that ends by offset 3 ends at 1" in copied.message
    assert "log     1 events in 1 commits" in copied.out
    assert copied.out.endswith("result  jobs, stats: the log was copied; no row follows from it\n")


@pytest.mark.proof
def test_a_rolled_back_log_that_is_accepted_is_written_to_though_no_row_differs(
    cli: Cli, ledger: Ledger, tmp_path: Path
) -> None:
    events = cli.ok("audit", ledger.url, "--json").json["events"]
    old = shutil.copytree(ledger.url, tmp_path / "old")
    cli.ok("enqueue", ledger.url, "mail", "x")
    shutil.copy(Path(ledger.url, "anchor"), old)
    assert "but the log ends before it" in cli.fails(1, "rebuild-projections", old)
    assert "nothing was written" not in cli.ok("rebuild-projections", old, "--until", events).out
    again = cli.ok("rebuild-projections", old)
    assert "nothing was written" in again.out
    assert f"{events + 1} events" in again.out


def test_rebuild_into_a_new_store(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    damage(ledger.url)
    target = tmp_path / "new"
    made = cli.ok("rebuild-projections", ledger.url, "--into", target, "--json").json
    assert (made["location"], made["jobs"], made["events"]) == (str(target), 4, 11)
    cli.ok("audit", target, "--deep")
    assert cli("audit", ledger.url).code == 1, "the old store is only read"
    assert "holds a ledgerq store already" in cli.fails(2, "rebuild-projections", ledger.url, "--into", target)
    assert "there is no store" in cli.fails(3, "rebuild-projections", tmp_path / "none", "--into", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_audit_against_an_anchor_kept_elsewhere(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(ledger.url, old)
    cli.ok("enqueue", ledger.url, "mail", "x")
    kept = tmp_path / "kept"
    shutil.copy(Path(ledger.url) / "anchor", kept)
    cli.ok("audit", ledger.url, "--anchor", kept)
    cli.ok("audit", old)
    line = cli.fails(1, "audit", old, "--anchor", kept)
    assert "the log ends before it" in line
    assert "restore the store from a copy that holds the commit" in line
    assert "accept" not in line, "an audit accepts nothing"
    kept.write_bytes(kept.read_bytes()[:128])
    assert cli("audit", old, "--anchor", kept).code in (0, 1), "one slot is what an object store keeps"
    (tmp_path / "noise").write_bytes(b"noise")
    assert "holds no anchor" in cli.fails(2, "audit", old, "--anchor", tmp_path / "noise")
    assert "can't be read" in cli.fails(2, "audit", old, "--anchor", tmp_path / "none")


def test_a_rollback_is_accepted_only_when_asked(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(ledger.url, old)
    cli.ok("enqueue", ledger.url, "mail", "x")
    shutil.copy(Path(ledger.url) / "anchor", old / "anchor")
    for command in (("audit", old), ("pause", old, "mail", "--reason", "why")):
        told = cli.fails(1, *command)
        assert "--salvage" in told
        # Only the commands that change a store have it, and an audit's message names them.
        assert "--accept-rollback" not in told.replace("--accept-rollback of the commands that change it", "")
    cli.ok("pause", old, "mail", "--reason", "why", "--accept-rollback")
    cli.ok("audit", old)


PROJECTION = """
class PerQueue:
    name = "per-queue"

    def restore(self, rows):
        self.counts = {key: int(value) for key, value in rows.items()}

    def apply(self, transition):
        queue = getattr(transition.event, "queue", None)
        if queue is None or transition.after is None:
            return {}
        key = queue.encode()
        self.counts[key] = self.counts.get(key, 0) + 1
        return {key: str(self.counts[key]).encode()}

made = PerQueue()
wrong = 7
"""


def test_projections_of_the_users_own(
    cli: Cli, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cli_projection.py").write_text(PROJECTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    mine = ["--projection", "cli_projection:PerQueue"]
    assert cli("audit", ledger.url, *mine).code == 1, "it was never built"
    made = cli.ok("rebuild-projections", ledger.url, "--only", "per-queue", *mine, "--json").json
    assert made["projections"] == ["per-queue"]
    cli.ok("audit", ledger.url, *mine)
    cli.ok("audit", ledger.url, "--projection", "cli_projection:made")
    asyncio.run(change_rows(ledger.url, {keys.projection_rows_prefix("per-queue") + b"mail": b"9"}))
    (difference,) = cli("audit", ledger.url, *mine, "--json").json["differences"]
    assert (difference["range"], difference["key"]) == ("projection per-queue", "b'mail'")
    only = ["rebuild-projections", ledger.url, "--check", *mine, "--only"]
    assert [cli(*only, name).code for name in ("per-queue", "jobs", "stats")] == [1, 0, 0]
    assert "is no projection" in cli.fails(2, "audit", ledger.url, "--projection", "cli_projection:wrong")
    assert "has no 'x'" in cli.fails(2, "audit", ledger.url, "--projection", "cli_projection:x")


@pytest.mark.parametrize("value", [None, b"zzz"])
def test_a_payload_that_is_gone_or_changed_is_not_said_to_be_mended_by_a_rebuild(
    cli: Cli, ledger: Ledger, value: bytes | None
) -> None:
    rows: dict[bytes, bytes | None] = {keys.payload_key(1): value}
    asyncio.run(change_rows(ledger.url, rows))
    found = cli("audit", ledger.url, "--deep").out
    what = "1 difference: 1 payload gone or damaged: a worker makes a dead letter of such a job, and a"
    assert what in " ".join(found.split())
    asyncio.run(change_rows(ledger.url, {stats_key("mail"): None}))
    found = " ".join(cli("audit", ledger.url, "--deep").out.split())
    assert f"2 differences: mend with rebuild-projections {ledger.url}, except for 1 payload gone" in found


def test_a_missing_payload_is_found_and_shown(cli: Cli, ledger: Ledger) -> None:
    asyncio.run(change_rows(ledger.url, {keys.payload_key(1): None}))
    cli.ok("audit", ledger.url)
    deep = cli("audit", ledger.url, "--deep", "--json")
    assert (deep.code, [row["range"] for row in deep.json["differences"]]) == (1, ["payload"])
    shown = cli("show", ledger.url, ledger.done, "--json")
    assert (shown.code, shown.json["state"], shown.json["payload"]) == (1, "done", None)
    error = json.loads(shown.message)
    assert (error["error"], "the payload is missing" in error["message"]) == ("PayloadMissing", True)
    assert "the payload is missing" in cli("show", ledger.url, ledger.done).message


def test_somebody_elses_database_is_refused(cli: Cli, tmp_path: Path) -> None:
    async def make() -> None:
        async with Queue.open(str(tmp_path / "other")):
            pass
        await change_rows(str(tmp_path / "other"), {keys.FORMAT_KEY: b"99"})

    asyncio.run(make())
    for command in ("stats", "audit", "rebuild-projections"):
        assert "format 99" in cli.fails(3, command, tmp_path / "other")


@pytest.mark.proof
def test_differences_beyond_the_bound_are_counted(cli: Cli, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledgerq.projections.audit._MAX_DIFFERENCES", 1)
    damage(ledger.url)
    assert "... and 2 more" in cli("audit", ledger.url).out
    answer = json.loads(cli("audit", ledger.url, "--json").out)
    assert (answer["difference_count"], len(answer["differences"])) == (3, 1)
    assert cli("rebuild-projections", ledger.url, "--check", "--only", "stats").code == 1


@pytest.mark.proof
def test_a_rollback_that_was_accepted_is_not_called_nothing(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(ledger.url, old)
    ends = len(cli.ok("log", ledger.url, "--json").lines)
    cli.ok("enqueue", ledger.url, "mail", "x")
    shutil.copy(Path(ledger.url) / "anchor", old / "anchor")
    ran = cli.ok("rebuild-projections", old, "--until", ends)
    assert ran.out.endswith(f"no row differed; kept the log before offset {ends}\n")
    assert cli.ok("log", old, "--json").lines[ends]["event"] in ("writer-opened", "rebuilt")
