"""The file for `bentoml deploy -f`, as BentoML's own code reads it. BentoCloud is not asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from bentoml._internal.cloud import deployment as cloud
from bentoml._internal.cloud.schemas.modelschemas import DeploymentStrategy
from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
from bentoml._internal.tag import Tag
from bentoml._internal.utils.cattr import bentoml_cattr

from models.catalogue import CATALOGUE
from serving.settings import Settings
from tests.deploy.against_code import service_name
from tests.deploy.names import DEPLOY

FILE = DEPLOY / "bentocloud" / "deployment.yaml"
CONFIG: dict[str, Any] = yaml.safe_load(FILE.read_text())
BENTO = SimpleNamespace(tag=Tag(service_name(), "abc"), entry_service=service_name(), envs=[])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> CreateDeploymentSchema:
    """What BentoML would send, for a Bento that is built."""
    asked: list[str] = []

    def ensure(bento: str, **rest: object) -> SimpleNamespace:
        asked.append(bento)
        return BENTO

    monkeypatch.setattr(cloud, "ensure_bento", ensure)
    parameters = cloud.DeploymentConfigParameters(config_file=str(FILE), cli=False)
    parameters.verify(_client=None)  # type: ignore[arg-type]
    assert asked == [CONFIG["bento"]] == [f"{service_name()}:latest"]
    config = parameters.get_config_dict(_client=None)  # type: ignore[arg-type]
    found: CreateDeploymentSchema = bentoml_cattr.structure(config, CreateDeploymentSchema)
    return found


def test_bentoml_understands_every_field(sent: CreateDeploymentSchema) -> None:
    """Those that it does not know it drops without a word."""
    kept = bentoml_cattr.unstructure(sent)
    wanted = {**CONFIG, "bento": str(BENTO.tag)}
    for name, value in wanted.items():
        if name == "access_authorization":
            assert sent.access_authorization is value
        else:
            assert kept[name] == value, name


def test_the_services_are_the_gateway_and_a_runner_for_each_model(sent: CreateDeploymentSchema) -> None:
    runners = {model.runner for model in CATALOGUE.values()}
    assert service_name() in sent.services
    assert sent.services.keys() - {service_name()} <= runners
    assert "MODELS" not in {env["name"] for env in CONFIG["envs"]}, "the Bento knows them, and in which version"
    for config in sent.services.values():
        assert config.deployment_strategy in {strategy.value for strategy in DeploymentStrategy}
        assert config.scaling is not None
        least, most = config.scaling.min_replicas, config.scaling.max_replicas
        assert least is not None
        assert most is not None
        assert 0 <= least <= most
    gateway = sent.services[service_name()].scaling
    assert gateway is not None
    assert gateway.max_replicas == 1, "downloads are files of one pod"


def test_variables_are_settings(sent: CreateDeploymentSchema) -> None:
    given = {env["name"].lower(): env["value"] for env in CONFIG["envs"]}
    assert given.keys() <= Settings.model_fields.keys()
    Settings(**given)
    assert not {"api_keys", "admin_api_keys", "redis_url"} & given.keys(), "these are secrets"
    assert not sent.access_authorization
