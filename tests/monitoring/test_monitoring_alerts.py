"""Every alert is shown firing, and not firing close by, by `promtool test rules`; the files pass promtool's checks.

Series are in promtool's notation, a value a minute: `5x3` is 5 5 5 5, `0+2x3` is 0 2 4 6, `stale` ends a series.
"""

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from ledgerq.projections.metrics.catalogue import CATALOGUE
from ledgerq.tools.monitoring import generate
from ledgerq.tools.monitoring.dashboard import metrics_of
from ledgerq.tools.monitoring.rules import ALERTS, RECORDS, Alert
from tests.monitoring.prometheus import MISSING, PROMTOOL, promtool

pytestmark = pytest.mark.skipif(PROMTOOL is None, reason=MISSING)

AT = 'store="jobs",job="ledgerq",instance="host:9464"'
EXPORTER = 'store="jobs",job="ledgerq-exporter",instance="host:9465"'
Q = f'{AT},queue="mail"'
STORE = {"store": "jobs"}
HERE = STORE | {"job": "ledgerq", "instance": "host:9464"}
MAIL = STORE | {"queue": "mail"}

Given = dict[str, str]

PENDING = f'ledgerq_jobs{{{Q},state="pending"}}'
PAUSED = f"ledgerq_queue_paused{{{Q}}}"
AGE = f"ledgerq_oldest_pending_age_seconds{{{Q}}}"
UP = f"up{{{AT}}}"
WRITER = f"ledgerq_writer_up{{{AT}}}"
READ = f"ledgerq_read_timestamp_seconds{{{AT}}}"
AUDIT = f"ledgerq_audit_timestamp_seconds{{{AT}}}"
LATER_UP = f"up{{{AT}}}".replace("host:", "other:")
LATER_WRITER = f"ledgerq_writer_up{{{AT}}}".replace("host:", "other:")


def kind(name: str) -> str:
    return f'ledgerq_transitions_total{{{Q},kind="{name}"}}'


def tries(outcome: str) -> str:
    return f'ledgerq_attempts_total{{{Q},outcome="{outcome}"}}'


def handlers(outcome: str) -> str:
    return f'ledgerq_worker_handler_seconds_count{{{Q},outcome="{outcome}"}}'


def at(name: str, **labels: str) -> str:
    more = "".join(f',{label}="{value}"' for label, value in labels.items())
    return f"ledgerq_{name}{{{AT}{more}}}"


def bucket(phase: str, le: str) -> str:
    return at("commit_seconds_bucket", phase=phase, le=le)


class Case(NamedTuple):
    """Of the series `given`, at `minute`: an alert with these labels and this summary, or none (no labels)."""

    alert: str
    minute: int
    given: Given
    labels: dict[str, str] | None = None
    summary: str = ""


CASES = [
    # Backlog
    Case("LedgerqBacklogStuck", 20, {PENDING: "5x30", kind("claimed"): "100x30", PAUSED: "0x30"},
         MAIL | {"state": "pending"}, "Nothing is claimed from queue mail while 5 jobs are pending"),
    Case("LedgerqBacklogStuck", 20, {PENDING: "5x30", kind("claimed"): "0+1x30", PAUSED: "0x30"}),
    Case("LedgerqBacklogStuck", 20, {PENDING: "5x30", kind("claimed"): "100x30", PAUSED: "1x30"}),
    Case("LedgerqBacklogStuck", 20, {PENDING: "5x15 0 5x30", kind("claimed"): "100x50", PAUSED: "0x50"}),
    Case("LedgerqBacklogStuck", 18, {PENDING: "5x15 stale", kind("claimed"): "100x15 stale", PAUSED: "1x15 stale"}),
    Case("LedgerqBacklogGrowing", 60, {PENDING: "0+20x60", kind("claimed"): "0+1x60", PAUSED: "0x60"},
         MAIL | {"state": "pending"}, "The backlog of queue mail grows and does not drain: 1200 jobs"),
    Case("LedgerqBacklogGrowing", 60, {PENDING: "1200x60", kind("claimed"): "0+1x60", PAUSED: "0x60"}),
    Case("LedgerqBacklogGrowing", 60, {PENDING: "0+20x60", kind("claimed"): "0+600x60", PAUSED: "0x60"}),
    Case("LedgerqBacklogGrowing", 60, {PENDING: "0+20x60", kind("claimed"): "0+1x60", PAUSED: "1x60"}),
    Case("LedgerqOldestPendingTooOld", 30, {AGE: "0+60x60", PAUSED: "0x60"},
         MAIL, "A job of queue mail has waited for 30m 0s"),
    Case("LedgerqOldestPendingTooOld", 30, {AGE: "900x60", PAUSED: "0x60"}),
    Case("LedgerqOldestPendingTooOld", 30, {AGE: "0+60x60", PAUSED: "1x60"}),
    Case("LedgerqQueuePaused", 70, {PENDING: "3x90", PAUSED: "1x90"},
         MAIL, "Queue mail has been paused for an hour while jobs wait"),
    Case("LedgerqQueuePaused", 70, {PENDING: "0x90", PAUSED: "1x90"}),
    Case("LedgerqQueuePaused", 70, {PENDING: "3x90", PAUSED: "1x50 0 1x40"}),
    Case("LedgerqDueJobsLate", 5, {at("next_due_seconds"): "-61x10"},
         STORE, "A job has been due for more than a minute and was not promoted"),
    Case("LedgerqDueJobsLate", 5, {at("next_due_seconds"): "-59x10"}),
    # Failures
    Case("LedgerqDeadLetters", 15, {kind("dead"): "3x9 5x20"},
         MAIL | {"kind": "dead"}, "Jobs of queue mail died: about 2 in 15 minutes"),
    Case("LedgerqDeadLetters", 15, {kind("dead"): "3x30", kind("acked"): "0+9x30"}),
    Case("LedgerqDeadLetters", 40, {kind("dead"): "3x9 5x40"}),
    Case("LedgerqLeasesExpiring", 40, {kind("lease_expired"): "0+1x60", kind("claimed"): "0+10x60"},
         MAIL, "10% of the claims of queue mail end by an expired lease"),
    Case("LedgerqLeasesExpiring", 40, {kind("lease_expired"): "0+1x60", kind("claimed"): "0+101x60"}),
    Case("LedgerqLeasesExpiring", 30, {kind("lease_expired"): "0x20 50x40", kind("claimed"): "0+10x60"}),
    Case("LedgerqRetriesStorming", 20, {tries("nacked"): "0+50x30", tries("lease_expired"): "0+10x30",
                                        tries("acked"): "0+20x30"},
         MAIL, "75% of the tries of queue mail fail"),
    Case("LedgerqRetriesStorming", 20, {tries("nacked"): "0+50x30", tries("acked"): "0+51x30"}),
    Case("LedgerqRetriesStorming", 20, {tries("nacked"): "0+5x30", tries("acked"): "0x30"}),
    Case("LedgerqHandlersFailing", 20, {handlers("timeout"): "0+10x30", handlers("retry"): "0+20x30",
                                        handlers("done"): "0+70x30"},
         HERE | MAIL, "30% of the handlers of queue mail fail on host:9464"),
    Case("LedgerqHandlersFailing", 20, {handlers("timeout"): "0+20x30", handlers("done"): "0+80x30"}),
    Case("LedgerqHandlersFailing", 20, {handlers("cancelled"): "0+50x30", handlers("done"): "0+50x30"}),
    Case("LedgerqClaimsLost", 10, {at("worker_claims_lost_total"): "0x5 1x20"},
         HERE, "Handlers on host:9464 ran for claims that were lost"),
    Case("LedgerqClaimsLost", 10, {at("worker_claims_lost_total"): "1x30"}),
    Case("LedgerqWorkerSaturated", 40,
         {at("worker_handlers_running", queue="mail"): "3x60", at("worker_handlers_running", queue="pdf"): "1x60",
          at("worker_handlers_limit"): "4x60", AGE: "61x60"},
         HERE, "All 4 handlers of host:9464 have been busy for half an hour while jobs wait"),
    Case("LedgerqWorkerSaturated", 40,
         {at("worker_handlers_running", queue="mail"): "3x60", at("worker_handlers_limit"): "4x60", AGE: "61x60"}),
    Case("LedgerqWorkerSaturated", 40,
         {at("worker_handlers_running", queue="mail"): "4x60", at("worker_handlers_limit"): "4x60", AGE: "59x60"}),
    # The writer
    Case("LedgerqWriterGone", 10, {UP: "1x5 0x10", WRITER: "1x5 stale"},
         HERE, "The process that writes a store is gone: ledgerq host:9464"),
    Case("LedgerqWriterGone", 10, {UP: "1x5 stale", WRITER: "1x5 stale"},
         {"job": "ledgerq"}, "The process that writes a store is gone: ledgerq "),
    Case("LedgerqWriterGone", 10, {UP: "1x5 0x1 1x10", WRITER: "1x5 stale _ 1x10"}),
    Case("LedgerqWriterGone", 10,
         {UP: "1x5 stale", WRITER: "1x5 stale", LATER_UP: "_x5 1x10", LATER_WRITER: "_x5 1x10"}),
    Case("LedgerqWriterGone", 10, {UP: "0x20"}),
    Case("LedgerqWriterFenced", 3, {at("writer_failed", error="Fenced"): "1x5"},
         HERE | {"error": "Fenced"}, "Another process opened the store of host:9464, which still runs"),
    Case("LedgerqWriterFenced", 3, {at("writer_failed", error="Fenced"): "1 stale"}),
    Case("LedgerqWriterFenced", 3, {at("writer_failed", error="OutcomeUnknown"): "1x5"}),
    Case("LedgerqWriterFailed", 1, {at("writer_failed", error="OutcomeUnknown"): "1x5"},
         HERE | {"error": "OutcomeUnknown"}, "The writer on host:9464 failed: OutcomeUnknown"),
    Case("LedgerqWriterFailed", 1, {at("writer_failed", error="Fenced"): "1x5", WRITER: "0x5"}),
    Case("LedgerqWritersRestarting", 15, {at("log_epoch"): "1x5 2 3 4 5x20"},
         STORE, "The store jobs was opened 4 times in half an hour"),
    Case("LedgerqWritersRestarting", 15, {at("log_epoch"): "1x5 2 3 4x20"}),
    Case("LedgerqCommitsSlow", 20,
         {bucket("sync", "1"): "0+1x30", bucket("sync", "2.5"): "0+10x30", bucket("sync", "+Inf"): "0+10x30"},
         HERE | {"phase": "sync"}, "One in a hundred commits on host:9464 takes 2.483s in its phase sync"),
    Case("LedgerqCommitsSlow", 20, {bucket("sync", "1"): "0+10x30", bucket("sync", "+Inf"): "0+10x30"}),
    Case("LedgerqCommitsSlow", 20,
         {bucket("wait", "1"): "0+1x30", bucket("wait", "2.5"): "0+10x30", bucket("wait", "+Inf"): "0+10x30"}),
    Case("LedgerqMaintenanceFailing", 20, {at("maintenance_failures_total"): "0+1x30"},
         HERE, "Maintenance on host:9464 fails again and again"),
    Case("LedgerqMaintenanceFailing", 20, {at("maintenance_failures_total"): "0x9 1 2 3x30"}),
    Case("LedgerqWritesStalled", 20, {at("slatedb_l0_stalls_total", type="size"): "0+1x30"},
         HERE, "Writes on host:9464 wait for flushes or compaction"),
    Case("LedgerqWritesStalled", 20,
         {at("slatedb_l0_stalls_total", type="size"): "3x30", at("slatedb_backpressure_total"): "0+1x30"},
         HERE, "Writes on host:9464 wait for flushes or compaction"),
    Case("LedgerqWritesStalled", 20,
         {at("slatedb_l0_stalls_total", type="size"): "3x30", at("slatedb_backpressure_total"): "5x30"}),
    # Proof
    Case("LedgerqProjectionDrift", 1, {at("audit_differences"): "2x5"},
         STORE, "The last audit of the store jobs found 2 rows that differ from the log"),
    Case("LedgerqProjectionDrift", 1, {at("audit_differences"): "0x5"}),
    Case("LedgerqLogDamaged", 1, {at("audit_log_intact"): "0x5"},
         STORE, "The last audit of the store jobs could not verify the log"),
    Case("LedgerqLogDamaged", 1, {at("audit_log_intact"): "1x5"}),
    Case("LedgerqProjectionBehind", 15, {at("projection_lag_events", projection="senders"): "5x20"},
         STORE | {"projection": "senders"}, "Projection senders is 5 events behind the log"),
    Case("LedgerqProjectionBehind", 15, {at("projection_lag_events", projection="senders"): "5x8 0 5x10"}),
    # The test's clock begins at 0: this is a day before it.
    Case("LedgerqNoAudit", 62, {AUDIT: "-86400x90"},
         STORE, "No audit of the store jobs was recorded for more than a day"),
    Case("LedgerqNoAudit", 58, {AUDIT: "-86400x90"}),
    Case("LedgerqNoAudit", 90, {AUDIT: "-80000x90"}),
    Case("LedgerqNoAudit", 1502, {AUDIT: "0x1600"},
         STORE, "No audit of the store jobs was recorded for more than a day"),
    Case("LedgerqNoAudit", 1502, {AUDIT: "_x1400 0x200"}),
    Case("LedgerqExporterStale", 10, {READ: "0x20"}, HERE, "What host:9464 reports of its store is old"),
    Case("LedgerqExporterStale", 12, {READ: "0+60x5 stale", UP: "1x5 0x20"},
         HERE, "What host:9464 reports of its store is old"),
    Case("LedgerqExporterStale", 10, {READ: "0+60x30", UP: "1x30"}),
    Case("LedgerqExporterStale", 12, {READ: "0+60x5 stale", WRITER: "1x5 stale", UP: "1x5 0x20"}),
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The exported files."""
    for name, text in generate.contents().items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def alert_of(name: str) -> Alert:
    (found,) = (alert for alert in ALERTS if alert.name == name)
    return found


def expanded(text: str, labels: dict[str, str]) -> str:
    """A text with its labels filled in, as Prometheus does it; what needs more than that stands in the case."""
    for label, value in labels.items():
        text = text.replace(f"{{{{ $labels.{label} }}}}", value)
    assert "{{" not in text
    return text


def expected(case: Case) -> list[dict[str, dict[str, str]]]:
    if case.labels is None:
        return []
    alert = alert_of(case.alert)
    texts = {
        "summary": case.summary,
        "description": expanded(alert.description, case.labels),
        "runbook_url": alert.runbook_url,
    }
    return [{"exp_labels": case.labels | {"severity": alert.severity}, "exp_annotations": texts}]


def rule_test(files: Path, cases: list[Case]) -> tuple[int, str]:
    """Run these cases, each with series of its own."""
    tests = [
        {
            "name": f"case {number} of {case.alert}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in case.given.items()],
            "alert_rule_test": [
                {"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected(case)}
            ],
        }
        for number, case in enumerate(cases)
    ]
    # JSON is YAML.
    document = {"rule_files": ["rules/ledgerq_records.yml", "rules/ledgerq_alerts.yml"], "tests": tests}
    (files / "cases.yml").write_text(json.dumps(document))
    return promtool("test", "rules", str(files / "cases.yml"))


@pytest.mark.parametrize("name", [alert.name for alert in ALERTS])
def test_every_alert_has_a_case_that_fires_and_one_that_does_not(name: str) -> None:
    assert {case.labels is None for case in CASES if case.alert == name} == {True, False}


@pytest.mark.proof
def test_alerts_fire_when_they_should_and_only_then(files: Path) -> None:
    # All in one run: starting promtool takes longer than what it does.
    code, said = rule_test(files, CASES)
    assert code == 0, said


OF_A_STORE = frozenset({"log", "store"})


def is_of_a_store(alert: Alert) -> bool:
    """Whether it looks only at facts that a worker and an exporter both report. How old they are concerns each."""
    expr = alert.expr
    for record in RECORDS:
        expr = expr.replace(record.name, record.expr)
    origins = {CATALOGUE[name].origin for name in metrics_of(expr)}
    return origins <= OF_A_STORE and alert.name != "LedgerqExporterStale"


def test_alerts_of_a_store_are_of_no_process() -> None:
    assert {alert.name for alert in ALERTS if is_of_a_store(alert)} == {
        alert.name for alert in ALERTS if alert.expr.startswith("max without (job, instance) (")
    }
    assert len([alert for alert in ALERTS if is_of_a_store(alert)]) == 13


@pytest.mark.proof
def test_an_alert_of_a_store_fires_once_though_a_worker_and_an_exporter_tell_it(files: Path) -> None:
    firing = [case for case in CASES if is_of_a_store(alert_of(case.alert)) and case.labels is not None]
    assert {case.alert for case in firing} == {alert.name for alert in ALERTS if is_of_a_store(alert)}
    # Of each alert the case that is over first: promtool evaluates all rules in each minute of it, and one takes a day.
    soonest = {case.alert: case for case in sorted(firing, key=lambda case: -case.minute)}
    twice = [
        case._replace(given=case.given | {key.replace(AT, EXPORTER): values for key, values in case.given.items()})
        for case in soonest.values()
    ]
    code, said = rule_test(files, twice)
    assert code == 0, said


def test_two_stores_fire_an_alert_each(files: Path) -> None:
    """Those that the configuration gives names of their own."""
    case = next(case for case in CASES if case.alert == "LedgerqDueJobsLate" and case.labels is not None)
    both = case.given | {key.replace('"jobs"', '"other"'): values for key, values in case.given.items()}
    code, said = rule_test(files, [case._replace(given=both)])
    assert code == 1
    assert 'store="other"' in said


def test_a_case_can_fail(files: Path) -> None:
    """A wrong expectation is found: that an alert fires, that it does not, and its text."""
    fires, quiet = (next(case for case in CASES if (case.labels is None) == is_quiet) for is_quiet in (False, True))
    for wrong in (
        fires._replace(labels=None),
        quiet._replace(labels=fires.labels, summary=fires.summary),
        fires._replace(summary="something else"),
    ):
        code, said = rule_test(files, [wrong])
        assert code == 1, said
        assert "FAILED" in said


def test_promtool_finds_nothing_wrong_with_the_files(files: Path) -> None:
    code, said = promtool("check", "config", str(files / "prometheus.yml"))
    assert code == 0, said
    assert f"SUCCESS: {len(ALERTS)} rules found" in said
    code, said = promtool("check", "rules", "--lint-fatal", *map(str, sorted((files / "rules").iterdir())))
    assert code == 0, said
