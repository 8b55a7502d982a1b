"""Secrets in a URL: refused, and repeated nowhere."""

import logging
import traceback

import pytest

from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.recorded_audit import RecordedAuditReader
from ledgerq.eventlog.runtime.redaction import redact_urls, redacted
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.preflight import check_readable
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli

LEAKS = [
    ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
    ("s3://KEY:SEC/RET@bucket/x", "s3://***@bucket/x"),
    ("s3://KEY:SEC?RET@bucket/x", "s3://***@bucket/x"),
    ("s3://KEY:SEC@RET@bucket/x", "s3://***@bucket/x"),
    ("s3://SECRET@bucket/x", "s3://***@bucket/x"),
    ("s3://KEY:SECRET/bucket", "s3://***"),
    ("s3://KEY%3ASECRET%40bucket/x", "s3://***"),
    ("https://user:SECRET@host:9000/x?sig=SECRET", "https://***@host:9000/x?***"),
    ("https://user:SECRET@[::1/x", "https://***@[::1/x"),
    ("https://user:SECRET@ho\u2100st/x", "https://***@ho\u2100st/x"),
    ("file://user:SECRET@host/x", "file://***@host/x"),
    ("memory://user:SECRET@host", "memory://***@host"),
    ("s3://bucket/x?X-Amz-Signature=SECRET", "s3://bucket/x?***"),
    ("s3://bucket/x#SECRET", "s3://bucket/x#***"),
    ("bucket/x?X-Amz-Signature=SECRET", "bucket/x?***"),
    ("KEY:SECRET@bucket/x", "***@bucket/x"),
    ("//user:SECRET@host/x", "//***@host/x"),
    ("s3://KEY:SEC\tRET@bucket/x", "s3://***@bucket/x"),
    ("s3://KEY:SEC\0RET@bucket/x", "s3://***@bucket/x"),
]
HONEST = [
    "s3://bucket/a@b/c:d",
    "s3://bucket:9000/x",
    "http://127.0.0.1:9000/bucket",
    "http://[::1]:9000/bucket",
    "file:///var/lib/jobs",
    "memory:///",
    "/var/lib/a:b@c",
    "relative/folder",
    "C:folder",
    "/tmp/a#b",
    "",
]


def is_silent(text: str) -> bool:
    return not any(secret in text for secret in ("SECRET", "SEC", "RET"))


@pytest.mark.parametrize(("url", "shown"), LEAKS)
def test_what_is_secret_is_left_out(url: str, shown: str) -> None:
    assert redacted(url) == shown
    assert is_silent(shown)


@pytest.mark.parametrize("url", HONEST)
def test_what_is_not_secret_stays(url: str) -> None:
    assert redacted(url) == url
    assert redact_urls(f"error at {url!r}, trying again") == f"error at {url!r}, trying again"


def test_urls_within_a_message() -> None:
    text = "error sending request for url (http://user:SECRET@[::1]:9/b?list-type=2&sig=SECRET): refused, s3://b/x"
    assert redact_urls(text) == "error sending request for url (http://***@[::1]:9/b?***): refused, s3://b/x"


@pytest.mark.parametrize("url", [url for url, _ in LEAKS if not url.startswith("//")])
async def test_no_error_repeats_it(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for opening in (Queue.open(url), open_reader(url)):
        with pytest.raises(InvalidArgument) as caught:
            await opening
        assert is_silent("".join(traceback.format_exception_only(caught.value)))
        assert caught.value.__cause__ is None
    with pytest.raises(InvalidArgument) as caught:
        RecordedAuditReader(url)
    assert is_silent(str(caught.value))
    assert is_silent(caplog.text)


@pytest.mark.parametrize("url", [url for url, _ in LEAKS if not url.startswith("//") and "\0" not in url])
def test_no_command_repeats_it(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cli = Cli(capsys, monkeypatch)
    for words in (["stats", url], ["audit", url], ["doctor", url], ["enqueue", url, "q", "x"], ["exporter", url]):
        assert is_silent(cli.fails(2, *words))
    assert is_silent(cli.fails(2, "rebuild-projections", "/nowhere/store", "--into", url))


def test_nor_does_the_parser_of_arguments(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    message = Cli(capsys, monkeypatch).fails(2, "stats", "/store", "s3://KEY:SECRET@bucket/x")
    assert "s3://***@bucket/x" in message


async def test_an_endpoint_with_a_password_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:SECRET@127.0.0.1:1")
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ALLOW_HTTP"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(StoreUnavailable, match=r"http://\*\*\*@127\.0\.0\.1:1 has no TLS"):
        await check_readable(parse_location("s3://bucket/x"))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(StoreUnavailable) as caught:
        await Objects(parse_location("s3://bucket/x"), limit_s=1.0).get("anchor")
    assert is_silent(str(caught.value))
