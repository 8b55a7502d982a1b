"""`manage.py ledgerq_worker`: run the tasks of a backend until SIGTERM or SIGINT."""

import asyncio
import os
import socket
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from ledgerq.eventlog.errors import LedgerError
from ledgerq.tools.django.backend import LedgerqBackend
from ledgerq.tools.django.connections import close_queues, use_queue
from ledgerq.tools.django.task_worker import TaskRunner
from ledgerq.tools.django.tasks_api import backends
from ledgerq.worker.sync.sync_queue import Queue
from ledgerq.worker.worker import Worker

__all__ = ["Command"]


class Command(BaseCommand):  # type: ignore[misc]
    """The command `ledgerq_worker`."""

    help = (
        "Run the tasks of a backend until SIGTERM or SIGINT: on the first signal running tasks may end, a second one "
        "ends at once."
    )

    def add_arguments(self, parser: Any) -> None:
        """Declare the arguments."""
        parser.add_argument("--backend", default="default", help="The alias in TASKS (default: default).")
        parser.add_argument("--queue", action="append", dest="queues", help="Only this queue; may be repeated.")
        parser.add_argument("--concurrency", type=int, default=10, help="Tasks at a time (default: 10).")
        parser.add_argument("--grace", type=float, default=30.0, help="Seconds for running tasks to end (default: 30).")
        parser.add_argument("--name", help="The worker's name in results and in the log (default: host and process).")
        parser.add_argument("--until-empty", action="store_true", help="Stop when there is nothing left to do.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the worker."""
        backend = backends[options["backend"]]
        if not isinstance(backend, LedgerqBackend):
            raise CommandError(f"TASKS[{options['backend']!r}] is {type(backend).__name__}, no LedgerqBackend")
        queues = options["queues"] or sorted(backend.queues)
        if not queues:
            raise CommandError("its QUEUES is empty, so that any name is a queue: say which with --queue")
        close_queues()  # of what enqueued while Django started
        try:
            asyncio.run(self._work(backend, queues, options))
        except LedgerError as error:
            raise CommandError(str(error)) from error

    async def _work(self, backend: LedgerqBackend, queues: list[str], options: dict[str, Any]) -> None:
        name = options["name"] or f"{socket.gethostname()}:{os.getpid()}"
        async with backend.place.open_here() as queue:
            face = Queue(queue)
            use_queue(backend.place, face)
            worker = Worker(queue, concurrency=options["concurrency"], grace=options["grace"], name=name)
            for one in queues:
                worker.handler(one, keeps_result=True)(TaskRunner(backend, face, name))
            self.stdout.write(f"{name} works on {', '.join(queues)} of {queue.location}")
            self.stdout.flush()
            await worker.run(until_empty=options["until_empty"])
