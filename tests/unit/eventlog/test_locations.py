"""Locations: what a URL means, and what is refused."""

from pathlib import Path

import pytest

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.locations import parse_location


@pytest.mark.parametrize(
    ("text", "scheme", "root", "database"),
    [
        ("memory:///", "memory", "memory:///", ""),
        ("memory://", "memory", "memory:///", ""),
        ("file:///var/lib/jobs", "file", "file:///", "var/lib/jobs"),
        ("file:///var//lib/./jobs/", "file", "file:///", "var/lib/jobs"),
        ("file://localhost/var/jobs", "file", "file:///", "var/jobs"),
        ("FILE:///var/jobs", "file", "file:///", "var/jobs"),
        ("file:///var/my%20jobs", "file", "file:///", "var/my jobs"),
        ("/var/lib/jobs", "file", "file:///", "var/lib/jobs"),
        ("/var/a:b", "file", "file:///", "var/a:b"),
        ("s3://bucket/some/prefix", "s3", "s3://bucket", "some/prefix"),
        ("s3://bucket/some/prefix/", "s3", "s3://bucket", "some/prefix"),
        ("s3://bucket", "s3", "s3://bucket", ""),
        ("gs://bucket/p", "gs", "gs://bucket", "p"),
        ("az://container/p", "az", "az://container", "p"),
    ],
)
def test_what_a_url_means(text: str, scheme: str, root: str, database: str) -> None:
    location = parse_location(text)
    assert (location.scheme, location.root, location.database) == (scheme, root, database)
    assert location.original == text
    assert location.is_file == (scheme == "file")


def test_relative_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_location("jobs").folder == tmp_path / "jobs"
    assert parse_location("./a/../jobs").folder == tmp_path / "jobs"
    assert parse_location("C").folder == tmp_path / "C"


def test_the_parent_of_a_symbolic_link_is_the_systems(tmp_path: Path) -> None:
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real/inner")
    assert parse_location(f"{tmp_path}/link/../jobs").folder == (tmp_path / "real/jobs").resolve()


def test_folder_and_bucket_belong_to_their_kinds() -> None:
    assert parse_location("s3://b/p").bucket == "b"
    with pytest.raises(InvalidArgument, match="not a folder"):
        _ = parse_location("s3://b/p").folder
    with pytest.raises(InvalidArgument, match="not in an object store"):
        _ = parse_location("/tmp/x").bucket


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a place"),
        ("a\0b", "not a place"),
        ("file:///a%00b", "NUL"),
        ("file://jobs/x", "three slashes"),
        ("file:jobs", "unknown scheme"),
        ("file:///", "root folder"),
        ("/", "root folder"),
        ("/tmp/..", "root folder"),
        ("memory:///x", "no name"),
        ("http://host/x", "unknown scheme"),
        ("S3:bucket", "unknown scheme"),
        ("s3:///prefix", "no bucket"),
        ("gs://", "no bucket"),
        ("s3://key:secret@bucket/x", "environment"),
        ("s3://bucket:9000/x", "environment"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/../b", r"'\.\.'"),
        ("s3://bucket/a?x=1", "query"),
        ("file:///a#b", "fragment"),
        ("s3://[bucket/x", "not a URL"),
        ("/home/józef/jobs", "plain ASCII"),
        ("/tmp/a#b", "can't live"),
        ("file:///tmp/a%25b", "can't live"),
        ("s3://bucket/a%20b", "can't live"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        parse_location(text)
