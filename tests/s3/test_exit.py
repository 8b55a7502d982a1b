"""A process that used a bucket ends with its own exit code: no client thread takes the interpreter down with it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

ROUNDS = 6
NOBODY_THERE = "http://127.0.0.1:9"  # the discard port: connections are refused at once


@pytest.mark.proof
def test_a_command_on_an_unreachable_bucket_ends_with_its_exit_code() -> None:
    env = os.environ | {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT": NOBODY_THERE,
        "AWS_ALLOW_HTTP": "true",
    }
    command = [sys.executable, "-m", "ledgerq.tools.cli", "stats", "s3://bucket/prefix"]
    # It aborted about every other time. Each tries for ten seconds, so they run side by side.
    with ThreadPoolExecutor(ROUNDS) as pool:
        run = partial(subprocess.run, env=env, capture_output=True, text=True, timeout=120)
        for done in pool.map(run, [command] * ROUNDS):
            assert (done.returncode, done.stdout) == (3, ""), done.stderr
            assert len(done.stderr.splitlines()) == 1
