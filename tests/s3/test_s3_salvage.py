"""Salvage of a store in a bucket: its objects are copied, read one by one, and written to a new place in the bucket."""

import asyncio

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.recovery.sorted_files import read_sst
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.worker.queue import Queue
from tests.s3.servers import both_servers, bucket, s3_server
from tests.support.cli_rig import Cli

__all__ = ["bucket", "s3_server"]

pytestmark = pytest.mark.proof
JOBS = 300


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


async def fill(url: str) -> None:
    async with Queue.open(url) as queue:
        await queue.enqueue_many("mail", [b"%d" % number + bytes(90) for number in range(JOBS)])


async def damage(url: str) -> list[int]:
    """Flip a bit in a block of payloads, and remove the log files; returns the offsets of that block."""
    objects = Objects(parse_location(url), limit_s=20)
    lost: list[int] = []
    for name in await objects.names():
        data = await objects.get(name)
        if data is None or not name.startswith("compacted/"):
            if name.startswith("wal/"):
                await objects.delete(name)
            continue
        parts = [part for part in read_sst(data) if part.rows and part.rows[0].key.startswith(keys.PAYLOAD_PREFIX)]
        if not lost and len(parts) > 2:
            place = parts[1].start + 40
            await objects.put(name, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            lost = [keys.offset_of(row.key) for row in parts[1].rows]
    assert lost
    return lost


@both_servers
def test_a_bucket_is_salvaged_into_a_new_place(bucket: str, cli: Cli) -> None:
    url, new = f"s3://{bucket}/jobs", f"s3://{bucket}/new"
    asyncio.run(fill(url))
    lost = asyncio.run(damage(url))
    # Without --deep the objects are not fetched.
    assert cli.ok("audit", url, "--json").json["clean"]
    told = cli("audit", url, "--deep", "--json").json
    assert len(told["damaged_files"]) == 1
    assert told["difference_count"] == len(lost)
    saved = cli("rebuild-projections", url, "--into", new, "--salvage", "--json")
    assert saved.code == 4
    assert [job["offset"] for job in saved.json["lost_payloads"]] == lost
    assert saved.json["promised_is_there"]
    assert saved.json["jobs"] == JOBS
    assert cli.ok("audit", new, "--deep", "--json").json["lost_payloads"] == len(lost)
