"""Handlers and tasks for executors: what another process finds by their names."""

import os
from typing import Any

from ledgerq import Dead, JobContext, Retry, Snooze, Tasks

__all__ = ["add", "app", "break_pool", "fail", "process_id", "use"]

app = Tasks("numbers")


class Unsendable(Exception):
    """An exception that can be pickled, and not read again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


@app.task(queue="tasks")
def add(job: JobContext, first: int, second: int) -> tuple[int, int, int]:
    return first + second, os.getpid(), job.attempt


def process_id(job: JobContext) -> None:
    raise Dead(f"{os.getpid()}")


def fail(job: JobContext) -> None:
    """Raise what the payload names."""
    errors: dict[bytes, Any] = {
        b"retry": Retry(60.0, "the server is busy"),
        b"snooze": Snooze(60.0, "not now"),
        b"value": ValueError("bad value"),
        b"unsendable": Unsendable(1, 2),
        b"exit": SystemExit(3),
    }
    raise errors[job.payload]


def use(job: JobContext) -> None:
    """Use what a job in an executor has not."""
    getattr(job, job.payload.decode())


def break_pool(job: JobContext) -> None:
    os._exit(1)
