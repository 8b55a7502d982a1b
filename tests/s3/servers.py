"""S3 servers on the loopback interface, in processes of their own, and a proxy that can drop their connections.

Tests run on moto's server. With `both_servers` a test runs once more on SeaweedFS, which is a real object store and the
quicker one, so `make test` runs such a test there alone; `on_seaweed` is for one that needs nothing else.
"""

import asyncio
import atexit
import contextlib
import functools
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledgerq.tools.bench.seaweed import KEY, MISSING, SECRET, find_weed, free_ports, running_weed

__all__ = [
    "Proxy",
    "S3Server",
    "both_servers",
    "bucket",
    "on_seaweed",
    "proxy",
    "s3_server",
    "server_of_this_run",
    "weed_or_skip",
]

_START_LIMIT_S = 60.0


both_servers = pytest.mark.parametrize(
    "s3_server", [pytest.param("moto", marks=pytest.mark.proof), "seaweedfs"], indirect=True
)
on_seaweed = pytest.mark.parametrize("s3_server", ["seaweedfs"], indirect=True)


class S3Server:
    """A running server, and the buckets made on it."""

    def __init__(self, port: int) -> None:
        # It comes with moto, without which these tests are skipped.
        import boto3

        self.port = port
        self.endpoint = f"http://127.0.0.1:{port}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        self._buckets = 0

    def new_bucket(self) -> str:
        """Make an empty bucket of a new name."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client.create_bucket(Bucket=name)
        return name

    def drop(self, bucket: str) -> None:
        """Give back what a bucket takes, if it is one request: SeaweedFS keeps volumes for each, moto needs little."""
        with contextlib.suppress(self.client.exceptions.ClientError):
            self.client.delete_bucket(Bucket=bucket)

    def delete_bucket(self, bucket: str) -> None:
        """Remove a bucket with all that is in it."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", []):
                self.client.delete_object(Bucket=bucket, Key=found["Key"])
        self.client.delete_bucket(Bucket=bucket)


class Proxy:
    """A TCP proxy to the server, with the ways in which a network lets one down; `resume` ends all of them.

    `drop` cuts what is open and refuses what comes. `lose_answers` hands each request on and cuts the connection when
    its answer comes, so that what was asked for is done and nobody knows. `hold` keeps back what comes, in silence.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_down = False
        self._answers_between_losses = 0
        self._answers = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self.dropped = asyncio.Event()
        self.held = asyncio.Event()
        self.lost_answers = 0
        self.port = 0

    async def serve(self) -> asyncio.Server:
        """Begin to listen on a free port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def drop(self) -> None:
        """Cut every connection and refuse new ones."""
        self._is_down = True
        for writer in self._writers:
            writer.transport.abort()

    def lose_answers(self, every: int = 1) -> None:
        """Cut the connection instead of each `every`-th piece of an answer."""
        self._answers_between_losses = every

    def hold(self) -> None:
        """Let nothing through, and keep it."""
        self._flows.clear()

    def resume(self) -> None:
        """Serve again, first of all what was held."""
        self._is_down = False
        self._answers_between_losses = 0
        self._flows.set()

    async def close(self) -> None:
        """Cut every connection, and wait until nothing of it is left."""
        self.resume()
        self.drop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        pair = {writer, there_writer}
        if self._is_down:
            for end in pair:
                end.transport.abort()
            self.dropped.set()
            return
        self._writers |= pair
        try:
            await asyncio.gather(
                self._copy(reader, there_writer, answers=False), self._copy(there_reader, writer, answers=True)
            )
        finally:
            self._writers -= pair
            for end in pair:
                end.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if answers and self._is_lost():
                    writer.transport.abort()
                    return
                if not self._flows.is_set():
                    self.held.set()
                    await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()

    def _is_lost(self) -> bool:
        self._answers += 1
        lost = self._answers_between_losses > 0 and self._answers % self._answers_between_losses == 0
        self.lost_answers += lost
        return lost


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """The server of this test."""
    pytest.importorskip("moto", reason="the S3 tests need moto's server: pip install 'ledgerq[test]'")
    return server_of_this_run(getattr(request, "param", "moto"))


@functools.cache
def server_of_this_run(name: str) -> S3Server:
    """The server of that name, started when it is first asked for; it ends with the test run."""
    return S3Server(_until_exit.enter_context({"moto": _running_moto, "seaweedfs": _running_weed}[name]()))


_until_exit = contextlib.ExitStack()
atexit.register(_until_exit.close)


@contextlib.contextmanager
def _running_moto() -> Iterator[int]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    # Its own temporary credentials, never the user's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        _wait_until_it_answers(process, port)
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _running_weed() -> Iterator[int]:
    with running_weed(weed_or_skip()) as weed:
        yield weed.port


def weed_or_skip() -> Path:
    """The program, without which a test is skipped."""
    weed = find_weed()
    if weed is None:
        pytest.skip(MISSING)
    return weed


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    give_up_s = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise
            time.sleep(0.05)


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new bucket; the environment leads to it, in the spelling that AWS's own tools use."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    name = s3_server.new_bucket()
    yield name
    s3_server.drop(name)


@pytest.fixture
async def proxy(s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy in front of the server; the environment leads through it."""
    proxy = Proxy(s3_server.port)
    server = await proxy.serve()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    yield proxy
    server.close()
    await proxy.close()
