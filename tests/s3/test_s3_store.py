"""The store in a bucket: the contract, conditional writes, fencing, outages, and the errors of the preflight."""

import asyncio
import os

import pytest

from ledgerq.eventlog.anchor import ObjectAnchor
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.errors import LogPoisoned, OutcomeUnknown, StoreNotFound, StoreUnavailable
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.opening import open_slate
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.preflight import check_readable, check_writable
from ledgerq.eventlog.slate.slate_reader import open_slate_reader
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.eventlog.store import ReadStore, Store
from tests.s3.servers import Proxy, both_servers, bucket, proxy, s3_server
from tests.support.store_contract import ANCHOR, SAMPLE, StoreContract, put_all
from tests.tiers import sampled

__all__ = ["bucket", "proxy", "s3_server"]


@both_servers
class TestS3Store(StoreContract):
    """The contract in a bucket."""

    QUICK = SAMPLE

    @pytest.fixture(autouse=True)
    def _location(self, bucket: str) -> None:
        self.location = parse_location(f"s3://{bucket}/some/prefix")

    async def open(self, *, take_over: bool = False) -> Store:
        """A store in the test's bucket."""
        return await open_slate(self.location, clock=SystemClock(), take_over=take_over)

    async def read(self, *, pinned: bool = False) -> ReadStore:
        """A reader of the same bucket."""
        return await open_slate_reader(self.location, poll_interval_ms=20, pinned=pinned)


async def opened(url: str, **options: float) -> SlateStore:
    """A store at `url` with some options."""
    return await open_slate(parse_location(url), clock=SystemClock(), options=StoreOptions(**options))  # type: ignore[arg-type]


@pytest.mark.proof
async def test_a_store_may_have_a_bucket_of_its_own(bucket: str) -> None:
    store = await opened(f"s3://{bucket}")
    await put_all(store, [(b"a", b"1")])
    await store.close()
    store = await opened(f"s3://{bucket}")
    assert await store.get(b"a") == b"1"
    assert await store.read_anchor() == ANCHOR
    await store.close()


@both_servers
async def test_conditional_puts_work(bucket: str) -> None:
    objects = Objects(parse_location(f"s3://{bucket}/p"), limit_s=60)
    assert await objects.create("once", b"1")
    assert not await objects.create("once", b"2")
    assert await objects.get("once") == b"1"
    await objects.delete("once")
    assert await objects.get("once") is None


@both_servers
async def test_the_anchor_is_written_once_a_minute_and_at_close(bucket: str) -> None:
    clock = ManualClock()
    objects = Objects(parse_location(f"s3://{bucket}/p"), limit_s=60)
    store = await open_slate(parse_location(f"s3://{bucket}/p"), clock=clock)
    seen = ObjectAnchor(objects, clock)

    async def sync(offset: int) -> None:
        batch = store.batch()
        batch.put(b"offset", b"%d" % offset)
        await store.write(batch)
        await store.sync(ANCHOR._replace(base_offset=offset))

    async def anchored(offset: int) -> None:
        async with asyncio.timeout(60):
            while (found := await seen.read()) is None or found.base_offset != offset:
                await asyncio.sleep(0.005)

    await sync(1)
    await anchored(1)
    await sync(2)
    clock.advance(seconds=59.999)
    await sync(3)
    clock.advance(seconds=0.001)
    await sync(4)
    await anchored(4)
    await sync(5)
    await store.close()
    await anchored(5)


@pytest.mark.proof
async def test_dropped_connections_are_tried_again(bucket: str, proxy: Proxy) -> None:
    store = await opened(f"s3://{bucket}/p")
    await put_all(store, [(b"a", b"1")])
    proxy.drop()
    batch = store.batch()
    batch.put(b"b", b"2")
    await store.write(batch)
    syncing = asyncio.create_task(store.sync(ANCHOR))
    async with asyncio.timeout(60):
        await proxy.dropped.wait()
        assert not syncing.done()
        proxy.resume()
        await syncing
    await store.close()
    store = await opened(f"s3://{bucket}/p")
    assert await store.get_many([b"a", b"b"]) == [b"1", b"2"]
    await store.close()


@pytest.mark.proof
async def test_a_long_outage_makes_the_outcome_unknown(bucket: str, proxy: Proxy) -> None:
    store = await opened(f"s3://{bucket}/p", commit_timeout_s=0.3)
    proxy.drop()
    with pytest.raises(OutcomeUnknown, match="may or may not be in the log"):
        await put_all(store, [(b"a", b"1")])
    with pytest.raises(LogPoisoned):
        await put_all(store, [(b"b", b"1")])
    proxy.resume()
    await store.close()


async def test_reading_where_nothing_is(bucket: str) -> None:
    location = parse_location(f"s3://{bucket}/nothing")
    with pytest.raises(StoreNotFound):
        await open_slate_reader(location)
    with pytest.raises(StoreNotFound):
        await open_slate(location, clock=SystemClock(), create=False)
    assert not await Objects(parse_location(f"s3://{bucket}"), limit_s=60).has_any("")


@both_servers
async def test_a_missing_bucket_is_named(bucket: str) -> None:
    location = parse_location(f"s3://{bucket}-not/p")
    with pytest.raises(StoreUnavailable, match=f"no bucket '{bucket}-not'"):
        await open_slate(location, clock=SystemClock())
    with pytest.raises(StoreUnavailable, match="no bucket"):
        await check_readable(location)


async def test_a_dead_endpoint_is_reported_in_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable, match=r"can't be reached|did not answer"):
            await check_writable(parse_location(f"s3://{bucket}/p"), create=True, limit_s=1)


async def test_a_silent_endpoint_is_reported_in_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with asyncio.timeout(60):
        with pytest.raises(StoreUnavailable, match=r"can't be reached|did not answer"):
            await check_writable(parse_location(f"s3://{bucket}/p"), create=True, limit_s=0.5)
    server.close()


@pytest.mark.parametrize("code", [b"InvalidAccessKeyId", b"AccessDenied"])
async def test_refused_credentials_are_reported(bucket: str, monkeypatch: pytest.MonkeyPatch, code: bytes) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"<Error><Code>%b</Code></Error>" % code
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    with pytest.raises(StoreUnavailable, match=r"access was refused.*AWS_ACCESS_KEY_ID"):
        await check_writable(parse_location(f"s3://{bucket}/p"), create=True, limit_s=60)
    server.close()


async def test_plain_http_must_be_allowed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreUnavailable, match="AWS_ALLOW_HTTP=true"):
        await check_writable(parse_location(f"s3://{bucket}/p"), create=True)


@pytest.mark.parametrize("name", sampled(["AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"]))
async def test_each_spelling_of_the_endpoint_works_for_both_clients(
    bucket: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(name, endpoint)
    store = await opened(f"s3://{bucket}/p")
    await put_all(store, [(b"a", b"1")])
    await store.close()
