"""The RayJobs: of the right form, safe, and a command that scripts.embed_bulk takes. No cluster is asked."""

from __future__ import annotations

import re
import shlex
from typing import Any

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from models.catalogue import find
from scripts.embed_bulk import parse
from scripts.local_service import ROOT
from tests.deploy import lint
from tests.deploy.manifests import K8S, Manifest
from tests.deploy.operators import SCHEMAS
from tests.deploy.test_k8s import VERSIONS

JOBS = sorted((K8S / "bulk").glob("bulk-*.yaml"))
for_each = pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)


def read(path: Any) -> Manifest:
    manifest: Manifest = yaml.safe_load(path.read_text())
    return manifest


def groups(job: Manifest) -> list[Manifest]:
    """The head's, then the workers'."""
    cluster = job["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_there_is_one_for_processors_and_one_for_gpus() -> None:
    assert [path.stem for path in JOBS] == ["bulk-cpu", "bulk-gpu"]


@for_each
def test_kuberay_takes_it(path: Any) -> None:
    jsonschema_rs.validate(SCHEMAS["RayJob"], read(path))


@for_each
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_its_pods(path: Any, version: str) -> None:
    for group in groups(read(path)):
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        pod["metadata"] = {**pod["metadata"], "name": "pod"}
        kubernetes_validate.validate(pod, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_the_place(version: str) -> None:
    for manifest in yaml.safe_load_all((K8S / "bulk" / "place.yaml").read_text()):
        kubernetes_validate.validate(manifest, version, strict=True)


@for_each
def test_nothing_is_careless(path: Any) -> None:
    head, *workers = groups(read(path))
    asked = "latest_tag resources run_as_non_root unsafe_container host mounts environment"
    rules = [getattr(lint, name) for name in asked.split()]
    for group in (head, *workers):
        found = [said for rule in rules for said in rule({"spec": {"template": group["template"]}})]
        assert found == []
    for group in workers:
        assert list(lint.service_account({"spec": {"template": group["template"]}})) == []


@for_each
def test_the_command_is_one_of_ours_and_its_actors_fit_a_worker(path: Any) -> None:
    job = read(path)
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "scripts.embed_bulk"]
    options = parse(words[3:])
    assert options.resume
    assert options.address == "auto"
    find(options.model)
    _, worker = groups(job)
    (container,) = worker["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert int(limits["cpu"]) % options.cores == 0
    assert options.gpu == ("nvidia.com/gpu" in limits)
    _, most = options.actors
    assert most == worker["maxReplicas"] * (1 if options.gpu else int(limits["cpu"]) // options.cores)


@for_each
def test_ray_is_the_pinned_one(path: Any) -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "requirements-bulk.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert read(path)["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]
