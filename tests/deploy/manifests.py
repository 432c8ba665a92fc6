"""The Kubernetes manifests as kustomize renders them, and how to find one's way in them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from tests.deploy.names import DEPLOY

K8S = DEPLOY / "k8s"
OVERLAYS = tuple(sorted(path.parent.name for path in (K8S / "overlays").glob("*/kustomization.yaml")))
OLDEST_KUSTOMIZE = 4  # the older ones know neither components nor `labels`
NAMESPACE = "protein-embedding-service"
APP = {"app.kubernetes.io/name": "protein-embedding-service"}

Manifest = dict[str, Any]


@cache
def why_not() -> str | None:
    """Why nothing can be rendered here; None if it can."""
    if shutil.which("kubectl") is None:
        return "no kubectl on this machine"
    run = subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True, check=False)
    found = re.search(r"Kustomize Version: v(\d+)", run.stdout)
    if found is None or int(found[1]) < OLDEST_KUSTOMIZE:
        return f"the kubectl on this machine has no kustomize {OLDEST_KUSTOMIZE} or later"
    return None


@cache
def rendered(overlay: str) -> str:
    """What `kubectl apply --kustomize` would send."""
    command = ["kubectl", "kustomize", str(K8S / "overlays" / overlay)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "warning" not in run.stderr.lower(), run.stderr
    return run.stdout


@dataclass(frozen=True)
class Manifests:
    """Those of one overlay."""

    every: list[Manifest]

    @classmethod
    def of(cls, overlay: str) -> Manifests:
        """Read anew each time, so that a test may change them."""
        return cls(list(yaml.safe_load_all(rendered(overlay))))

    def of_kind(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.every if manifest["kind"] in kinds]

    def find(self, kind: str, name: str) -> Manifest | None:
        found = [manifest for manifest in self.of_kind(kind) if manifest["metadata"]["name"] == name]
        return found[0] if found else None

    @property
    def workloads(self) -> list[Manifest]:
        """What makes pods."""
        return self.of_kind("Deployment", "StatefulSet")

    @property
    def services_pods(self) -> list[Manifest]:
        """The deployments of the service itself."""
        return [one for one in self.of_kind("Deployment") if APP.items() <= labels_of_pods(one).items()]

    def with_labels(self, selector: dict[str, str]) -> list[Manifest]:
        """The workloads whose pods have these labels."""
        return [one for one in self.workloads if selector.items() <= labels_of_pods(one).items()]

    def environment(self, workload: Manifest) -> dict[str, str]:
        """The variables of a workload's container, as its process sees them; a secret's value is its place."""
        container = container_of(workload)
        found: dict[str, str] = {}
        for source in container.get("envFrom", []):
            config = self.find("ConfigMap", source["configMapRef"]["name"])
            found |= config["data"] if config else {}
        for variable in container.get("env", []):
            if "value" in variable:
                value = re.sub(r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), variable["value"])
                found[variable["name"]] = value
            else:
                secret = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = f"{secret['name']}.{secret['key']}"
        return found


def labels_of_pods(workload: Manifest) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def pod_of(workload: Manifest) -> Manifest:
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def container_of(workload: Manifest) -> Manifest:
    """The one that a pod of ours has."""
    (container,) = pod_of(workload)["containers"]
    found: Manifest = container
    return found


def probes_of(container: Manifest) -> Iterator[tuple[str, Manifest]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if name in container:
            yield name, container[name]


def name_of(manifest: Manifest) -> str:
    return f"{manifest['kind']} {manifest['metadata']['name']}"
