"""The dashboard and the alerts that flashkit brings: valid, tested, and of metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from flashkit.telemetry.metrics import METRICS, sample_names

FILES = Path(__file__).parents[2] / "flashkit" / "telemetry" / "observability"
ALERT_TESTS = Path(__file__).with_name("alerts_test.yml")
_SELECTOR = re.compile(r"\{[^}]*\}")
_LABELS = re.compile(r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)")


@pytest.fixture(scope="module")
def promtool():
    found = shutil.which("promtool")
    if found is None:
        missing = "there is no promtool: install Debian's package prometheus, as scripts/setup does"
        pytest.fail(missing) if os.environ.get("FLASHKIT_REQUIRE_EVERYTHING") else pytest.skip(missing)
    return lambda *arguments, cwd: subprocess.run(
        [found, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def rules():
    return [rule for group in yaml.safe_load((FILES / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def dashboard():
    return json.loads((FILES / "dashboard.json").read_text())


def queries_of_dashboard():
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    assert len(found) > 30
    return found


def metrics_in(query):
    """Return the names of the metrics in a query: what looks like a name of ours, outside of labels."""
    return set(re.findall(r"\b(?:flashkit|gen_ai)_\w+", _LABELS.sub("", _SELECTOR.sub("", query))))


def labels_in(query):
    """Return each metric with the labels that the query names of it."""
    for name, selector in re.findall(r"\b((?:flashkit|gen_ai)_\w+)\{([^}]*)\}", query):
        for label in re.findall(r'(\w+)\s*(?:=|!=|=~|!~)"', selector):
            yield name, label


def test_the_rules_and_the_example_configuration_are_valid(promtool):
    for arguments in (("check", "rules", "alerts.yml"), ("check", "config", "prometheus.yml")):
        done = promtool(*arguments, cwd=FILES)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_fires_where_it_should_and_not_where_it_should_not(promtool):
    done = promtool("test", "rules", ALERT_TESTS.name, cwd=ALERT_TESTS.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboard_is_one_that_prometheus_takes(promtool, tmp_path):
    variables = {"$__rate_interval": "1m", "$__range": "1h", "$endpoint": ".*"}
    queries = queries_of_dashboard()
    for variable, value in variables.items():
        queries = [query.replace(variable, value) for query in queries]
    recorded = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    (tmp_path / "queries.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", "queries.yml", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_of_both_kinds():
    cases = [case for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_each_alert_says_what_is_wrong_and_what_to_do():
    for rule in rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert "{{ $" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_every_metric_that_dashboard_and_alerts_name_is_exported():
    queries = [*queries_of_dashboard(), *(rule["expr"] for rule in rules())]
    for query in queries:
        assert metrics_in(query), query
        assert metrics_in(query) <= sample_names(), query


def test_every_label_that_they_name_is_one_of_the_metric():
    labels = {
        name: {"endpoint", "le", *(label.prometheus_name for label in metric.labels)}
        for metric in METRICS
        for name in metric.sample_names
    }
    for query in [*queries_of_dashboard(), *(rule["expr"] for rule in rules())]:
        for name, label in labels_in(query):
            assert label in labels[name], query


def test_every_value_of_a_closed_label_that_they_name_is_one_of_its_values():
    values = {
        (name, label.prometheus_name): label.values
        for metric in METRICS
        for label in metric.labels
        for name in metric.sample_names
        if label.values is not None
    }
    for query in [*queries_of_dashboard(), *(rule["expr"] for rule in rules())]:
        for name, selector in re.findall(r"\b((?:flashkit|gen_ai)_\w+)\{([^}]*)\}", query):
            for label, wanted in re.findall(r'(\w+)=~?"([^"$]+)"', selector):
                assert set(wanted.split("|")) <= set(values[name, label]), query


def test_the_dashboard_shows_every_metric_or_the_alerts_watch_it():
    shown = set().union(
        *(metrics_in(query) for query in [*queries_of_dashboard(), *(rule["expr"] for rule in rules())])
    )
    unseen = [metric.name for metric in METRICS if not shown.intersection(metric.sample_names)]
    assert unseen == ["flashkit.jobs.running", "flashkit.job.tokens"]


def test_the_dashboard_is_laid_out_without_overlaps_and_asks_the_chosen_source():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${source}"
    assert [variable["name"] for variable in dashboard()["templating"]["list"]] == ["source", "endpoint"]


def test_the_page_of_the_docs_lists_every_metric_with_its_labels_and_every_alert():
    page = (FILES.parents[2] / "docs" / "how-to" / "metrics.md").read_text()
    for metric in METRICS:
        labels = ", ".join(f"`{label.prometheus_name}`" for label in metric.labels)
        assert f"| `{metric.prometheus_name}` | {metric.kind} | {labels} | {metric.words} |" in page
    for rule in rules():
        assert f"| `{rule['alert']}` |" in page
