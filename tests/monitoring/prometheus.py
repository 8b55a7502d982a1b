"""Prometheus and Alertmanager on the loopback interface, from Debian's packages; `promtool` comes with the first."""

import contextlib
import json
import math
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ledgerq.tools.bench.seaweed import free_ports

__all__ = ["ALERTMANAGER", "MISSING", "MISSING_ALERTMANAGER", "PROMETHEUS", "PROMTOOL", "Prometheus", "Series"]
__all__ += ["promtool", "running_alertmanager", "running_prometheus"]

MISSING = "these tests need Prometheus: apt-get install --no-install-recommends prometheus"
MISSING_ALERTMANAGER = f"{MISSING}-alertmanager"
PROMETHEUS = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager")
PROMTOOL = shutil.which("promtool")
LIMIT_S = 120.0
POLL_S = 0.02
# Between finding a port free and listening on it another process may take it.
_STARTS = 3


class Series(NamedTuple):
    """One series of an instant query's answer."""

    labels: dict[str, str]
    value: float


def promtool(*argv: str, stdin: str = "") -> tuple[int, str]:
    """Run promtool; gives its exit code and all its output."""
    assert PROMTOOL is not None, MISSING
    ran = subprocess.run(
        [PROMTOOL, *argv], input=stdin, capture_output=True, text=True, check=False, timeout=LIMIT_S, cwd="/"
    )
    return ran.returncode, ran.stdout + ran.stderr


class Prometheus:
    """A running server, asked through its HTTP API."""

    def __init__(self, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = log

    def api(self, path: str, **parameters: str) -> Any:
        """The API's answer without its envelope; an error fails the test with Prometheus's own message."""
        asked = urllib.parse.urlencode({name.replace("match", "match[]"): text for name, text in parameters.items()})
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{asked}", timeout=LIMIT_S) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expr: str, at: float | None = None) -> list[Series]:
        """An instant query's series; a scalar is one without labels."""
        when = {} if at is None else {"time": str(at)}
        data = self.api("query", query=expr, **when)
        if data["resultType"] == "scalar":
            return [Series({}, float(data["result"][1]))]
        return [Series(one["metric"], float(one["value"][1])) for one in data["result"]]

    def value(self, expr: str, at: float | None = None) -> float:
        """The value of an expression of one series; not a number when there is none."""
        found = self.query(expr, at)
        assert len(found) <= 1, f"{expr} has {len(found)} series"
        return found[0].value if found else math.nan

    def range(self, expr: str, start: float, end: float, step: float) -> list[tuple[dict[str, str], list[float]]]:
        """A range query's series, each with its values that are numbers."""
        data = self.api("query_range", query=expr, start=str(start), end=str(end), step=str(step))
        return [(one["metric"], [float(value) for _, value in one["values"]]) for one in data["result"]]

    def delivered(self) -> list[dict[str, Any]]:
        """The alerts that Alertmanager has, asked at the place where Prometheus sends them."""
        (to,) = self.api("alertmanagers")["activeAlertmanagers"]
        with urllib.request.urlopen(to["url"], timeout=LIMIT_S) as answer:
            alerts: list[dict[str, Any]] = json.load(answer)
        return alerts

    def until(self, holds: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
        """Ask again and again until it holds."""
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {limit_s:g} s\n{self._log.read_text()[-3000:]}"
            time.sleep(POLL_S)


@contextlib.contextmanager
def running_prometheus(config: Path, folder: Path) -> Iterator[Prometheus]:
    """A server for the block, with its data and log in `folder`; it is killed in the end."""
    assert PROMETHEUS is not None, MISSING
    options = {
        "config.file": config,
        "storage.tsdb.path": folder / "data",
        "storage.tsdb.retention.time": "1h",
        "log.level": "warn",
    }
    with _running(PROMETHEUS, options, folder) as (port, log):
        yield Prometheus(port, log)


@contextlib.contextmanager
def running_alertmanager(folder: Path) -> Iterator[int]:
    """An Alertmanager without receivers, for the block; gives its port."""
    assert ALERTMANAGER is not None, MISSING_ALERTMANAGER
    config = folder / "alertmanager.yml"
    config.write_text("route: {receiver: nobody}\nreceivers: [{name: nobody}]\n")
    options = {"config.file": config, "storage.path": folder / "alertmanager", "cluster.listen-address": ""}
    with _running(ALERTMANAGER, options, folder) as (port, _):
        yield port


@contextlib.contextmanager
def _running(program: str, options: Mapping[str, object], folder: Path) -> Iterator[tuple[int, Path]]:
    log = folder / f"{Path(program).name}.log"
    for left in reversed(range(_STARTS)):
        (port,) = free_ports(1)
        given = {**options, "web.listen-address": f"127.0.0.1:{port}"}
        command = [program, *(f"--{name}={value}" for name, value in given.items())]
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=folder)
        try:
            if not _answers(process, port):
                assert left, f"{program} does not start:\n{log.read_text()}"
                continue
            yield port, log
            return
        finally:
            process.kill()
            process.wait()


def _answers(process: "subprocess.Popen[bytes]", port: int) -> bool:
    """Wait until it is ready; whether it is."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None and time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=LIMIT_S) as answer,
        ):
            if answer.status == 200:
                return True
        time.sleep(POLL_S)
    return False
