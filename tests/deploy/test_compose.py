"""compose.yaml: what it names is there, and nothing is more open than it must be."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from scripts.local_service import ROOT
from serving.settings import Settings
from tests.deploy.names import DEPLOY, JOB

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
EXAMPLE = (DEPLOY / ".env.example").read_text()
OWN_IMAGE = "protein_embedding_service:${TAG:-latest}"
REACHABLE = {"service", "prometheus", "grafana"}

for_each = pytest.mark.parametrize("name", SERVICES)


def seconds(text: str) -> int:
    number, unit = int(text[:-1]), text[-1]
    return number * {"s": 1, "m": 60}[unit]


@for_each
def test_an_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert image == OWN_IMAGE or re.fullmatch(r"[\w/.-]+:v?\d+\.\d+\.\d+(-\w+)?", image), image


@for_each
def test_nothing_may_do_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name == "data-owner":  # hands a new volume over, and ends
        assert service["cap_add"] == ["CHOWN"]
        assert service["network_mode"] == "none"
        assert service["restart"] == "no"
    else:
        assert re.fullmatch(r"[1-9]\d*:\d+", service["user"])
        assert "cap_add" not in service


@for_each
def test_mounted_files_are_there(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target = volume.split(":")[:2]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert volume == f"{source}:{target}:ro"
        else:
            assert source in COMPOSE["volumes"]
    assert set(SERVICES[name].get("secrets", [])) <= COMPOSE["secrets"].keys()


def test_only_what_people_use_is_reachable_and_from_this_machine_alone() -> None:
    internal = {name for name, network in COMPOSE["networks"].items() if network and network.get("internal")}
    for name, service in SERVICES.items():
        networks = set(service.get("networks", []))
        assert networks <= COMPOSE["networks"].keys()
        assert bool(networks - internal) == bool(service.get("ports")) == (name in REACHABLE)
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")
    assert [name for name, service in SERVICES.items() if "store" in service.get("networks", [])] == [
        *("service", "redis")
    ]


def test_the_service_is_given_settings_that_there_are() -> None:
    given = SERVICES["service"]["environment"]
    known = {name.upper() for name in Settings.model_fields}
    assert set(given) <= known
    assert "METRICS_OPEN" not in given
    for name in ("api_keys", "admin_api_keys"):
        assert given[f"{name.upper()}_FILE"] == f"/run/secrets/{name}"
    assert SERVICES["service"]["volumes"] == [f"data:{given['DATA_DIR']}"]


def test_the_service_has_the_time_to_end() -> None:
    given = SERVICES["service"]["environment"]
    # The runners wait for five seconds more than the gateways
    assert seconds(SERVICES["service"]["stop_grace_period"]) > int(given["SHUTDOWN_TIMEOUT_SECS"]) + 5


def test_no_password_stands_in_the_files() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    secret = {"REDIS_PASSWORD", "GRAFANA_PASSWORD"}
    used = re.findall(r"(?<!\$)\$\{(\w+)(:[-?])?", text)
    assert {name for name, form in used if form == ":?"} == secret, "a default password would be everybody's"
    assert {name for name, _ in used} == set(re.findall(r"^(\w+)=", EXAMPLE, re.MULTILINE))
    for name in secret:
        assert re.search(rf"^{name}=$", EXAMPLE, re.MULTILINE)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/.env", "/deploy/secrets/"} <= set(ignored)
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())


def test_prometheus_asks_the_service_with_the_key_that_it_is_given() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    scrape = {entry["job_name"]: entry for entry in config["scrape_configs"]}[JOB]
    assert scrape["static_configs"] == [{"targets": ["service:3000"]}]
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
    assert scrape["authorization"] == {"credentials_file": "/run/secrets/metrics_key"}
    assert "metrics_key" in SERVICES["prometheus"]["secrets"]


def test_the_collector_takes_traces_where_the_service_sends_them() -> None:
    collector = yaml.safe_load((DEPLOY / "otel/collector.yml").read_text())
    protocols = collector["receivers"]["otlp"]["protocols"]
    assert protocols["grpc"]["endpoint"].endswith(":4317")
    assert protocols["http"]["endpoint"].endswith(":4318")
    assert SERVICES["service"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector:4317"
    assert set(SERVICES["service"]["networks"]) & set(SERVICES["otel-collector"]["networks"])
    pipeline = collector["service"]["pipelines"]["traces"]
    assert pipeline["processors"] == ["memory_limiter", "batch"]
    for part in ("receivers", "processors", "exporters"):
        assert set(pipeline[part]) == set(collector[part])
