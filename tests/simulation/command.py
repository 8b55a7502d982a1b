"""Deterministic simulation: `python -m tests.simulation --seeds 0:1000000 --jobs 2`.

Each seed is a whole world (world.py): processes that are killed, fenced and restarted, stores that fail in every
way seen, clocks that are set, callers that give up, and an oracle that records what was promised (oracle.py). The same
seed gives the same run, byte for byte. A seed that breaks a promise is printed with the shortest run found that still
breaks it, and with one command that repeats it.
"""

import itertools
import multiprocessing
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Annotated, Final, NamedTuple

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.plan import make_plan
from tests.simulation.shrink import keep_moves, shrink
from tests.simulation.world import run_plan

__all__ = ["Result", "app", "main", "run_seeds"]

_CHUNK_SEEDS: Final = 25
_STORY_LINES: Final = 80
_FAILURES_SHOWN: Final = 5
_MODULE: Final = "python -m tests.simulation"

app = typer.Typer(add_completion=False)


class Result(NamedTuple):
    """The result of one seed; `broken` is the promise that was broken, in words, or None."""

    seed: int
    broken: str | None
    digest: str
    commits: int
    jobs: int


def run_seeds(start: int, stop: int) -> list[Result]:
    """Run these seeds one after the other, in this process."""
    results: list[Result] = []
    for seed in range(start, stop):
        outcome = run_plan(make_plan(seed))
        broken = None if outcome.broken is None else str(outcome.broken)
        results.append(Result(seed, broken, outcome.digest, outcome.commits, outcome.jobs))
    return results


def _results(start: int, stop: int, jobs: int) -> Iterator[list[Result]]:
    chunks = [
        (at, min(at + _CHUNK_SEEDS, stop))
        for at in range(start, min(stop, start + 2 * jobs * _CHUNK_SEEDS), _CHUNK_SEEDS)
    ]
    if jobs == 1:
        for at in range(start, stop, _CHUNK_SEEDS):
            yield run_seeds(at, min(at + _CHUNK_SEEDS, stop))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: set[Future[list[Result]]] = {pool.submit(run_seeds, *chunk) for chunk in chunks}
        following = iter(range(start + len(chunks) * _CHUNK_SEEDS, stop, _CHUNK_SEEDS))
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                for at in itertools.islice(following, 1):
                    waiting.add(pool.submit(run_seeds, at, min(at + _CHUNK_SEEDS, stop)))
                yield future.result()


def _seeds(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise typer.BadParameter(f"{text!r} is no range of seeds: give FIRST:END, 0:1000 for instance")
    return int(match[1]), int(match[2])


def _moves(text: str | None, count: int) -> list[int] | None:
    if text is None:
        return None
    if not re.fullmatch(r"(\d{1,6}(,\d{1,6})*)?", text) or any(int(part) >= count for part in text.split(",") if part):
        raise typer.BadParameter(f"{text!r}: give numbers of moves from 0 to {count - 1}, with commas between them")
    return [int(part) for part in text.split(",") if part]


def _tell_one(console: Console, seed: int, moves: Sequence[int] | None, trace: bool) -> bool:
    """Run one seed and print its trace; returns whether all promises were kept."""
    plan = make_plan(seed)
    plan = plan if moves is None else keep_moves(plan, moves)
    outcome = run_plan(plan)
    if trace or outcome.broken is not None:
        console.print(f"seed {seed}: {plan.settings}", markup=False, soft_wrap=True)
        for move in plan.moves:
            console.print(f"  {move}", markup=False, soft_wrap=True)
        lines = outcome.story if trace else outcome.story[-_STORY_LINES:]
        console.print("what happened:", *lines, sep="\n", markup=False, soft_wrap=True)
    console.print(
        f"seed {seed}: {outcome.broken or 'all promises were kept'}; {outcome.commits} commits, {outcome.jobs} jobs, "
        f"digest {outcome.digest}",
        markup=False,
        soft_wrap=True,
    )
    return outcome.broken is None


def _explain(console: Console, seed: int) -> None:
    """The shortest run found that breaks the promise which this seed broke, and how to repeat it."""
    plan = make_plan(seed)
    outcome = run_plan(plan)
    if outcome.broken is None:
        console.print(f"seed {seed} broke a promise in a child process and keeps it here", markup=False)
        return
    kept, short = shrink(plan, outcome.broken.kind)
    console.print(f"\nseed {seed} broke a promise: {outcome.broken}", markup=False, soft_wrap=True)
    console.print(f"{len(kept)} of its {len(plan.moves)} moves are enough:", markup=False)
    for number in kept:
        console.print(f"  {plan.moves[number]}", markup=False, soft_wrap=True)
    console.print("what happened:", *short.story[-_STORY_LINES:], sep="\n", markup=False, soft_wrap=True)
    again = f"{_MODULE} --seeds {seed}:{seed + 1} --moves {','.join(map(str, kept))} --trace"
    console.print(f"to repeat this:  {again}", markup=False, soft_wrap=True)


@app.command()
def simulate(
    seeds: Annotated[str, typer.Option(help="FIRST:END, END not included.")] = "0:1000",
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes side by side.")] = 1,
    moves: Annotated[str | None, typer.Option(help="Of a single seed, only these moves: 3,7,12.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Of a single seed, the whole story.")] = False,
    digests: Annotated[bool, typer.Option("--digests", help="Print a digest of each run, to compare runs.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Don't end at the first broken promise.")] = False,
) -> None:
    """Run simulated worlds, one for each seed, and print which promises were broken. Exit code 1 when any was."""
    start, stop = _seeds(seeds)
    console = Console(highlight=False)
    if moves is not None or trace:
        if stop - start != 1:
            raise typer.BadParameter("--moves and --trace are about a single seed: give --seeds N:N+1")
        raise typer.Exit(0 if _tell_one(console, start, _moves(moves, len(make_plan(start).moves)), trace) else 1)
    began_s = time.perf_counter()
    found: list[Result] = []
    failed: list[Result] = []
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("seeds", total=stop - start)
        for results in _results(start, stop, jobs):
            found += results
            failed += [result for result in results if result.broken is not None]
            progress.update(task, advance=len(results), description=f"{len(failed)} broken" if failed else "seeds")
            if failed and not keep_going:
                break
    if digests:
        for result in sorted(found):
            console.print(f"{result.seed} {result.digest}", markup=False)
    for result in sorted(failed)[:_FAILURES_SHOWN]:
        _explain(console, result.seed)
    commits, jobs_seen = sum(result.commits for result in found), sum(result.jobs for result in found)
    verdict = f"{len(failed)} seeds broke a promise" if failed else "all promises were kept"
    took_s = time.perf_counter() - began_s
    console.print(
        f"{len(found)} seeds, {commits} commits, {jobs_seen} jobs in {took_s:.0f} s: {verdict}",
        markup=False,
        soft_wrap=True,
    )
    raise typer.Exit(1 if failed else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with these arguments, or those of the process; ends with SystemExit like every program."""
    app(args=None if arguments is None else list(arguments), prog_name=_MODULE)
