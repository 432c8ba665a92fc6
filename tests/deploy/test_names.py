"""Rules and dashboards ask for metrics that there are."""

from __future__ import annotations

import re

import pytest
from prometheus_client import CollectorRegistry

import serving.measures
from serving.app import create_app
from tests.deploy.names import (
    OF_PROMETHEUS,
    Query,
    dashboard_queries,
    exported,
    metrics_of,
    rule_queries,
    rules,
    selectors_of,
    without_thresholds,
)

QUERIES = [*rule_queries(), *dashboard_queries()]


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("up == 0", {"up"}),
        ('sum by (le, model) (rate(a_bucket{job="x", le=~"in}f"}[5m]))', {"a_bucket"}),
        ("histogram_quantile(0.95, sum(rate(a_bucket[5m])) by (le))", {"a_bucket"}),
        ("level:a:rate5m > 14.4 * 0.05 and on (job) count_over_time(b[1h:5m]) >= 1e3", {"level:a:rate5m", "b"}),
        ("a / ignoring (x) group_left (y) b offset 5m or vector(0)", {"a", "b"}),
        ('absent(up{job="p"}) or (up unless on (job) models_loaded_total)', {"up", "models_loaded_total"}),
        ('label_replace(a, "b", "$1", "c", "(d.*)") > bool 1', {"a"}),
    ],
)
def test_names_are_told_from_the_rest_of_promql(expression: str, names: set[str]) -> None:
    assert metrics_of(expression) == names


def test_selectors_keep_their_labels() -> None:
    expression = 'sum by (le) (rate(a{b="}", c=~"5..|d"}[5m])) / max(e) > 0 and f {job="x"} or vector(1) * g[5m]'
    assert selectors_of(expression) == {'a{b="}", c=~"5..|d"}', "e", 'f{job="x"}', "g"}


@pytest.mark.parametrize(
    ("alert", "expected"),
    [
        ("up == 0", "up"),
        ("a > 14.4 * 0.05\nand b:rate5m >= 20", "a\nand b:rate5m"),
        ('a{b="> 5", c!="1"} / d > 0.95', 'a{b="> 5", c!="1"} / d'),
        ("absent(up) or (up == 1 unless on (job) a)", "absent(up) or (up and on (job) a)"),
        ("rate(a[5m]) > 0.05 unless on (job) redis_up == 0", "rate(a[5m]) and on (job) redis_up"),
    ],
)
def test_an_alert_has_a_value_without_its_threshold(alert: str, expected: str) -> None:
    assert without_thresholds(alert) == expected


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query.where)
def test_a_query_asks_for_metrics_that_there_are(query: Query) -> None:
    known = exported() | OF_PROMETHEUS | rules("record").keys()
    asked = metrics_of(query.expression)
    assert asked, "nothing is asked for"
    assert asked <= known


def test_every_metric_is_shown_or_watched() -> None:
    """A sum or a count of a histogram may go without."""
    asked = frozenset().union(*(metrics_of(query.expression) for query in QUERIES))
    assert {name for name in exported() - asked if not name.endswith(("_sum", "_count"))} == set()


def test_the_bucket_of_the_objective_is_one_of_the_histogram() -> None:
    registry = CollectorRegistry()
    serving.measures.Measures(registry).request_s.labels("/predict", "POST").observe(1)
    samples = [sample for family in registry.collect() for sample in family.samples]
    buckets = {sample.labels["le"] for sample in samples if sample.name == "http_request_duration_seconds_bucket"}
    asked = {le for query in QUERIES for le in re.findall(r'\ble="([^"]+)"', query.expression)}
    assert asked == {"2.5"}
    assert asked <= buckets


def test_routes_in_rules_are_routes() -> None:
    routes = {*create_app().openapi()["paths"], "/livez", "/readyz", "/healthz"}
    matchers = {found for query in QUERIES for found in re.findall(r'\broute[=!]~"([^"]+)"', query.expression)}
    assert matchers
    for matcher in matchers:
        for part in alternatives(matcher):
            assert any(re.fullmatch(part, route) for route in routes), f"no route is {part}"


def alternatives(matcher: str) -> list[str]:
    """Those of `a|b` and of `/(a|b)?`, which are the forms that the rules have."""
    group = re.fullmatch(r"/\((.+)\)\?", matcher)
    return ["/", *(f"/{part}" for part in group[1].split("|"))] if group else matcher.split("|")
