"""A real Prometheus watches a real worker: what dashboard and rules ask for is there, and agrees with the log."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from ledgerq.tools.monitoring.dashboard import dashboard
from ledgerq.tools.monitoring.panels import ROWS, Panel
from ledgerq.tools.monitoring.rules import ALERTS, RECORDS
from tests.monitoring.prometheus import ALERTMANAGER, MISSING, MISSING_ALERTMANAGER, PROMETHEUS, promtool
from tests.monitoring.prometheus_run import FIRING, KINDS, WORKER, Run, as_grafana, observed
from tests.monitoring.scripted_load import QUEUES
from tests.support.programs import ROOT

pytestmark = [pytest.mark.proof, pytest.mark.skipif(PROMETHEUS is None, reason=MISSING)]

AT = f'job="{WORKER}"'
PANELS = [panel for row in ROWS for panel in row.panels]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with observed(tmp_path_factory.mktemp("prometheus")) as found:
        yield found


class Size(NamedTuple):
    """Between which numbers the largest value of a panel must lie, and how many series it has at least."""

    low: float
    high: float
    series: int = 1


# The load enqueues about 100 jobs a second on a machine that does nothing else; a busy one may do a tenth.
RATE = Size(1, 1000)
SOME = Size(0.05, 200)
SECONDS = Size(0.0001, 100)
ZERO = Size(0, 0)
EXPECTED = {
    "Pending": Size(10, 20_000),
    "Oldest pending": Size(10, 600),
    "Done a second": RATE,
    "Failed tries": Size(0.01, 1.001),
    "Dead letters": Size(1, 500),
    "Writer": Size(1, 1),
    "Last commit": Size(0, 30),
    "Last audit": Size(10, 600),
    "Transitions by kind": Size(1, 1000, len(KINDS)),
    "Coming in, going out": Size(1, 1000, 2),
    "Enqueued by queue": Size(1, 500, len(QUEUES)),
    "Done by queue": Size(1, 500, len(QUEUES)),
    "Cancelled, requeued, released, swept": Size(0.05, 500, 5),
    "Jobs by state": Size(10, 20_000, 3),
    "Pending by queue": Size(10, 2000, len(QUEUES)),
    "Oldest pending by queue": Size(10, 600, len(QUEUES)),
    "Time to work off": Size(0.01, math.inf, len(QUEUES) - 1),
    "Paused queues": Size(1, 1, len(QUEUES)),
    "Queues held back": Size(0, 1),
    "Claimed, and how many may be": Size(1, 1000, 2),
    "Next due job": Size(0, 3600),
    "Waiting": Size(1, 5000, 19),
    "Running": Size(1, 5000, 19),
    "Whole life": Size(1, 5000, 19),
    "Waiting, quantiles": Size(0.001, 100, 3),
    "Running, quantiles": Size(0.001, 100, 3),
    "Whole life by queue, p99": Size(0.5, 100, len(QUEUES) - 1),
    "Tries per done job": Size(1.01, 3, len(QUEUES) - 1),
    "Failed tries by outcome": Size(0.1, 100, 2),
    "Share of tries that failed": Size(0.1, 1.001, len(QUEUES) - 1),
    "Handlers that failed": Size(0.1, 100, 5),
    "Dead letters by queue": Size(1, 500, len(QUEUES)),
    "Expired leases by queue": Size(0.1, 50, len(QUEUES)),
    "Claims lost, maintenance failed": Size(0.01, 10, 2),
    "Handlers running": Size(16, 16, 7),
    "Handlers by queue, p99": Size(0.5, 10, 6),
    "Handlers ended by outcome": Size(1, 500, 6),
    "Claims held and waited for": Size(1, 60, 3),
    "Ready window": Size(1, 3000, 1),
    "Lease renewals": SOME,
    "Commits": RATE,
    "Commit phases, p99": Size(0.0005, 60, 5),
    "Events in a commit": Size(1, 500),
    "Bytes of a commit": Size(100, 500_000),
    "Growth of the log": Size(500, 1_000_000),
    "Events": RATE,
    "Not proven by an audit": Size(100, 100_000),
    "Differences, projections behind": Size(0, 0, 3),
    "Written": Size(1000, 10_000_000, 3),
    "Sorted files and runs": Size(1, 50, 2),
    "Memory before sorted files": Size(1000, 50_000_000),
    "Writes that waited": Size(0, 10, 2),
    "Object store requests": Size(0.5, 3000, 2),
    "Object store requests, p99": SECONDS,
    "Calls into SlateDB, rows": Size(1, 200_000, 4),
    "Block cache": Size(0.1, 200_000, 2),
}


def numbers(values: list[float]) -> list[float]:
    """Those that a panel draws: a ratio of two rates that are both zero is none."""
    return [value for value in values if not math.isnan(value)]


def test_every_panel_is_expected_to_show_something() -> None:
    assert list(EXPECTED) == [panel.title for panel in PANELS]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_shows_data_of_the_expected_sign_and_size(run: Run, panel: Panel) -> None:
    expected, largest, count = EXPECTED[panel.title], -math.inf, 0
    for target in panel.targets:
        series = run.prometheus.range(as_grafana(target.expr), run.began, run.ended, 1)
        drawn = [values for _, found in series if (values := numbers(found))]
        assert drawn, f"{target.expr} shows nothing"
        count += len(drawn)
        largest = max(largest, *(max(values) for values in drawn))
        if panel.title != "Next due job":
            assert all(value >= 0 for values in drawn for value in values), f"{target.expr} is below 0"
    assert expected.low <= largest <= expected.high, f"{largest} is not in {expected}"
    assert count >= expected.series, f"{count} series, not {expected.series}"
    if panel.unit == "percentunit":
        assert largest <= 1 + 1e-9


def test_the_chosen_queues_are_those_that_are_shown(run: Run) -> None:
    for panel in PANELS:
        for target in panel.targets:
            if "by (queue)" in target.expr and "limit" not in target.legend:
                series = run.prometheus.range(as_grafana(target.expr, "(mail|reports)"), run.began, run.ended, 1)
                assert {labels["queue"] for labels, _ in series} <= {"mail", "reports"}, panel.title


def test_the_dashboards_variables_find_what_there_is(run: Run) -> None:
    found = {}
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            matched = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert matched is not None
            selector, label = matched.groups()
            times = {"start": str(run.began), "end": str(run.ended)}
            found[variable["name"]] = run.prometheus.api(f"label/{label}/values", match=as_grafana(selector), **times)
    assert found["job"] == ["fenced", WORKER, "ledgerq-exporter"]
    assert len(found["instance"]) == 1
    assert found["queue"] == sorted(QUEUES)


# Rules


@pytest.mark.parametrize("name", [record.name for record in RECORDS])
def test_a_recording_rule_recorded(run: Run, name: str) -> None:
    series = run.prometheus.range(f"{name}{{{AT}}}", run.began, run.ended, 1)
    values = [value for _, found in series for value in numbers(found)]
    assert values
    assert min(values) >= 0
    assert max(values) > 0
    if "ratio" in name:
        assert max(values) <= 1 + 1e-9


SELECTOR = re.compile(r"(?<![\w:])((?:\w+:)?ledgerq_\w+(?::\w+)?|up)\b(\{[^}]*\})?")
# This error does not happen in the run: that of a failed writer is shown by another one.
NOT_IN_THE_RUN = {'ledgerq_writer_failed{error!="Fenced"}'}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_what_an_alert_looks_at_is_there(run: Run, alert: Any) -> None:
    selectors = {name + where for name, where in SELECTOR.findall(alert.expr)}
    assert selectors
    for selector in selectors - NOT_IN_THE_RUN:
        assert run.prometheus.range(selector, run.began, run.ended, 1), selector
    # And Prometheus takes the whole.
    run.prometheus.range(alert.expr, run.began, run.ended, 1)


def test_alerts_fired_for_what_happened_and_not_for_what_did_not(run: Run) -> None:
    series = run.prometheus.api(
        "query_range", query='ALERTS{alertstate="firing"}', start=str(run.began), end=str(run.ended + 60), step="0.5"
    )["result"]
    fired = {(one["metric"]["alertname"], one["metric"].get("queue", one["metric"].get("job"))) for one in series}
    # The run waited for those in `FIRING`.
    assert fired >= {("LedgerqDeadLetters", "reports"), ("LedgerqWriterGone", WORKER)}
    assert {name for name, _ in fired} >= set(FIRING)
    names = {name for name, _ in fired}
    assert not names & {
        *("LedgerqProjectionDrift", "LedgerqLogDamaged", "LedgerqNoAudit", "LedgerqProjectionBehind"),
        *("LedgerqWriterFailed", "LedgerqDueJobsLate", "LedgerqOldestPendingTooOld", "LedgerqQueuePaused"),
        *("LedgerqMaintenanceFailing", "LedgerqWritesStalled", "LedgerqWritersRestarting"),
    }
    assert ("LedgerqBacklogStuck", "newsletter") not in fired
    assert ("LedgerqDeadLetters", "mail") not in fired


@pytest.mark.skipif(ALERTMANAGER is None, reason=MISSING_ALERTMANAGER)
def test_alertmanager_gets_what_an_operator_needs(run: Run) -> None:
    def gone() -> list[dict[str, Any]]:
        delivered = run.prometheus.delivered()
        return [alert for alert in delivered if alert["labels"]["alertname"] == "LedgerqWriterGone"]

    run.prometheus.until(lambda: bool(gone()), "the alert arrives")
    alert = gone()[0]  # it may have been sent again
    assert alert["labels"].items() >= {"severity": "critical", "job": WORKER}.items()
    assert alert["annotations"]["runbook_url"].endswith("/operate/alerts/#ledgerqwritergone")
    assert alert["annotations"]["summary"].startswith(f"The process that writes a store is gone: {WORKER} 127.0.0.1:")


# The log


def stats_as_of(url: str, offset: int) -> list[dict[str, Any]]:
    """The counters of each queue by the fold of the first so many events."""
    command = [sys.executable, "-m", "ledgerq.tools.cli", "stats", url, "--as-of", str(offset), "--json"]
    ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    queues: list[dict[str, Any]] = json.loads(ran.stdout)["queues"]
    return queues


@pytest.mark.parametrize("job", [WORKER, "ledgerq-exporter"])
@pytest.mark.parametrize("when", ["killed", "restarted", "ended"])
def test_what_prometheus_saw_in_one_scrape_is_the_fold_of_the_log(run: Run, job: str, when: str) -> None:
    at, where = getattr(run, when), f'job="{job}"'
    offset = round(run.prometheus.value(f"ledgerq_log_events_total{{{where}}}", at))
    queues = stats_as_of(run.url, offset)
    assert {queue["queue"] for queue in queues} == set(QUEUES)

    def by(metric: str, label: str = "") -> dict[Any, float]:
        found = run.prometheus.query(f"{metric}{{{where}}}", at)
        return {(one.labels["queue"], one.labels[label]) if label else one.labels["queue"]: one.value for one in found}

    transitions = {(queue["queue"], kind): n for queue in queues for kind, n in queue["totals"].items()}
    assert by("ledgerq_transitions_total", "kind") == transitions
    assert by("ledgerq_jobs", "state") == {(queue["queue"], s): n for queue in queues for s, n in queue["now"].items()}
    assert by("ledgerq_queue_paused") == {queue["queue"]: float(queue["paused"]) for queue in queues}
    totals = {queue["queue"]: queue["totals"] for queue in queues}
    assert by("ledgerq_job_waiting_seconds_count") == {name: of["claimed"] for name, of in totals.items()}
    assert by("ledgerq_job_life_seconds_count") == {name: of["acked"] for name, of in totals.items()}
    assert by("ledgerq_job_attempts_count") == {name: of["acked"] for name, of in totals.items()}
    assert by("ledgerq_job_running_seconds_count") == {
        name: of["acked"] + of["nacked"] - of["released"] for name, of in totals.items()
    }
    assert transitions["mail", "acked"] > 0


def test_a_kill_sets_no_counter_of_the_log_back(run: Run) -> None:
    window = f"[{round(1000 * (run.ended - run.began))}ms]"
    for metric in ("ledgerq_transitions_total", "ledgerq_attempts_total", "ledgerq_log_events_total"):
        assert run.prometheus.value(f"sum(resets({metric}{{{AT}}}{window}))", run.ended) == 0, metric
    for measure in ("waiting_seconds", "running_seconds", "life_seconds", "attempts"):
        for part in ("bucket", "count", "sum"):
            series = f"ledgerq_job_{measure}_{part}{{{AT}}}{window}"
            assert run.prometheus.value(f"sum(resets({series}))", run.ended) == 0, series
    # What only the process counts begins anew: the look at the others could see it.
    assert run.prometheus.value(f"resets(ledgerq_commit_events_count{{{AT}}}{window})", run.ended) == 1
    # The kill left claims behind, which the one after it saw and counted.
    assert run.prometheus.value(f"ledgerq_log_epoch{{{AT}}}", run.ended) == 3


def test_increase_over_the_run_is_what_happened(run: Run) -> None:
    seconds = int(run.ended - run.began)
    for kind in ("enqueued", "claimed", "acked"):
        series = f'sum(ledgerq_transitions_total{{{AT},kind="{kind}"}})'
        happened = run.prometheus.value(series, run.ended) - run.prometheus.value(series, run.ended - seconds)
        increase = f'sum(increase(ledgerq_transitions_total{{{AT},kind="{kind}"}}[{seconds}s]))'
        assert run.prometheus.value(increase, run.ended) == pytest.approx(happened, rel=0.15)
        assert happened > 100


def test_the_heatmaps_hold_every_claim(run: Run) -> None:
    """A panel's sum over the run is that of the log, but for what Prometheus extrapolates."""
    seconds = f"{round(run.ended - run.began)}s"
    (panel,) = (panel for panel in PANELS if panel.title == "Waiting")
    cells = run.prometheus.query(as_grafana(panel.targets[0].expr, rate_interval=seconds), run.ended)
    below = {one.labels["le"]: one.value for one in cells}
    assert sorted(below.values()) == [below[le] for le in sorted(below, key=float)]
    claims = run.prometheus.value(
        f'sum(increase(ledgerq_transitions_total{{{AT},kind="claimed"}}[{seconds}]))', run.ended
    )
    assert below["+Inf"] == pytest.approx(claims, rel=1e-6)


@pytest.mark.parametrize("name", ["worker", "exporter"])
def test_promtool_finds_nothing_wrong_with_the_pages(run: Run, name: str) -> None:
    code, said = promtool("check", "metrics", stdin=run.pages[name])
    assert (code, said) == (0, "")
