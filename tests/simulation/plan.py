"""The plan of a simulated world, drawn from one seed: a list of moves that can be made shorter.

A move is an action of a producer, a worker, an operator or the faults at some time. What it needs beyond
that is in its own arguments, so that taking other moves away changes nothing about it.
"""

import random
from collections.abc import Callable
from typing import Any, Final, NamedTuple

__all__ = ["FAULTS", "Move", "Plan", "make_plan"]

FAULTS: Final = ("slow", "stall", "fail", "lost", "doubt", "late", "reads", "stops")
"""A store's faults for a while: it is slow; it stalls; writes fail; syncs fail and nothing was kept; syncs report a
failure although all was kept; syncs report a failure and land later; reads fail; it stops by itself, for good."""

_QUEUES: Final = ("mail", "scan", "bill")
_FATES: Final = ("ack", "ack", "ack", "ack", "nack", "nack", "dead", "release", "forget", "late", "twice", "extend")
_S: Final = 1000
_HOUR_MS: Final = 3_600_000


class Move(NamedTuple):
    """One move: `what` is a method of the workload (workload.py); `cancel_after_ms`: its caller is cancelled then."""

    at_ms: int
    what: str
    args: dict[str, Any]
    cancel_after_ms: int | None = None

    def __str__(self) -> str:
        args = ", ".join(f"{name}={value!r}" for name, value in self.args.items())
        cut = "" if self.cancel_after_ms is None else f", cancelled after {self.cancel_after_ms} ms"
        return f"{self.at_ms / 1000:8.3f} s  {self.what}({args}){cut}"


class Plan(NamedTuple):
    """A whole world: its settings, and its moves in order of time."""

    seed: int
    settings: dict[str, Any]
    moves: tuple[Move, ...]


def make_plan(seed: int) -> Plan:
    """The plan of a seed; the same one each time."""
    rng = random.Random(seed)
    queues = _QUEUES[: rng.choice((1, 1, 2, 3))]
    settings: dict[str, Any] = {
        "max_attempts": rng.choice((1, 2, 3, 5)),
        "lease_ms": rng.choice((500, 2 * _S, 30 * _S)),
        "backoff_ms": rng.choice((0, 10, 1 * _S, 60 * _S)),
        "keep_ms": rng.choice((1, 500, 5 * _S, 60 * _S)),
        "ready_window": rng.choice((1, 2, 5, 1000)),
        "commit_interval_ms": rng.choice((0, 0, 2, 50)),
        "latency_ms": rng.choice((0, 0, 1, 5, 40)),
        "restart_after_ms": rng.choice((0, 100, 3 * _S)),
        "checks_clock": rng.random() < 0.5,
        "projection": rng.choice(("never", "never", "always", "every other")),
        "every other": {"max_attempts": rng.choice((1, 4)), "ready_window": rng.choice((1, 3, 1000))},
    }
    # By a generator of its own, so that the other draws of a seed stay what they were.
    settings["max_crashes"] = random.Random(f"crashes {seed}").choice((None, 1, 2, 3))
    settings["overlap"] = random.Random(f"overlap {seed}").random() < 0.5
    settings["effects"] = random.Random(f"effects {seed}").random() < 0.15
    settings["steps"] = random.Random(f"steps {seed}").random() < 0.15
    dead = random.Random(f"dead letters {seed}")
    # From a queue to one further on, so that none goes around.
    settings["dead letters"] = {
        queue: queues[dead.randrange(at + 1, len(queues))]
        for at, queue in enumerate(queues[:-1])
        if dead.random() < 0.3
    }
    old = random.Random(f"format 2 {seed}")
    settings["format 2"] = old.choices(queues, k=old.randrange(1, 5)) if old.random() < 0.2 else []
    length_ms = rng.choice((2, 10, 30, 120)) * _S
    draw = _Draw(rng, queues, length_ms, settings)
    makers: list[Callable[[], tuple[str, dict[str, Any]]]] = []
    for maker, weight in ((draw.enqueue, 8), (draw.enqueue_many, 2), (draw.claim, 9), (draw.worker, 1)):
        makers += [maker] * weight
    for maker, weight in ((draw.cancel, 2), (draw.requeue, 1), (draw.pause, 1), (draw.observe, 2)):
        makers += [maker] * rng.randrange(weight + 1)
    makers += rng.sample([draw.follow, draw.drain, draw.audit], rng.randrange(3))
    trouble = [draw.fault, draw.fault, draw.kill, draw.kill_at, draw.restart, draw.second, draw.jump]
    makers += rng.sample(trouble, rng.randrange(len(trouble) + 1))
    moves: list[Move] = []
    for _ in range(rng.choice((10, 30, 60))):
        what, args = rng.choice(makers)()
        # Bursts: what happens at one moment meets in one commit.
        at_ms = moves[-1].at_ms if moves and rng.random() < 0.3 else rng.randrange(length_ms)
        cancel = rng.choice((0, 1, 5, 50, 500)) if what in _CALLS and rng.random() < 0.08 else None
        moves.append(Move(at_ms, what, args, cancel))
    moves += _bulks(random.Random(f"bulks {seed}"), queues, length_ms)
    moves += _moves_away(random.Random(f"moves {seed}"), queues, length_ms)
    moves += _schedules(random.Random(f"schedules {seed}"), queues, length_ms)
    settings["limits"] = {}
    if (limits := random.Random(f"limits {seed}")).random() < 0.15:
        settings["limits"] = {queue: _limits(limits) for queue in queues if limits.random() < 0.7}
        moves += _limit_moves(limits, queues, length_ms)
    _add_times(random.Random(f"times {seed}"), moves, length_ms)
    _add_conflicts(random.Random(f"unique {seed}"), moves, settings["keep_ms"], length_ms)
    moves = _kept(random.Random(f"kept {seed}"), moves)
    if settings["overlap"] and settings["checks_clock"]:
        moves += _clock_steps(random.Random(f"clock steps {seed}"), length_ms)
    return Plan(seed, settings, tuple(sorted(moves, key=lambda move: move.at_ms)))


def _kept(rng: random.Random, moves: list[Move]) -> list[Move]:
    """The moves with claims that outlive their writer, in some worlds, by a generator of their own."""
    if rng.random() < 0.7:
        return moves
    kept = [move.what == "claim" and rng.random() < 0.7 for move in moves]
    return [
        move._replace(args=move.args | {"kept": True}) if chosen else move
        for move, chosen in zip(moves, kept, strict=True)
    ]


def _clock_steps(rng: random.Random, length_ms: int) -> list[Move]:
    """Small steps back, as a time service makes them: what the store refuses then is soon tried again."""
    times_ms = [rng.randrange(length_ms) for _ in range(rng.choice((0, 40, 80)))]
    return [
        Move(at_ms, "jump", {"by_ms": -rng.choice((5, 50, 200, 1000)), "back_after_ms": None}) for at_ms in times_ms
    ]


def _bulks(rng: random.Random, queues: tuple[str, ...], length_ms: int) -> list[Move]:
    """Bulk changes, by a generator of their own."""
    moves: list[Move] = []
    for _ in range(rng.choice((0, 0, 1, 2, 6))):
        what = rng.choice(("requeue", "requeue", "cancel", "delete", "resume"))
        args: dict[str, Any] = {"what": what, "queue": rng.choice(queues), "state": None, "error": None}
        if what == "delete":
            args["state"] = rng.choice(("done", "dead", "cancelled"))
        elif what == "cancel" and rng.random() < 0.3:
            args["state"] = rng.choice(("pending", "scheduled", "claimed"))
        elif what == "requeue" and rng.random() < 0.4:
            args["error"] = rng.choice(("hopeless", "failed", "killed its worker"))
        cancel = rng.choice((0, 1, 5, 50)) if rng.random() < 0.15 else None
        moves.append(Move(rng.randrange(length_ms), "bulk", args, cancel))
    return moves


def _moves_away(rng: random.Random, queues: tuple[str, ...], length_ms: int) -> list[Move]:
    """Bulks that move jobs to another queue, by a generator of their own."""
    moves: list[Move] = []
    for _ in range(rng.choice((0, 0, 0, 1, 3)) if len(queues) > 1 else 0):
        queue, to = rng.sample(queues, 2)
        state = rng.choice(("dead", "pending", "pending", "scheduled"))
        args = {"what": "move", "queue": queue, "state": state, "error": None, "to": to}
        moves.append(Move(rng.randrange(length_ms), "bulk", args, rng.choice((None, None, None, 0, 5))))
    return moves


def _schedules(rng: random.Random, queues: tuple[str, ...], length_ms: int) -> list[Move]:
    """Schedules in a third of the worlds, by a generator of their own; `number` is what their jobs are known by."""
    moves: list[Move] = []
    if rng.random() > 0.35:
        return moves
    for number in range(rng.choice((2, 5, 12))):
        action = "set" if not moves else rng.choice(("set", "set", "pause", "resume", "resume", "remove", "run_now"))
        args: dict[str, Any] = {"action": action, "name": rng.choice(("hourly", "nightly"))}
        if action == "set":
            args["setting"] = _setting(rng, queues, length_ms) | {"number": number}
        at_ms = rng.randrange(length_ms) if moves else rng.randrange(length_ms // 4)
        at_ms = moves[-1].at_ms if moves and rng.random() < 0.2 else at_ms
        moves.append(Move(at_ms, "schedule", args, rng.choice((0, 1, 5)) if rng.random() < 0.1 else None))
    return moves


def _setting(rng: random.Random, queues: tuple[str, ...], length_ms: int) -> dict[str, Any]:
    missed, overlap = rng.choice(("last", "skip", "all")), rng.choice(("skip", "queue", "replace"))
    setting: dict[str, Any] = {"queue": rng.choice(queues), "missed": missed, "overlap": overlap}
    setting["grace"] = rng.choice((0.0, 1.0, 60.0))
    if rng.random() < 0.3:
        setting["cron"] = rng.choice(("* * * * *", "*/5 * * * *"))
    else:
        setting["every_ms"] = max(1 * _S, length_ms // rng.choice((2, 5, 12)))
    if missed == "all":  # after long there are many of them
        setting |= {"overlap": "queue"} | ({} if "cron" in setting else {"every_ms": max(length_ms // 4, 20 * _S)})
    if rng.random() < 0.3:
        setting["jitter"] = rng.choice((0.02, 0.5))
    return setting


def _limits(rng: random.Random) -> dict[str, Any]:
    """The limits of a queue: so slow that claims wait, and so fast that all jobs come to their end."""
    limits: dict[str, Any] = {"max_running": rng.choice((1, 2, 3))} if rng.random() < 0.6 else {}
    if not limits or rng.random() < 0.4:
        limits |= {"rate": rng.choice(("1/s", "3/s", "10/s", "4/2s")), "burst": rng.choice((1, 2, 5))}
    return limits


def _limit_moves(rng: random.Random, queues: tuple[str, ...], length_ms: int) -> list[Move]:
    """The calls of operators of limits."""
    moves: list[Move] = []
    for _ in range(rng.choice((0, 2, 6))):
        action = rng.choice(("limit", "limit", "hold", "release_hold"))
        args: dict[str, Any] = {"action": action, "queue": rng.choice(queues)}
        if action == "limit" and rng.random() < 0.8:
            args |= _limits(rng)
        if action == "hold":
            args["seconds"] = rng.choice((0.001, 0.3, 5.0))
        moves.append(Move(rng.randrange(length_ms), "limit", args, rng.choice((None, None, None, 0, 5))))
    return moves


def _add_times(rng: random.Random, moves: list[Move], length_ms: int) -> None:
    """Let some jobs expire, or have a deadline, by a generator of their own."""
    share = rng.choice((0, 0, 0.1, 0.5))
    for move in moves:
        for job in [move.args] * (move.what == "enqueue") + move.args.get("jobs", []):
            for name in ("expires", "deadline"):
                if rng.random() < share:
                    after_ms = rng.choice((1, 20, 700, 5 * _S, length_ms, _HOUR_MS))
                    job[f"{name}_ms"] = job.get("delay_ms", 0) + after_ms


def _add_conflicts(rng: random.Random, moves: list[Move], keep_ms: int, length_ms: int) -> None:
    """Let more jobs have unique keys, in some worlds, by a generator of its own: for a period, or replaced later."""
    share = rng.choice((0, 0, 0.2, 0.7))
    for move in moves:
        for job in [move.args] * (move.what == "enqueue") + move.args.get("jobs", []):
            if rng.random() >= share:
                continue
            job |= {"unique": rng.randrange(3), "until": rng.choice(("finished", "claimed", "period"))}
            kind = rng.choice(("keep", "keep", "replace", "replace", "raise", "debounce"))
            if kind == "debounce" and "delay_ms" not in job:
                job.pop("expires_ms", None)
                job.pop("deadline_ms", None)
                job["until"], after_ms = "claimed", rng.choice((1, 20, 700, 5 * _S))
                job |= {"debounce_ms": after_ms, "most_ms": rng.choice((0, after_ms, 3 * after_ms))}
                continue
            job["on_conflict"] = kind if kind != "debounce" else "replace"
            if job["until"] == "period" or rng.random() < 0.4:
                job["period_ms"] = min(keep_ms, rng.choice((1, 50, 1 * _S, length_ms // 3)))


_CALLS: Final = frozenset(
    {"enqueue", "enqueue_many", "claim", "cancel", "requeue", "pause", "observe", "worker", "follow", "drain"}
)


class _Draw:
    """The random source of a plan, which draws one move after the other."""

    def __init__(self, rng: random.Random, queues: tuple[str, ...], length_ms: int, settings: dict[str, Any]) -> None:
        self._rng = rng
        self._queues = queues
        self._length_ms = length_ms
        self._settings = settings
        self._token = 0

    def _job(self) -> dict[str, Any]:
        rng = self._rng
        self._token += 1
        job: dict[str, Any] = {"token": self._token, "size": rng.choice((0, 10, 2000))}
        if rng.random() < 0.2:
            job["priority"] = rng.randrange(4)
        if rng.random() < 0.25:
            job["delay_ms"] = rng.choice((1, 20, 1 * _S, self._length_ms, _HOUR_MS))
        if rng.random() < 0.25:
            job["unique"] = rng.randrange(3)
            job["until"] = rng.choice(("finished", "claimed"))
        if rng.random() < 0.1:
            job["max_attempts"] = rng.choice((1, 2, 10))
        if rng.random() < 0.1:
            job["own_id"] = rng.randrange(5)
        return job

    def enqueue(self) -> tuple[str, dict[str, Any]]:
        return "enqueue", {"queue": self._rng.choice(self._queues), **self._job()}

    def enqueue_many(self) -> tuple[str, dict[str, Any]]:
        count = self._rng.choice((1, 2, 5, 12))
        return "enqueue_many", {"queue": self._rng.choice(self._queues), "jobs": [self._job() for _ in range(count)]}

    def claim(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        limit = rng.choice((1, 1, 2, 5))
        args: dict[str, Any] = {
            "queues": rng.sample(self._queues, rng.randrange(1, len(self._queues) + 1)),
            "limit": limit,
            "wait_ms": rng.choice((0, 0, 5, 1 * _S, self._length_ms)),
            "fates": [(rng.choice(_FATES), rng.choice((0, 0, 3, 700, 5 * _S))) for _ in range(limit)],
            "together": rng.random() < 0.2,
        }
        if rng.random() < 0.2:
            args["lease_ms"] = rng.choice((1, 50, 3 * _S))
        return "claim", args

    def worker(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        return "worker", {
            "queues": rng.sample(self._queues, rng.randrange(1, len(self._queues) + 1)),
            "concurrency": rng.choice((1, 2, 5)),
            "prefetch": rng.choice((0, 3)),
            "run_ms": rng.randrange(1, self._length_ms),
            "seed": rng.randrange(1 << 30),
            "until_empty": rng.random() < 0.3,
        }

    def cancel(self) -> tuple[str, dict[str, Any]]:
        return "cancel", {"which": self._rng.randrange(1 << 30)}

    def requeue(self) -> tuple[str, dict[str, Any]]:
        return "requeue", {"which": self._rng.randrange(1 << 30)}

    def pause(self) -> tuple[str, dict[str, Any]]:
        return "pause", {"queue": self._rng.choice(self._queues), "for_ms": self._rng.choice((1, 500, 10 * _S))}

    def observe(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        state = rng.choice((None, "scheduled", "pending", "claimed", "done", "dead", "cancelled"))
        return "observe", {"queue": rng.choice(self._queues), "which": rng.randrange(1 << 30), "state": state}

    def follow(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        start, for_ms = rng.choice((0, rng.randrange(1 << 30))), rng.choice((1 * _S, 10 * _S, self._length_ms))
        return "follow", {"start": start, "for_ms": for_ms, "apart": rng.random() < 0.3}

    def drain(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        queues = rng.sample(self._queues, rng.randrange(1, len(self._queues) + 1))
        return "drain", {"queues": queues, "for_ms": rng.choice((5, 5 * _S, self._length_ms))}

    def audit(self) -> tuple[str, dict[str, Any]]:
        return "audit", {"deep": self._rng.random() < 0.5}

    def fault(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        return "fault", {
            "kind": rng.choice(FAULTS),
            "for_ms": rng.choice((1, 100, 2 * _S, 20 * _S)),
            "chance": rng.choice((0.05, 0.3, 1.0)),
            "seed": rng.randrange(1 << 30),
        }

    def kill(self) -> tuple[str, dict[str, Any]]:
        return "kill", {"turns": self._rng.choice((0, 1, 2, 3, 5, 8, 20)), "lands": self._rng.random() < 0.5}

    def kill_at(self) -> tuple[str, dict[str, Any]]:
        calls = ("write:before", "write:after", "sync:before", "sync:after", "get", "scan", "close")
        return "kill_at", {"call": self._rng.choice(calls), "lands": self._rng.random() < 0.5}

    def restart(self) -> tuple[str, dict[str, Any]]:
        return "restart", {}

    def second(self) -> tuple[str, dict[str, Any]]:
        return "second", {"call": self._rng.choice((None, "write:after", "sync:before", "sync:after", "scan"))}

    def jump(self) -> tuple[str, dict[str, Any]]:
        rng = self._rng
        by_ms = rng.choice((200, 4 * _S, 90 * _S, 3 * _HOUR_MS))
        return "jump", {"by_ms": by_ms if rng.random() < 0.5 else -by_ms, "back_after_ms": rng.choice((None, 2 * _S))}
