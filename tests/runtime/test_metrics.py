"""Metrics: what a real Prometheus, its rules and the dashboard make of a real Ray on which a little of everything ran."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.video import metrics as encoder_metrics
from rayflow.runtime import metrics
from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "cluster" / "metrics"
_SUFFIX = r"(?:_bucket|_sum|_count)?"


def exported() -> dict[str, tuple[str, ...]]:
    """All names as Prometheus has them, with their labels."""
    ours = {f"ray_{one.name}": ("store", *one.labels) for one in metrics.METRICS}
    return ours | {f"ray_{one.name}": one.labels for one in encoder_metrics.METRICS}


def alerts() -> list[tuple[str, str]]:
    """Names and expressions, read as plain text: the rules' file is simple, and no YAML is required."""
    text = (FOLDER / "alerts.yml").read_text()
    found: list[tuple[str, str]] = []
    for rule in text.split("- alert: ")[1:]:
        name, _, rest = rule.partition("\n")
        [expression] = re.findall(r"^        expr: (?:>-\n)?((?:.|\n)+?)\n        (?:for|labels):", rest, re.MULTILINE)
        found.append((name.strip(), " ".join(expression.split())))
    return found


def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana.json").read_text())


def panels() -> list[tuple[str, str]]:
    """Titles and queries, with Grafana's variables put in."""
    values = {"$store": ".*", "$__rate_interval": "1m", "$__range": "5m"}
    found: list[tuple[str, str]] = []
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in values.items():
                query = query.replace(name, value)
            found.append((panel["title"], query))
    return found


# -- names: one table ------------------------------------------------------------------------------------------------------------


def test_the_page_has_a_row_for_every_metric_and_no_other() -> None:
    rows = re.findall(r"^\| `(ray_rayflow_\w+)` .*\|$", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert rows == list(exported())
    text = (REPOSITORY / "docs" / "metrics.md").read_text()
    for one in (*metrics.METRICS, *encoder_metrics.METRICS):
        labels = ", ".join(f"`{label}`" for label in exported()[f"ray_{one.name}"])
        assert f"| `ray_{one.name}` | {one.kind} | {one.unit} | {labels} | {one.meaning} |\n" in text


def test_the_page_has_a_row_for_every_alert_with_its_severity() -> None:
    rows = re.findall(r"^\| `(Rayflow\w+)` \| (\w+) \|", (REPOSITORY / "docs" / "metrics.md").read_text(), re.MULTILINE)
    severities = re.findall(r"severity: (\w+)", (FOLDER / "alerts.yml").read_text())
    assert rows == list(zip([name for name, _ in alerts()], severities, strict=True))


def test_names_say_their_unit_and_labels_have_bounds() -> None:
    for one in (*metrics.METRICS, *encoder_metrics.METRICS):
        assert one.name.startswith("rayflow_")
        assert one.name.endswith("_total") == (one.kind == "counter"), one.name
        assert (one.unit == "seconds") == ("seconds" in one.name) and (one.unit == "bytes") == ("bytes" in one.name), one.name
        assert set(one.labels) <= {"shard", "step", "state", "status", "cause", "codec"}, one.name


def test_steps_beyond_the_first_hundred_names_share_one_series() -> None:
    names = metrics.Names()
    labels = {names.label(f"step-{number}") for number in range(1000)}
    assert len(labels) == metrics.LARGEST_LABELS + 1 and metrics.OTHER in labels
    assert names.label("step-7") == "step-7" and names.label("step-999") == metrics.OTHER


def test_a_sample_is_bounded_and_from_all_over_what_was_observed() -> None:
    few, many = [float(one) for one in range(150)], [float(one) for one in range(12_345)]
    assert metrics.evenly(few, metrics.LARGEST_SAMPLE) == few and metrics.evenly([], 5) == []
    sample = metrics.evenly(many, metrics.LARGEST_SAMPLE)
    assert 150 < len(sample) <= metrics.LARGEST_SAMPLE
    for part in (0.5, 0.9, 0.99):
        assert abs(sample[int(part * len(sample))] / len(many) - part) < 0.01, "quantiles stay where they are"


def test_dashboard_and_alerts_name_only_what_there_is_and_the_dashboard_shows_all_of_it() -> None:
    known = exported()
    queries = [query for _, query in panels()]
    for text in (*queries, *(expression for _, expression in alerts())):
        for name in re.findall(rf"ray_rayflow_\w+?{_SUFFIX}\b", text):
            assert re.sub(rf"{_SUFFIX}$", "", name) in known or name in known, name
    shown = " ".join(queries)
    assert [name for name in known if not re.search(rf"\b{name}{_SUFFIX}\b", shown)] == []


def test_the_dashboard_can_be_imported_and_has_a_variable_for_its_data_source() -> None:
    board = dashboard()
    assert [one["name"] for one in board["templating"]["list"]] == ["datasource", "store"]
    charts = [one for one in board["panels"] if one["type"] != "row"]
    identifiers = [one["id"] for one in board["panels"]]
    assert len(set(identifiers)) == len(identifiers)
    assert all(target["datasource"]["uid"] == "${datasource}" for one in charts for target in one["targets"])
    assert all(one["title"] and one["description"] and one["fieldConfig"]["defaults"]["unit"] for one in charts)
    cells = [(x, y) for one in board["panels"] for x, y in _cells(one["gridPos"])]
    assert len(cells) == len(set(cells)), "panels overlap"


def _cells(at: dict[str, int]) -> list[tuple[int, int]]:
    return [(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])]


# -- alerts: each fires --------------------------------------------------------------------------------------------------------

_AT = '{store="s", shard="0", WorkerId="w"}'
_STEP = '{store="s", step="fetch", WorkerId="w"}'


@dataclass(frozen=True)
class Case:
    """What is scraped once a minute, in promtool's notation, and when the alert is there: not a minute before ``quiet_m``."""

    series: dict[str, str]
    fires_m: int
    labels: dict[str, str] = field(default_factory=lambda: {"store": "s", "shard": "0"})
    quiet_m: int = 0


_OF_STORE = {"store": "s"}
_OF_STEP = {"store": "s", "step": "fetch"}

CASES = {
    "RayflowShardSuspended": Case({f"ray_rayflow_shard_suspended{_AT}": "0 0 1 1"}, 2, quiet_m=1),
    "RayflowShardWithoutOwner": Case({f"ray_rayflow_shard_open{_AT}": "1 1 0x10"}, 5, quiet_m=3),
    "RayflowHostGone": Case({f"ray_rayflow_shard_open{_AT}": "1x5 _x30"}, 20, _OF_STORE, quiet_m=5),
    "RayflowFencingLoop": Case({f"ray_rayflow_fencings_total{_AT}": "0 0 1 1 2 3 4 4"}, 8, quiet_m=3),
    "RayflowCrashLoop": Case({f"ray_rayflow_epoch{_AT}": "3x12 4+1x8"}, 20, quiet_m=11),
    "RayflowCommitSlow": Case(
        {
            'ray_rayflow_commit_seconds_bucket{store="s", shard="0", le="1"}': "0+10x30",
            'ray_rayflow_commit_seconds_bucket{store="s", shard="0", le="5"}': "0+20x30",
            'ray_rayflow_commit_seconds_bucket{store="s", shard="0", le="+Inf"}': "0+20x30",
        },
        12,
        quiet_m=3,
    ),
    "RayflowStoreFails": Case({f"ray_rayflow_store_errors_total{_AT}": "0 0 0 5 9 13"}, 5, quiet_m=2),
    "RayflowNoSnapshots": Case(
        {f"ray_rayflow_log_replay_bytes{_AT}": "0 400000000x20", f"ray_rayflow_snapshot_bytes{_AT}": "1000x21"}, 15, quiet_m=8
    ),
    "RayflowStepsFail": Case({f"ray_rayflow_steps_failed_total{_STEP}": "0x30 1x5"}, 32, _OF_STEP, quiet_m=29),
    "RayflowAttemptsFail": Case(
        {
            'ray_rayflow_step_attempts_failed_total{store="s", step="fetch", cause="crash"}': "0+2x30",
            f"ray_rayflow_steps_finished_total{_STEP}": "0+4x30",
        },
        20,
        _OF_STEP,
        quiet_m=4,
    ),
    "RayflowNothingFinishes": Case(
        {
            'ray_rayflow_steps_queued{store="s", WorkerId="d"}': "5x40",
            'ray_rayflow_steps_running{store="s", WorkerId="d"}': "0x40",
            f"ray_rayflow_steps_finished_total{_STEP}": "7x40",
        },
        25,
        _OF_STORE,
        quiet_m=4,
    ),
    "RayflowMailboxGrows": Case({f"ray_rayflow_mailbox_messages{_AT}": "0+500x30"}, 20, quiet_m=6),
    "RayflowDeadLetters": Case({f"ray_rayflow_dead_letters{_AT}": "0 0 1x5"}, 4, _OF_STORE, quiet_m=1),
    "RayflowExecutionsSuspended": Case(
        {'ray_rayflow_executions{store="s", shard="0", state="suspended"}': "0 0 3x5"}, 4, _OF_STORE, quiet_m=1
    ),
    "RayflowStepsLost": Case(
        {'ray_rayflow_step_attempts_failed_total{store="s", step="fetch", cause="lost"}': "0x5 3+3x10"}, 14, _OF_STORE, quiet_m=5
    ),
    "RayflowEncoderLosesFrames": Case(
        {'ray_rayflow_encoder_lost_frames_total{codec="x264", WorkerId="w"}': "_ _ 12x5"}, 3, {"codec": "x264"}, quiet_m=1
    ),
    "RayflowTargetDown": Case({'up{job="ray", instance="n:8080"}': "1 0x10"}, 7, {"job": "ray", "instance": "n:8080"}, quiet_m=5),
}


def promtool(*arguments: str | Path) -> str:
    """Run Prometheus' own checker; skips where it is absent."""
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is absent: apt-get install prometheus")
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_configuration_and_rules() -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")
    promtool("check", "rules", FOLDER / "alerts.yml")


@pytest.mark.parametrize("name", [name for name, _ in alerts()])
def test_an_alert_fires_when_it_should_and_not_before(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    firing = f'ALERTS{{alertname="{name}", alertstate="firing"}}'
    [severity] = re.findall(rf"alert: {name}\n(?:.|\n)*?severity: (\w+)", (FOLDER / "alerts.yml").read_text())
    labels = {"__name__": "ALERTS", "alertname": name, "alertstate": "firing", "severity": severity, **case.labels}
    sample = "{" + ", ".join(f"{key}={json.dumps(value)}" for key, value in labels.items() if key != "__name__") + "}"
    tests = {
        "rule_files": [str(FOLDER / "alerts.yml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
                "promql_expr_test": [
                    {"expr": firing, "eval_time": f"{case.quiet_m}m", "exp_samples": []},
                    {"expr": firing, "eval_time": f"{case.fires_m}m", "exp_samples": [{"labels": f"ALERTS{sample}", "value": 1}]},
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(json.dumps(tests))  # YAML, as all JSON is
    promtool("test", "rules", path)


# -- a real Prometheus -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scraped:
    """A Prometheus that scrapes a Ray, and what ran there."""

    url: str
    facts: dict[str, Any]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series, each with its ``metric`` and ``value``. Raises HTTPError for what does not parse."""
        with urllib.request.urlopen(
            f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=20
        ) as answer:
            return json.load(answer)["data"]["result"]

    def value(self, expression: str) -> float:
        """The sum of what an expression gives, 0 where it gives nothing; what counters begin at is nothing."""
        return round(sum(float(one["value"][1]) for one in self.query(expression)), 9)

    def by(self, label: str, name: str) -> dict[str, float]:
        """A metric, summed over all but one label; zeros left out."""
        found = {one["metric"][label]: float(one["value"][1]) for one in self.query(f"sum by ({label}) ({name})")}
        return {key: value for key, value in found.items() if value > 1e-9}


def program_of(function: str, folder: Path) -> list[str]:
    """The command that runs a function of the workload in a process of its own, in the folder of the project."""
    code = f"import sys, pathlib; from tests.runtime.metrics_workload import {function} as run; run(pathlib.Path(sys.argv[1]))"
    return [sys.executable, "-c", code, str(folder)]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """One Ray and one Prometheus for all tests below: with the configuration as it is, the paths and intervals excepted."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is absent: apt-get install prometheus")
    folder = tmp_path_factory.mktemp("metrics")
    environment = os.environ | {"RAY_metrics_report_interval_ms": "1000"}
    errors = (folder / "errors").open("w")
    workload = subprocess.Popen(
        program_of("main", folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        cwd=REPOSITORY,
        text=True,
    )
    prometheus = None
    try:
        assert workload.stdin is not None and workload.stdout is not None
        discovery = workload.stdout.readline().strip()
        assert discovery, (folder / "errors").read_text()
        configuration = (FOLDER / "prometheus.yml").read_text().replace("alerts.yml", str(FOLDER / "alerts.yml"))
        configuration = configuration.replace("/tmp/ray/prom_metrics_service_discovery.json", discovery)
        configuration = re.sub(r"_interval: \d+s", "_interval: 1s", configuration)
        (folder / "prometheus.yml").write_text(configuration)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        prometheus = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        line = workload.stdout.readline()
        assert line, (folder / "errors").read_text()
        made = Scraped(f"http://{address}", json.loads(line))
        _wait(made, folder / "errors")
        yield made
    finally:
        for process in (prometheus, workload):
            if process is not None:
                process.terminate() if process is prometheus else process.communicate(timeout=60)
                process.wait(60)
        errors.close()


def _wait(made: Scraped, errors: Path) -> None:
    """Until all is there, and was scraped twice: rates take two. Of each process that tells something, what it tells last."""
    deadline_s = time.monotonic() + 60
    awaited = {
        "ray_rayflow_encoder_chunks_total": 2,
        "ray_rayflow_executions_ended_total": 4,
        'ray_rayflow_step_queue_seconds_count{step="remove_files"}': 1,
    }
    told: dict[str, float] = {}
    while told != awaited or any(made.value(f"min(count_over_time({name}[5m]))") < 3 for name in awaited):
        assert time.monotonic() < deadline_s, f"{told} after a minute\n{errors.read_text()}"
        time.sleep(0.5)
        with contextlib.suppress(ConnectionError, urllib.error.URLError):  # it is not up yet
            told = {name: made.value(name) for name in awaited}


@pytest.mark.ray
def test_what_ran_is_what_is_counted(scraped: Scraped) -> None:
    """Executions, steps, attempts, turns: each once, as they are on record."""
    film = {"prepare": 1, "encode_chunk": 2, "assemble": 1, "remove_files": 1}
    finished = scraped.by("step", "ray_rayflow_steps_finished_total")
    assert finished == {"add": 6, "double": 8, "flaky": 1} | film
    assert scraped.by("step", "ray_rayflow_steps_started_total") == finished | {"flaky": 2}
    assert scraped.by("step", "ray_rayflow_steps_failed_total") == {"flaky": 1}
    assert scraped.by("step", "ray_rayflow_steps_retried_total") == {"flaky": 1}
    assert scraped.by("cause", "ray_rayflow_step_attempts_failed_total") == {"error": 2}
    assert scraped.by("status", "ray_rayflow_executions_ended_total") == {"completed": 3, "failed": 1}
    assert scraped.value("ray_rayflow_executions_started_total") == 5
    assert scraped.by("state", "ray_rayflow_executions") == {"resting": 1}, "the one that waits was replayed, and left memory"
    assert scraped.value("ray_rayflow_replays_total") == scraped.value("ray_rayflow_executions_rested_total") == 1
    assert scraped.value("ray_rayflow_dead_letters") == 1
    assert 22 <= scraped.value("ray_rayflow_entity_turns_total") <= 24, "two may have run at the fenced owner, in vain"
    assert scraped.value("ray_rayflow_entities") == 1, "the one that refused its first message has left nothing"
    assert scraped.value("ray_rayflow_mailbox_messages") == scraped.value("ray_rayflow_letters_unconfirmed") == 0
    assert scraped.by("shard", "ray_rayflow_shard_open") == {"0": 1, "1": 1}
    assert scraped.by("store", "ray_rayflow_shard_open") == {scraped.facts["store"]: 2}


@pytest.mark.ray
def test_an_owner_that_was_fenced_is_counted_and_so_is_every_take_over(scraped: Scraped) -> None:
    """What I2 looks like from outside: one shard went to somebody else and was taken back."""
    taken = scraped.facts["taken_over"]
    other = "1" if taken == "0" else "0"
    assert scraped.by("shard", "ray_rayflow_fencings_total") == {taken: 1}
    assert scraped.by("shard", "ray_rayflow_claims_total") == {taken: 2, other: 1}
    assert scraped.by("shard", "ray_rayflow_epoch") == {taken: 3, other: 1}
    assert scraped.by("shard", "ray_rayflow_recovery_seconds_count") == {taken: 2, other: 1}
    assert scraped.value("ray_rayflow_shard_suspended") == scraped.value("ray_rayflow_shard_failures_total") == 0


@pytest.mark.ray
def test_times_and_sizes_are_those_of_the_log_and_of_ray(scraped: Scraped) -> None:
    runs = scraped.by("step", "ray_rayflow_step_run_seconds_count")
    assert runs["encode_chunk"] == 2 and runs["flaky"] == 3 and runs["add"] == 6
    queued = scraped.by("step", "ray_rayflow_step_queue_seconds_count")
    assert queued["encode_chunk"] == 2 and queued["double"] == 8 and "add" not in queued, "inline steps wait for no place"
    commits = scraped.value("ray_rayflow_commits_total")
    assert 0 < scraped.value("ray_rayflow_commit_seconds_count") <= commits <= scraped.value("ray_rayflow_records_total") * 2
    log = Path(scraped.facts["store"].removeprefix("file://"), "shards").glob("*/log/*")
    assert 0 < scraped.value("ray_rayflow_log_bytes_total") <= sum(one.stat().st_size for one in log)


@pytest.mark.ray
def test_an_encode_counts_its_chunks_frames_and_bytes(scraped: Scraped) -> None:
    assert scraped.by("codec", "ray_rayflow_encoder_chunks_total") == {"x264": 2}
    assert scraped.by("codec", "ray_rayflow_encoder_frames_total") == {"x264": scraped.facts["frames"]}
    assert 0 < scraped.value("ray_rayflow_encoder_written_bytes_total") < scraped.facts["size_bytes"]
    assert scraped.value("ray_rayflow_encoder_read_bytes_total") > 0 and scraped.value("ray_rayflow_encoder_cpu_seconds_total") > 0
    assert scraped.value("max(max_over_time(ray_rayflow_encoder_fps[5m]))") > 0, "while chunks were under way"


@pytest.mark.ray
def test_all_that_is_promised_is_scraped_with_its_labels_and_nothing_else_of_ours(scraped: Scraped) -> None:
    found: dict[str, set[str]] = {}
    for one in scraped.query('last_over_time({__name__=~"ray_rayflow_.*"}[5m])'):
        name = re.sub(rf"(?<=seconds|records){_SUFFIX}$", "", one["metric"]["__name__"])
        found.setdefault(name, set()).update(one["metric"])
    added_by_ray = {"__name__", "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "instance", "job", "le"}
    assert {name: labels - added_by_ray for name, labels in found.items()} == {
        name: set(labels) for name, labels in exported().items()
    }


@pytest.mark.ray
def test_every_query_of_the_dashboard_has_an_answer(scraped: Scraped) -> None:
    """At some moment of the last minutes: what happens often is told often, what goes on under way is gone later."""
    unanswered = [query for _, query in panels() if not scraped.query(f"max_over_time(({query})[5m:1s])")]
    assert unanswered == []


@pytest.mark.ray
def test_every_alert_is_a_query_and_those_that_should_fire_here_would(scraped: Scraped) -> None:
    answered = {name for name, expression in alerts() if scraped.query(expression)}
    assert answered == {"RayflowDeadLetters", "RayflowStepsFail"}
    with urllib.request.urlopen(f"{scraped.url}/api/v1/rules", timeout=20) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert [rule["name"] for rule in rules] == [name for name, _ in alerts()]
    assert {rule["health"] for rule in rules} == {"ok"}


@pytest.mark.long
@pytest.mark.ray
def test_where_ray_collects_no_metrics_all_works_and_nothing_is_said(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_enable_metrics_collection": "0"}
    command = program_of("count_quietly", tmp_path)
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, env=environment, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert all(port <= 0 for port in told["ports"]), "there is nothing to scrape"
    assert told["said"] == []
