"""The dashboards of Grafana: everything has its place, its unit and an explanation."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.names import DASHBOARDS, DEPLOY, panels

GRAFANA = DEPLOY / "grafana"
WIDTH = 24

for_each = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@for_each
def test_panels_do_not_overlap(path: Path) -> None:
    every = json.loads(path.read_text())["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in every:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= WIDTH, panel["title"]
    for one, other in itertools.combinations(every, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), f"{one['title']}, {other['title']}"


@for_each
def test_every_panel_is_explained_and_has_a_unit(path: Path) -> None:
    titles = [panel["title"] for panel in panels(path)]
    assert len(set(titles)) > 10
    for panel in panels(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]


@for_each
def test_every_query_goes_to_the_source_that_is_chosen(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    source = {"type": "prometheus", "uid": "${datasource}"}
    asking: list[dict[str, Any]] = [*panels(path), *dashboard["annotations"]["list"]]
    asking += [target for panel in panels(path) for target in panel["targets"]]
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    asking += [variable for variable in variables.values() if variable["type"] == "query"]
    assert all(one["datasource"] == source for one in asking)
    assert list(variables) == ["datasource", "job", "model"]
    assert variables["datasource"]["query"] == "prometheus"


@for_each
def test_a_query_is_of_one_deployment(path: Path) -> None:
    for panel in panels(path):
        for target in panel["targets"]:
            assert target["expr"].count("{") == target["expr"].count('job="$job"'), target["expr"]


def test_dashboards_are_told_apart_and_link_to_each_other() -> None:
    found = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len(found) == 2
    uids = [dashboard["uid"] for dashboard in found]
    assert len(set(uids)) == len(uids)
    for dashboard in found:
        assert dashboard["schemaVersion"] >= 39
        assert {link["url"] for link in dashboard["links"]} == {
            f"/d/{uid}" for uid in uids if uid != dashboard["uid"]
        }


@for_each
def test_files_are_written_in_one_form(path: Path) -> None:
    text = path.read_text()
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_grafana_is_told_where_they_are_and_whom_to_ask() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    mounts = dict(volume.split(":")[:2] for volume in compose["services"]["grafana"]["volumes"])
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/dashboards.yml").read_text())["providers"]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    interval = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
