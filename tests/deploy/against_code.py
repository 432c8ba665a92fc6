"""Whether the Kubernetes manifests say what the code, BentoML and compose.yaml say. One finding a line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import yaml
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.container.generate import BENTO_UID_GID
from pydantic import ValidationError

from scripts.local_service import ROOT
from serving.app import create_app
from serving.auth import METRICS, PROBES
from serving.health import CANARY_TIMEOUT_S
from serving.runners import STATUS_TIMEOUT_S
from serving.settings import Settings
from tests.deploy.manifests import (
    K8S,
    Manifest,
    Manifests,
    container_of,
    name_of,
    pod_of,
    probes_of,
)
from tests.deploy.names import DEPLOY, JOB, exported, metrics_of

# Variables of BentoML, of what looks for its folders there, of the manifests themselves, and of fsspec with s3fs
OTHERS = {"REDIS_PASSWORD", "FSSPEC_S3_ENDPOINT_URL", "FSSPEC_S3_KEY", "FSSPEC_S3_SECRET"}
RUNNERS_END_LATER_S = 5  # than the gateways: shutdown_s in service.py
REDIS_PORT = 6379
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
_ADAPTER = {
    rule["name"]["as"]: rule
    for rule in yaml.safe_load((K8S / "prometheus-adapter/rules.yaml").read_text())["rules"]
}


def findings(manifests: Manifests) -> list[str]:
    """Everything that does not fit."""
    found: list[str] = []
    for workload in manifests.services_pods:
        rules = (variables, values, image, user, port, probes, times, files, gpus)
        found += [f"{name_of(workload)}: {said}" for rule in rules for said in rule(manifests, workload)]
    for each in (redis, ingresses, policies, scalers, monitors, secrets, volume):
        found += each(manifests)
    return found


@cache
def service_name() -> str:
    """Of the Bento, and so of the image."""
    found = re.search(
        r'ProteinEmbeddingService = bentoml\.service\(\s*name="(\w+)"', (ROOT / "service.py").read_text()
    )
    assert found
    return found[1]


@cache
def routes() -> frozenset[str]:
    return frozenset(create_app().openapi()["paths"]) | PROBES


def models_of(environment: dict[str, str]) -> list[str]:
    return [entry.partition(":")[0] for entry in environment["MODELS"].split(",")]


def variables(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    known = {name.upper() for name in Settings.model_fields}
    given = manifests.environment(workload)
    yield from (f"nobody reads {name}" for name in sorted(given.keys() - known - OTHERS))
    yield from (f"{name} refers to what is not set before it" for name, value in given.items() if "$(" in value)
    for name in ("MODELS", "REDIS_URL", "DATA_DIR", "API_KEYS_FILE", "ADMIN_API_KEYS_FILE"):
        if name not in given:
            yield f"{name} is not set"


def values(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    """As the service would read them at its start."""
    given = {name.lower(): value for name, value in manifests.environment(workload).items()}
    try:
        settings = Settings(**{name: given[name] for name in Settings.model_fields if name in given})  # type: ignore[arg-type]
    except ValidationError as error:
        yield from (f"{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
        return
    if not settings.health_open and not all(probe["httpGet"].get("httpHeaders") for _, probe in _asked(workload)):
        yield "the probes send no key"


def image(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    full = container_of(workload)["image"]
    name, _, tag = full.rpartition(":")
    if name.rpartition("/")[2] != service_name():
        yield f"image {full} is none that `bentoml containerize` makes"
    has_gpus = "nvidia.com/gpu" in container_of(workload)["resources"]["limits"]
    if tag.endswith("-cuda") != has_gpus:
        yield f"image {full} on a pod {'with' if has_gpus else 'without'} GPUs"


def user(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    security = pod_of(workload)["securityContext"]
    numbers = {security[name] for name in ("runAsUser", "runAsGroup", "fsGroup")}
    if numbers != {BENTO_UID_GID}:
        yield f"users {sorted(numbers)}; the image has {BENTO_UID_GID}"


def port(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    given = [(each["name"], each["containerPort"]) for each in container_of(workload)["ports"]]
    if given != [("http", BentoMLContainer.http.port.get())]:
        yield f"ports {given}; BentoML opens {BentoMLContainer.http.port.get()}"


def _asked(workload: Manifest) -> list[tuple[str, Manifest]]:
    return [(name, probe) for name, probe in probes_of(container_of(workload)) if "httpGet" in probe]


def probes(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    wanted = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    for name, probe in _asked(workload):
        path = probe["httpGet"]["path"]
        if path not in PROBES or path != wanted.pop(name):
            yield f"{name} asks {path}"
        if name == "readinessProbe" and probe["timeoutSeconds"] < CANARY_TIMEOUT_S + STATUS_TIMEOUT_S + 1:
            yield f"{name} gives up after {probe['timeoutSeconds']} s"
    yield from (f"no {name} asks {path}" for name, path in wanted.items())


def times(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    sleep = container_of(workload)["lifecycle"]["preStop"]["exec"]["command"]
    to_end = float(manifests.environment(workload)["SHUTDOWN_TIMEOUT_SECS"]) + RUNNERS_END_LATER_S
    grace = pod_of(workload)["terminationGracePeriodSeconds"]
    if sleep[0] != "sleep" or grace <= int(sleep[1]) + to_end:
        yield f"killed after {grace} s; {' '.join(sleep)} and the drain take {int(sleep[1]) + to_end:g}"


def files(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    """Each path of a variable is on a volume of the right kind."""
    volumes = {volume["name"]: volume for volume in pod_of(workload)["volumes"]}
    kinds = {
        PurePosixPath(mount["mountPath"]): set(volumes[mount["name"]]) - {"name"}
        for mount in container_of(workload)["volumeMounts"]
        if mount["name"] in volumes
    }
    wanted = {
        "DATA_DIR": "persistentVolumeClaim",
        "OUTPUT_URL": "persistentVolumeClaim",
        "API_KEYS_FILE": "secret",
        "ADMIN_API_KEYS_FILE": "secret",
    }
    given = manifests.environment(workload)
    for name, kind in wanted.items():
        if name not in given or "://" in given[name]:
            continue
        path = PurePosixPath(given[name])
        if not any({kind} == found and path.is_relative_to(folder) for folder, found in kinds.items()):
            yield f"{name}: {path} is on no {kind}"
        if kind == "secret" and path.name not in _template().get(_secret_at(workload, path), set()):
            yield f"{name}: {path.name} is in no secret"


def _secret_at(workload: Manifest, path: PurePosixPath) -> str:
    mounts = {mount["name"]: mount["mountPath"] for mount in container_of(workload)["volumeMounts"]}
    for volume in pod_of(workload)["volumes"]:
        if "secret" in volume and str(path.parent) == mounts[volume["name"]]:
            return str(volume["secret"]["secretName"])
    return ""


def gpus(manifests: Manifests, workload: Manifest) -> Iterator[str]:
    given = manifests.environment(workload)
    there = int(container_of(workload)["resources"]["limits"].get("nvidia.com/gpu", 0))
    wanted = int(given.get("RUNNER_GPUS", 0)) * len(models_of(given))
    if wanted != there:
        yield f"RUNNER_GPUS reserves {wanted} GPUs, the pod has {there}"


def redis(manifests: Manifests) -> Iterator[str]:
    """As compose.yaml has it, and where the service looks for it."""
    server = manifests.find("StatefulSet", "redis")
    assert server is not None
    container, theirs = container_of(server), COMPOSE["redis"]
    if container["image"] != theirs["image"]:
        yield f"Redis is {container['image']}, compose.yaml has {theirs['image']}"
    if container["command"][2].split() != theirs["command"][2].replace("$$", "$").split():
        yield "Redis is configured differently than in compose.yaml"
    if [str(pod_of(server)["securityContext"]["runAsUser"])] != theirs["user"].split(":")[:1]:
        yield "Redis runs as another user than in compose.yaml"
    for workload in manifests.services_pods:
        address = urlsplit(manifests.environment(workload).get("REDIS_URL", ""))
        service = manifests.find("Service", str(address.hostname))
        if service is None or address.port not in {port["port"] for port in service["spec"]["ports"]}:
            yield f"{name_of(workload)}: no Redis at {address.hostname}:{address.port}"


def ingresses(manifests: Manifests) -> Iterator[str]:
    """A path is a route's, and a model in it one that is served behind."""
    for ingress in manifests.of_kind("Ingress"):
        where = name_of(ingress)
        for rule in ingress["spec"]["rules"]:
            if not any(rule["host"] in each["hosts"] for each in ingress["spec"]["tls"]):
                yield f"{where}: {rule['host']} has no certificate"
            for path in rule["http"]["paths"]:
                service = manifests.find("Service", path["backend"]["service"]["name"])
                if service is None:
                    continue  # lint.py says so
                (behind,) = manifests.with_labels(service["spec"]["selector"])
                given = manifests.environment(behind)
                if given.get("ROLE") == "worker":
                    yield f"{where}: {path['path']} leads to a worker"
                if path["path"] == "/":
                    continue
                start, _, model = path["path"].rpartition("/")
                if not any(route.startswith(f"{start}/{{model}}") for route in routes()):
                    yield f"{where}: no route begins with {path['path']}"
                if model not in models_of(given):
                    yield f"{where}: {model} is not served behind {path['path']}"
        told = ingress["metadata"].get("annotations", {})
        prefix = "nginx.ingress.kubernetes.io/"
        if told.get(f"{prefix}canary") == "true":
            continue  # those of the other hold
        given = manifests.environment(manifests.services_pods[0])
        largest = float(given["MAX_JOB_MB"])
        if float(told[f"{prefix}proxy-body-size"].removesuffix("m")) < largest:
            yield f"{where}: lets no body of {largest:g} MB in"
        if float(told[f"{prefix}proxy-read-timeout"]) <= float(given["REQUEST_TIMEOUT_S"]) + 10:
            yield f"{where}: gives up before the service does"


def policies(manifests: Manifests) -> Iterator[str]:
    """Ports that are let through are those that something listens at."""
    service_port = BentoMLContainer.http.port.get()
    known = {"dns": {53}, "service-to-object-store": {443}, "service-to-collector": {4317, 4318}}
    known |= {"service-to-redis": {REDIS_PORT}, "redis-from-service": {REDIS_PORT}}
    known |= {"ingress-to-service": {service_port}, "prometheus-to-service": {service_port}, "default-deny": set()}
    for policy in manifests.of_kind("NetworkPolicy"):
        rules = policy["spec"].get("ingress", []) + policy["spec"].get("egress", [])
        ports = {each["port"] for rule in rules for each in rule["ports"]}
        if ports != known[policy["metadata"]["name"]]:
            yield f"{name_of(policy)} is about ports {sorted(ports)}"
    for workload in manifests.services_pods:
        endpoint = manifests.environment(workload).get("OTEL_EXPORTER_OTLP_ENDPOINT")
        if endpoint and urlsplit(endpoint).port not in known["service-to-collector"]:
            yield f"{name_of(workload)}: traces to {endpoint} are let nowhere"


def scalers(manifests: Manifests) -> Iterator[str]:
    """They go by metrics that there are, of the models that they scale."""
    for scaler in manifests.of_kind("HorizontalPodAutoscaler"):
        for metric in scaler["spec"]["metrics"]:
            if metric["type"] != "Pods":
                continue
            name = metric["pods"]["metric"]["name"]
            rule = _ADAPTER.get(name, {"seriesQuery": "", "name": {}})
            if name not in exported() or name not in metrics_of(rule["seriesQuery"]):
                yield f"{name_of(scaler)}: no metric is {name}"
            if f'job="{JOB}"' not in rule["seriesQuery"]:
                yield f"{name_of(scaler)}: prometheus-adapter has {name} of another job"
    for scaler in manifests.of_kind("ScaledObject"):
        where, target = name_of(scaler), manifests.find("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        if target is None:
            continue  # lint.py says so
        given = manifests.environment(target)
        at_a_time = int(given["GATEWAY_WORKERS"]) * int(given["JOB_CONCURRENCY"])
        for trigger in scaler["spec"]["triggers"]:
            query = trigger["metadata"]["query"]
            yield from (f"{where}: no metric is {name}" for name in sorted(metrics_of(query) - exported()))
            if set(re.findall(r'\bjob="([^"]+)"', query)) != {JOB}:
                yield f"{where}: asks for another job than {JOB}"
            if set(re.findall(r'\bmodel="([^"]+)"', query)) != set(models_of(given)):
                yield f"{where}: counts jobs of other models than {models_of(given)}"
            if int(trigger["metadata"]["threshold"]) != at_a_time:
                yield f"{where}: a pod works on {at_a_time} jobs at a time"
        if given.get("ROLE", "all") == "api":
            yield f"{where}: scales pods that work on no jobs"


def monitors(manifests: Manifests) -> Iterator[str]:
    keyless = [one for one in manifests.services_pods if manifests.environment(one).get("METRICS_OPEN") != "false"]
    yield from (f"{name_of(one)}: /metrics is open to whoever reaches the ingress" for one in keyless)
    for monitor in manifests.of_kind("ServiceMonitor"):
        for endpoint in monitor["spec"]["endpoints"]:
            if endpoint["path"] not in METRICS:
                yield f"{name_of(monitor)}: asks {endpoint['path']}"
            if "authorization" not in endpoint:
                yield f"{name_of(monitor)}: brings no key"
            named = [rule["replacement"] for rule in endpoint["relabelings"] if rule["targetLabel"] == "job"]
            if named != [JOB]:
                yield f"{name_of(monitor)}: the job is {named}; rules and dashboards go by {JOB}"


@cache
def _template() -> dict[str, set[str]]:
    """Keys of each secret that secrets.example.yaml has."""
    every = yaml.safe_load_all((K8S / "secrets.example.yaml").read_text())
    return {secret["metadata"]["name"]: set(secret["stringData"]) for secret in every}


def secrets(manifests: Manifests) -> Iterator[str]:
    """What is asked of a secret is in the example."""
    asked = [
        (name_of(workload), each["valueFrom"]["secretKeyRef"])
        for workload in manifests.workloads
        for each in container_of(workload).get("env", [])
        if "valueFrom" in each
    ]
    asked += [
        (name_of(monitor), endpoint["authorization"]["credentials"])
        for monitor in manifests.of_kind("ServiceMonitor")
        for endpoint in monitor["spec"]["endpoints"]
        if "authorization" in endpoint
    ]
    for where, reference in asked:
        if reference["key"] not in _template().get(reference["name"], set()):
            yield f"{where}: {reference['name']} has no {reference['key']}"


def volume(manifests: Manifests) -> Iterator[str]:
    """Several pods need a volume that several nodes write to: a download is asked of any of them."""
    claim = manifests.find("PersistentVolumeClaim", "data")
    assert claim is not None
    one_pod = [one["spec"].get("replicas") for one in manifests.services_pods] == [1]
    if not one_pod and claim["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "several pods, and a volume for one"
    surge = [one["spec"]["strategy"]["rollingUpdate"]["maxSurge"] for one in manifests.services_pods]
    if claim["spec"]["accessModes"] == ["ReadWriteOnce"] and surge != [0]:
        yield "a new pod would wait for the volume of the old one"
