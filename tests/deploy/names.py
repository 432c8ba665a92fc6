"""The metrics that the code has, and those that a PromQL expression asks for."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

import models.measures
import serving.jobs.measures
import serving.measures
from scripts.local_service import ROOT

DEPLOY = ROOT / "deploy"
RULES = ("recording.yml", "alerts.yml")
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
JOB = "protein_embedding_service"  # in Prometheus; rules and dashboards go by it
OF_PROMETHEUS = frozenset({"up", "ALERTS"})  # which it makes itself
VARIABLES = {"$__rate_interval": "5m", "$job": JOB, "$model": ".*"}  # of the dashboards, as the tests set them
_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}

# Words of PromQL in the order in which they are told apart; a name that is followed by ( is a function
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
    | (?P<labels>\{(?:"(?:\\.|[^"\\])*"|[^}"])*\})
    | (?P<range>\[[^]]*\])
    | (?P<grouping>\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\))
    | (?P<function>[a-zA-Z_]\w*\s*(?=\())
    | (?P<number>\d[\w.]*)
    | (?P<name>[a-zA-Z_:][\w:]*)""",
    re.VERBOSE,
)
# Or a string, which is left as it is
_THRESHOLD = re.compile(r"(\"[^\"]*\")|\s*(?:[=!<>]=|[<>])\s*\d[\d.]*(?:\s*\*\s*\d[\d.]*)*")
_OPERATORS = frozenset(
    {"and", "or", "unless", "offset", "bool", "sum", "min", "max", "count", "avg", "inf", "nan"}
)


@dataclass(frozen=True)
class Query:
    """An expression, and where it stands."""

    where: str
    expression: str


def exported() -> frozenset[str]:
    """Every name that /metrics can have, as Prometheus stores it."""
    registry = CollectorRegistry()
    serving.measures.Measures(registry)
    serving.jobs.measures.Measures(registry)
    models.measures.RunnerMeasures(registry)
    return frozenset(family.name + suffix for family in registry.collect() for suffix in _SUFFIXES[family.type])


def metrics_of(expression: str) -> frozenset[str]:
    """Names of the metrics that an expression asks for, recorded ones too."""
    found = (match["name"] for match in _TOKEN.finditer(expression))
    return frozenset(name for name in found if name and name.lower() not in _OPERATORS)


def selectors_of(expression: str) -> frozenset[str]:
    """Those metrics with the labels by which they are asked for, as `up{job="x"}`."""
    tokens = [*_TOKEN.finditer(expression), None]
    found = set()
    for token, after in itertools.pairwise(tokens):
        assert token
        if (name := token["name"]) and name.lower() not in _OPERATORS:
            found.add(name + ((after and after["labels"]) or ""))
    return frozenset(found)


def without_thresholds(alert: str) -> str:
    """The expression of an alert such that it has a value whenever the alert could tell whether to fire.

    Comparisons with numbers are left out, and what an alert does not fire beside (`unless`) must be there too.
    """
    return re.sub(r"\bunless\b", "and", _THRESHOLD.sub(r"\1", alert))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Rules by name. kind: `alert` or `record`."""
    files = [yaml.safe_load((DEPLOY / "prometheus" / name).read_text()) for name in RULES]
    every = [rule for file in files for group in file["groups"] for rule in group["rules"] if kind in rule]
    found = {rule[kind]: rule for rule in every}
    assert len(found) == len(every), f"two rules of kind {kind} have one name"
    return found


def panels(dashboard: Path) -> list[dict[str, Any]]:
    """Of a dashboard, without the headings of rows."""
    return [panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row"]


def dashboard_queries() -> list[Query]:
    """What the panels ask for, variables filled in, and the queries behind variables and annotations."""
    found = []
    for path in DASHBOARDS:
        dashboard = json.loads(path.read_text())
        found += [
            Query(f"{path.name}: {panel['title']}", filled(target["expr"]))
            for panel in panels(path)
            for target in panel["targets"]
        ]
        found += [
            Query(f"{path.name}: annotation {annotation['name']}", filled(annotation["expr"]))
            for annotation in dashboard["annotations"]["list"]
        ]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                series = re.fullmatch(r"label_values\((.+), \w+\)", variable["definition"])
                assert series, variable["definition"]
                found.append(Query(f"{path.name}: variable {variable['name']}", filled(series[1])))
    return found


def rule_queries() -> list[Query]:
    return [Query(name, rule["expr"]) for kind in ("record", "alert") for name, rule in rules(kind).items()]


def filled(expression: str) -> str:
    """With the dashboards' variables in it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression
