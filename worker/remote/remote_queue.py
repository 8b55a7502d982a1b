"""The queue on another machine: the methods of `Queue` that producers, workers and operators use, over HTTP.

    async with Queue.connect("http://a:8420,http://b:8420", token=token) as queue:
        await queue.enqueue("mail", b"hello")

Calls made at the same time share a request (lanes.py), and each is repeated until it is answered (transport.py). The
client makes the ids of jobs, so that an enqueue that is repeated gives one job.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec

from ledgerq.eventlog.clock import Clock, SystemClock
from ledgerq.eventlog.entropy import Entropy, SystemEntropy, job_id_bytes, job_id_text, new_job_id
from ledgerq.eventlog.errors import ClaimLost, DuplicateJobId, InvalidArgument, LedgerError, QueueClosed
from ledgerq.eventlog.keys import queue_name_bytes, queue_names
from ledgerq.eventlog.runtime.event_loop import running_loop
from ledgerq.worker.claims import Claim, EnqueueResult
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.decisions import MAX_ERROR_CHARS, MAX_TYPE_CHARS, clip
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.engine.large_payloads import Stream
from ledgerq.worker.engine.settlement import check_result
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.options import NewJob, QueueOptions, seconds_ms
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.answered_errors import error_of
from ledgerq.worker.remote.claim_messages import claim_of
from ledgerq.worker.remote.heartbeat import Heartbeat
from ledgerq.worker.remote.lanes import Lanes, Results
from ledgerq.worker.remote.remote_limits import RemoteLimits
from ledgerq.worker.remote.transport import Transport, addresses_of
from ledgerq.worker.remote.unsent import Unsent
from ledgerq.worker.retry_rules import RetryRule

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ledgerq.worker.tasks.registry import Tasks

__all__ = ["RemoteQueue", "connect"]

_POLL_S: Final = 25.0
_PATIENCE_S: Final = 60.0
_HEARTBEAT_S: Final = 1.0
_MAX_BULK: Final = 10_000


class RemoteQueue(Unsent, RemoteLimits):
    """A queue whose store another process writes. Not made by users: see `Queue.connect`.

    Each method is that of `Queue`; where an operator is named, the service takes the name of the token instead.
    """

    def __init__(self, transport: Transport, location: str, clock: Clock, entropy: Entropy, heartbeat_s: float) -> None:
        super().__init__(transport, clock)
        self.location = location
        self.on_failure: list[Callable[[LedgerError], None]] = []
        """Functions for the failure of the queue; a connection has none, it is made again."""
        self.tracer_provider: TracerProvider | None = None
        self._entropy = entropy
        self._options: wire.OptionsAnswer
        self._lanes = Lanes(self._send, transport.check_owner)
        self._heartbeat = Heartbeat(transport, heartbeat_s)
        self._on_close: list[Callable[[], Any]] = []
        self._is_closed = False

    async def begin(self, tasks: "Tasks | None") -> None:
        """Get the options of the queues: the first answer of the service."""
        self._options, _ = await self._transport.call("GET", "/v1/options", wire.OptionsAnswer)
        if tasks is not None:
            self._on_close.append(tasks.opened(self))

    async def close(self) -> None:
        """End the connection; calls on their way have some seconds. Claims go on until their leases end."""
        if self._is_closed:
            return
        self._is_closed = True
        for end in self._on_close:
            await end()
        await self._heartbeat.close()
        await self._lanes.close()
        await self._transport.close()

    @property
    def failure(self) -> LedgerError | None:
        """The error for which nothing can be called any more: `QueueClosed`, or None."""
        return QueueClosed(f"the connection to {self.location} was closed") if self._is_closed else None

    @property
    def clock(self) -> Clock:
        """The clock of this machine."""
        return self._clock

    @property
    def epoch(self) -> int:
        """The epoch of the newest writer that answered."""
        return self._transport.epoch

    def options(self, queue: str) -> QueueOptions:
        """The options of a queue at the service, as of when this connected."""
        return QueueOptions(**self._options.queues.get(queue, self._options.default))

    async def _send(self, ops: list[bytes]) -> Results:
        body = {"ops": [msgspec.Raw(op) for op in ops]}
        answer, repeated = await self._transport.call("POST", "/v1/ops", wire.OpsAnswer, body=body)
        return answer.results, repeated

    async def _one(self, op: wire.Op) -> tuple[wire.OpResult, bool]:
        results, repeated = await self._lanes.call([_encoded(op)])
        return results[0], repeated

    # ------------------------------------------------------------------ enqueue

    async def enqueue(self, queue: str, payload: bytes | Stream, **options: Any) -> EnqueueResult:
        """Add one job, as `Queue.enqueue` does; `DuplicateJobId` for an id of your own may be that of a lost answer."""
        fields = self._fields(payload, options)
        result, repeated = await self._one(wire.EnqueueOp(queue=queue, **fields))
        return _added(result, fields["id"], repeated and options.get("job_id") is None)

    def _fields(self, payload: bytes | Stream, options: dict[str, Any]) -> dict[str, Any]:
        """The fields of a message for a job, which has its id before it is sent."""
        if not isinstance(payload, bytes | bytearray | memoryview):
            raise InvalidArgument(
                f"a payload for a service is bytes, not {type(payload).__name__}: none can be streamed to it yet"
            )
        if unknown := sorted(options.keys() - _JOB_OPTIONS):
            raise InvalidArgument(f"enqueue has no option {', '.join(unknown)}")
        fields = {name: value for name, value in options.items() if value is not None}
        if isinstance(fields.get("unique_key"), bytes | bytearray | memoryview):
            fields["unique_key_bytes"] = bytes(fields.pop("unique_key"))
        given = fields.pop("job_id", None)
        fields["id"] = job_id_text(new_job_id(self._clock.now_ms(), self._entropy)) if given is None else given
        return fields | {"payload": bytes(payload)}

    async def enqueue_many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> list[EnqueueResult]:
        """Add up to 10,000 jobs in one commit: all or none, and at most 16 MiB. As `Queue.enqueue_many`."""
        queue_name_bytes(queue)
        if isinstance(jobs, bytes | str) or not isinstance(jobs, Sequence) or len(jobs) > _MAX_BULK:
            raise InvalidArgument(f"enqueue_many takes a list of up to {_MAX_BULK} jobs: split longer ones")
        bodies: list[wire.NewJobBody] = []
        for job in jobs:
            given = dict(job) if isinstance(job, NewJob) else {"payload": job}
            bodies.append(wire.NewJobBody(**self._fields(given.pop("payload"), given)))
        path = f"/v1/queues/{quote(queue, safe='')}/jobs"
        try:
            answer, _ = await self._transport.call("POST", path, wire.JobsAnswer, body=wire.JobsBody(jobs=bodies))
        except DuplicateJobId:
            if any(isinstance(job, NewJob) and job.job_id is not None for job in jobs):
                raise
            return await self._as_before(queue, bodies)
        return [EnqueueResult(job_id_bytes(one.id), one.created, one.replaced) for one in answer.jobs]

    async def _as_before(self, queue: str, bodies: Sequence[wire.NewJobBody]) -> list[EnqueueResult]:
        """What came of jobs whose answer was lost: the ids are ours, so those that are in use are these very jobs."""
        found: list[EnqueueResult] = []
        for body in bodies:
            fields = {name: getattr(body, name) for name in body.__struct_fields__}
            result, _ = await self._one(wire.EnqueueOp(queue=queue, **fields))
            found.append(_added(result, fields["id"], True))
        return found

    # ------------------------------------------------------------------ claim and settle

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
    ) -> list[Claim]:
        """Claim up to `limit` jobs, 1,000 at most, as `Queue.claim` does; the claims outlive the writer."""
        queues = queue_names(queue)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidArgument(f"limit is a whole number from 1 on, not {limit!r}")
        worker = None if worker is None else clip(worker, MAX_TYPE_CHARS)
        wait_ms = None if wait is None else seconds_ms("wait", wait)
        loop = asyncio.get_running_loop()
        over_s = None if wait_ms is None else loop.time() + wait_ms / 1000
        while True:
            self._check()
            left_s = _POLL_S if over_s is None else max(0.0, min(_POLL_S, over_s - loop.time()))
            body = wire.ClaimBody(
                queues=list(queues), limit=min(limit, wire.MAX_CLAIMS), lease=lease, wait=left_s, worker=worker
            )
            answer, _ = await self._transport.call("POST", "/v1/claim", wire.ClaimsAnswer, body=body, wait_s=left_s)
            if answer.claims or (over_s is not None and loop.time() >= over_s):
                return [claim_of(one) for one in answer.claims]

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """Ack a claim, as `Queue.ack` does, without effects."""
        if effects:
            self.effects()
        check_result(result)
        self._heartbeat.forget(claim)
        await self._settle(wire.AckOp(claim=_name(claim), result=result))

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        """Ack claims, as `Queue.ack_many` does; many go in more than one request."""
        if results is not None and len(results) != len(claims):
            raise InvalidArgument(f"ack_many got {len(results)} results for {len(claims)} claims: give one for each")
        given = [None] * len(claims) if results is None else results
        for result in given:
            check_result(result)
        for claim in claims:
            self._heartbeat.forget(claim)
        ops = [_encoded(wire.AckOp(claim=_name(c), result=result)) for c, result in zip(claims, given, strict=True)]
        # One with a result may be large.
        size = wire.MAX_OPS if results is None else 1
        answers = await asyncio.gather(*(self._lanes.call(ops[at : at + size]) for at in range(0, len(ops), size)))
        found = [result for one, _ in answers for result in one]
        failed = [(claim, one.error) for claim, one in zip(claims, found, strict=True) if one.error is not None]
        for _, error in failed:
            if error.error != ClaimLost.__name__:
                raise error_of(error)
        if failed:
            names = ", ".join(claim.job_id for claim, _ in failed[:10])
            words = f"{len(failed)} of {len(claims)} claims are not current any more, the others were acked: {names}"
            raise ClaimLost(words, (claim.offset for claim, _ in failed))

    async def nack(
        self,
        claim: Claim,
        error: str,
        delay: float | None = None,
        dead: bool = False,
        error_type: str = "",
        rule: RetryRule | None = None,
        effects: Effects | None = None,
    ) -> None:
        """Nack a claim, as `Queue.nack` does, without effects. When an answer is lost, the repeated call may raise
        `ClaimLost`.
        """
        if effects:
            self.effects()
        error, error_type = clip(error, MAX_ERROR_CHARS), clip(error_type, MAX_TYPE_CHARS)
        self._heartbeat.forget(claim)
        body = None
        if rule is not None:
            body = wire.RuleBody(attempts=rule.attempts, base=rule.base, cap=rule.cap, dead=rule.dead)
        name = _name(claim)
        await self._settle(
            wire.NackOp(claim=name, error=error, delay=delay, dead=dead, error_type=error_type, rule=body)
        )

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
        """Release a claim, as `Queue.release` does. When an answer is lost, the repeated call may raise `ClaimLost`."""
        reason = clip(reason, MAX_ERROR_CHARS)
        self._heartbeat.forget(claim)
        await self._settle(wire.ReleaseOp(claim=_name(claim), reason=reason, delay=delay, hold=hold))

    async def _settle(self, op: wire.Op) -> wire.OpResult:
        result, _ = await self._one(op)
        if result.error is not None:
            raise error_of(result.error)
        return result

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """Renew the lease, as `Queue.extend` does."""
        result = await self._settle(wire.ExtendOp(claim=_name(claim), lease=lease))
        return replace(claim, lease_ms=seconds_ms("lease", lease), lease_expires_ms=result.lease_expires_ms or 0)

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Call `callback` as `Queue.watch` does: what happens is learned within a second."""
        self._heartbeat.watch(claim, callback)


def connect(
    urls: str,
    *,
    token: str | None,
    tasks: "Tasks | None",
    patience: float,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
) -> Opening[RemoteQueue]:
    """The queue at these addresses, as `Queue.connect` has it."""
    addresses, patience_ms = addresses_of(urls), seconds_ms("patience", patience)

    async def make() -> RemoteQueue:
        running_loop()
        transport = Transport(addresses, token, patience_ms / 1000)
        queue = RemoteQueue(transport, urls, clock or SystemClock(), entropy or SystemEntropy(), _HEARTBEAT_S)
        try:
            await queue.begin(tasks)
        except BaseException:
            with suppress(LedgerError):
                await queue.close()
            raise
        return queue

    return Opening(make)


_JOB_OPTIONS: Final = frozenset(
    {
        *("priority", "delay", "run_at", "expires", "deadline", "max_attempts", "unique_key", "unique_until"),
        *("unique_for", "on_conflict", "debounce", "debounce_max"),
        *("headers", "job_id", "task"),
    }
)


def _encoded(op: wire.Op) -> bytes:
    """A call's bytes, checked: one that is malformed would have the whole request refused."""
    try:
        value = msgspec.msgpack.encode(op)
        msgspec.msgpack.decode(value, type=type(op))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"an argument has the wrong type: {error}") from None
    return value


def _added(result: wire.OpResult, own_id: str, repeated: bool) -> EnqueueResult:
    if result.error is not None:
        # Only this client knows the id: what is there is what an earlier try of this call has added.
        if repeated and result.error.error == DuplicateJobId.__name__:
            return EnqueueResult(job_id_bytes(own_id), True)
        raise error_of(result.error)
    return EnqueueResult(job_id_bytes(result.id or own_id), bool(result.created), result.replaced)


def _name(claim: Claim) -> wire.Name:
    return claim.job_id, claim.offset
