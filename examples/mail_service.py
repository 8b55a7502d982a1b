"""A mail service with Starlette: one process takes mails over HTTP, sends them as tasks, and tells what became of each.

Serve it with `uvicorn mail_service:app`; several processes open the queue with `share=True`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from ledgerq import JobFailed, Queue, ResultGone, Tasks, Worker, on

tasks = Tasks("mail service")


@tasks.task(queue="mail", timeout=60, retry=[on(ConnectionError, attempts=10, base=0.01), on(LookupError, dead=True)])
async def send(to: str, text: str) -> str:
    if "@" not in to:
        raise LookupError(f"{to} is no address")
    return f"sent {len(text)} characters to {to}"  # by smtplib, or by the API of a provider


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Open the queue and run a worker, for as long as the application runs."""
    async with Queue.open("memory:///", tasks=tasks) as queue:  # a folder, where mails are to outlive the process
        worker = Worker(queue, tasks=tasks)
        working = asyncio.create_task(worker.run(signals=False))
        yield
        worker.stop()
        await working


async def add(request: Request) -> JSONResponse:
    """Take a mail: it is durable when this answers. The same `Idempotency-Key` adds it once."""
    mail = await request.json()
    key = request.headers.get("idempotency-key")
    handle = await send.options(unique_key=key).enqueue(mail["to"], mail["text"])
    return JSONResponse({"id": handle.job_id, "created": handle.created}, status_code=202)


async def show(request: Request) -> JSONResponse:
    """What became of a mail, for which this waits a little."""
    try:
        return JSONResponse({"state": "sent", "result": await send.handle(request.path_params["id"]).result(timeout=5)})
    except JobFailed as error:
        return JSONResponse({"state": "failed", "error": error.error_type})
    except TimeoutError:
        return JSONResponse({"state": "waiting"})
    except ResultGone:
        return JSONResponse({"state": "unknown"}, status_code=404)


app = Starlette(
    routes=[Route("/mails", add, methods=["POST"]), Route("/mails/{id}", show)],
    lifespan=lifespan,
)

if __name__ == "__main__":
    with TestClient(app) as client:
        for to in ("ada@example.org", "nobody"):
            added = client.post(
                "/mails", json={"to": to, "text": "hello"}, headers={"idempotency-key": f"hello to {to}"}
            )
            print(added.status_code, client.get(f"/mails/{added.json()['id']}").json())
        print(client.get("/mails/01ARZ3NDEKTSV4RRFFQ69G5FAV").status_code)
