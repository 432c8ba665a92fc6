"""The Kubernetes manifests: of the right form, safe, and true to the code. No cluster is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import jsonschema_rs
import kubernetes_validate
import pytest
import yaml

from scripts.local_service import ROOT
from tests.deploy import against_code, lint
from tests.deploy.manifests import (
    K8S,
    NAMESPACE,
    OVERLAYS,
    Manifest,
    Manifests,
    container_of,
    pod_of,
    why_not,
)
from tests.deploy.names import JOB
from tests.deploy.operators import SCHEMAS
from tests.deploy.test_rules import needs_promtool, promtool

# Of Kubernetes: an old one that some clusters still have, and the newest there is a schema of
VERSIONS = ("1.30", "1.37")
TEMPLATE = K8S / "secrets.example.yaml"

rendering = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
for_each = pytest.mark.parametrize("overlay", OVERLAYS)


def test_there_is_an_overlay_for_each_way_to_run_it() -> None:
    assert OVERLAYS == ("canary", "cpu", "gpu", "gpu-8", "split", "split-s3")


def validate(manifest: Manifest, version: str) -> None:
    if manifest["kind"] in SCHEMAS:
        jsonschema_rs.validate(SCHEMAS[manifest["kind"]], manifest)
    else:
        kubernetes_validate.validate(manifest, version, strict=True)


@rendering
@for_each
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_takes_what_is_rendered(overlay: str, version: str) -> None:
    for manifest in Manifests.of(overlay).every:
        validate(manifest, version)


@rendering
@for_each
def test_nothing_is_there_twice(overlay: str) -> None:
    ids = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in Manifests.of(overlay).every]
    assert len(set(ids)) == len(ids)


@rendering
@for_each
def test_nothing_is_careless(overlay: str) -> None:
    assert lint.findings(Manifests.of(overlay)) == []


@rendering
@for_each
def test_names_are_those_of_the_code(overlay: str) -> None:
    assert against_code.findings(Manifests.of(overlay)) == []


@rendering
def test_workers_have_jobs_and_the_others_have_people() -> None:
    manifests = Manifests.of("split")
    roles = {one["metadata"]["name"]: manifests.environment(one)["ROLE"] for one in manifests.services_pods}
    assert roles == {"esm2-embeddings": "api", "esm2-worker-embeddings": "worker"}
    for variable in ("REDIS_URL", "OUTPUT_URL", "DATA_DIR", "MODELS"):
        assert len({manifests.environment(one)[variable] for one in manifests.services_pods}) == 1, variable


@rendering
def test_a_canary_is_another_version_of_the_same_model() -> None:
    manifests = Manifests.of("canary")
    models = [manifests.environment(one)["MODELS"] for one in manifests.services_pods]
    assert sorted(models) == ["esm2_t33_650M:NEW", "esm2_t33_650M:OLD"]
    hosts = {}
    for ingress in manifests.of_kind("Ingress"):
        paths = {
            (rule["host"], each["path"]) for rule in ingress["spec"]["rules"] for each in rule["http"]["paths"]
        }
        hosts[ingress["metadata"]["annotations"].get("nginx.ingress.kubernetes.io/canary")] = paths
    assert hosts["true"] == hosts[None], "a path without a main one, or the other way round, is not weighted"


@rendering
def test_a_path_leads_to_the_pods_that_have_its_model() -> None:
    manifests, found = Manifests.of("cpu"), {}
    for ingress in manifests.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                found[rule["host"], path["path"]] = path["backend"]["service"]["name"]
    host = "embeddings.example.org"
    assert found[host, "/embeddings/compute/esm2_t33_650M"] == "esm2-embeddings"
    assert found[host, "/embeddings/compute/prot_t5"] == "prot-t5-embeddings"
    assert found[host, "/"] == "esm2-embeddings"
    assert found[f"prot-t5.{host}", "/"] == "prot-t5-embeddings"


@rendering
def test_eight_gpus_are_one_pod() -> None:
    (pod,) = (manifests := Manifests.of("gpu-8")).services_pods
    assert container_of(pod)["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert manifests.environment(pod)["RUNNER_GPUS"] == "8"
    assert pod["spec"]["replicas"] == 1


def test_the_example_of_secrets_has_no_value() -> None:
    for secret in yaml.safe_load_all(TEMPLATE.read_text()):
        kubernetes_validate.validate(secret, VERSIONS[-1], strict=True)
        assert set(secret["stringData"].values()) == {""}, secret["metadata"]["name"]
        assert secret["metadata"]["namespace"] == NAMESPACE
    assert "/deploy/k8s/secrets.yaml" in (ROOT / ".gitignore").read_text().splitlines()


@rendering
@for_each
def test_the_gateways_and_redis_are_reached_by_whom_they_should_be(overlay: str) -> None:
    """And what comes out goes to Redis, names, the collector and, where there is one, the object store."""
    manifests = Manifests.of(overlay)
    into, out = set(), set()
    for policy in manifests.of_kind("NetworkPolicy"):
        about = policy["spec"]["podSelector"].get("matchLabels", {}).get("app.kubernetes.io/name", "all")
        assert policy["spec"]["policyTypes"], "what it is about is not said"
        for rule in policy["spec"].get("ingress", []):
            into |= {(about, who(peer)) for peer in rule["from"]}
        for rule in policy["spec"].get("egress", []):
            out |= {(about, who(peer)) for peer in rule["to"]}
    ours = "protein-embedding-service"
    assert into == {(ours, "ingress-nginx/ingress-nginx"), (ours, "monitoring/prometheus"), ("redis", ours)}
    expected = {("all", "kube-system/kube-dns"), (ours, "redis"), (ours, "observability")}
    assert out == expected | ({(ours, "0.0.0.0/0")} if overlay.endswith("-s3") else set())


def who(peer: Manifest) -> str:
    """NAMESPACE/NAME of who is let through, or addresses."""
    if "ipBlock" in peer:
        return str(peer["ipBlock"]["cidr"])
    names = [
        peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name"),
        *peer.get("podSelector", {}).get("matchLabels", {}).values(),
    ]
    return "/".join(filter(None, names))


@needs_promtool
@rendering
def test_prometheus_counts_what_the_scalers_go_by(tmp_path: Path) -> None:
    """Two gateways tell the same of three jobs that wait, and one is under way; one pod has two queues."""
    (trigger,) = of_kind(Manifests.of("split"), "ScaledObject")["spec"]["triggers"]
    (adapter,) = yaml.safe_load((K8S / "prometheus-adapter/rules.yaml").read_text())["rules"]
    asked = {"Series": "batcher_queue_size", "LabelMatchers": 'namespace="n",pod=~"p|q"', "GroupBy": "pod"}
    of_pods = adapter["metricsQuery"]
    for name, value in asked.items():
        of_pods = of_pods.replace(f"<<.{name}>>", value)
    told = [(f'jobs_queued{{job="{JOB}", model="esm2_t33_650M", instance="{i}"}}', "3") for i in ("a", "b")] + [
        (f'jobs_running{{job="{JOB}", model="esm2_t33_650M", instance="a"}}', "1"),
        (f'jobs_queued{{job="{JOB}", model="prot_t5", instance="a"}}', "50"),
        ('batcher_queue_size{namespace="n", pod="p", model="x"}', "7"),
        ('batcher_queue_size{namespace="n", pod="p", model="y"}', "5"),
        ('batcher_queue_size{namespace="n", pod="r", model="y"}', "9"),
    ]
    cases = [
        {"expr": trigger["metadata"]["query"], "exp_samples": [{"value": 4, "labels": "{}"}]},
        {"expr": of_pods, "exp_samples": [{"value": 12, "labels": '{pod="p"}'}]},
    ]
    series = [{"series": name, "values": value} for name, value in told]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [{"eval_time": "0m", **each} for each in cases],
    }
    (tmp_path / "scalers.yml").write_text(yaml.safe_dump({"tests": [test]}))
    assert "SUCCESS" in promtool("test", "rules", "scalers.yml", folder=tmp_path)


# Each way to be wrong, and what is said of it


def deployment(manifests: Manifests) -> Manifest:
    return manifests.services_pods[0]


def of_kind(manifests: Manifests, kind: str) -> Manifest:
    return manifests.of_kind(kind)[0]


def set_variable(name: str, value: str | None) -> Callable[[Manifests], None]:
    def change(manifests: Manifests) -> None:
        for config in manifests.of_kind("ConfigMap"):
            if name in config["data"] or (value is not None and "DATA_DIR" in config["data"]):
                config["data"].pop(name, None)
                if value is not None:
                    config["data"][name] = value

    return change


def container_at(*keys: str | int, value: object) -> Callable[[Manifests], None]:
    return lambda manifests: put(container_of(deployment(manifests)), *keys, value=value)


def pod_at(*keys: str | int, value: object) -> Callable[[Manifests], None]:
    return lambda manifests: put(pod_of(deployment(manifests)), *keys, value=value)


def at(kind: str, *keys: str | int, value: object) -> Callable[[Manifests], None]:
    return lambda manifests: put(of_kind(manifests, kind), *keys, value=value)


def put(where: Manifest, *keys: str | int, value: object) -> None:
    """Sets what is there already, so that a mutation cannot miss; None takes it away."""
    inner: Manifest = where
    for key in keys[:-1]:
        inner = inner[key]  # type: ignore[index]
    last = keys[-1]
    assert inner[last] != value  # type: ignore[index]
    if value is None:
        del inner[last]  # type: ignore[arg-type]
    else:
        inner[last] = value  # type: ignore[index]


def rename_variable(manifests: Manifests) -> None:
    for config in manifests.of_kind("ConfigMap"):
        if "DATA_DIR" in config["data"]:
            config["data"]["DATA_FOLDER"] = config["data"].pop("DATA_DIR")


def query_with(old: str, new: str) -> Callable[[Manifests], None]:
    def change(manifests: Manifests) -> None:
        metadata = of_kind(manifests, "ScaledObject")["spec"]["triggers"][0]["metadata"]
        assert old in metadata["query"]
        metadata["query"] = metadata["query"].replace(old, new)

    return change


HPA = ("spec", "metrics", 1, "pods", "metric", "name")
PATH = ("spec", "rules", 0, "http", "paths", 0, "path")
POLICY_PORT = ("spec", "ingress", 0, "ports", 0, "port")
CONTAINER = ("spec", "template", "spec", "containers", 0)
ENDPOINT = ("spec", "endpoints", 0)
BODY_SIZE = ("metadata", "annotations", "nginx.ingress.kubernetes.io/proxy-body-size")


@rendering
@pytest.mark.parametrize(
    ("overlay", "change", "said"),
    [
        ("cpu", rename_variable, "nobody reads DATA_FOLDER"),
        ("cpu", set_variable("LOG_LEVELS", "INFO"), "nobody reads LOG_LEVELS"),
        ("cpu", set_variable("GATEWAY_WORKERS", "none"), "GATEWAY_WORKERS: Input should be a valid integer"),
        ("cpu", set_variable("MODELS", "esm2_t33_65M"), "MODELS: "),
        ("cpu", set_variable("ROLE", "worker"), "leads to a worker"),
        ("cpu", set_variable("METRICS_OPEN", "true"), "/metrics is open"),
        ("cpu", set_variable("SHUTDOWN_TIMEOUT_SECS", "60"), "killed after 75 s"),
        ("cpu", set_variable("HEALTH_OPEN", "false"), "the probes send no key"),
        ("cpu", set_variable("API_KEYS_FILE", "/run/secrets/embeddings/keys"), "keys is in no secret"),
        ("cpu", set_variable("DATA_DIR", "/srv/data"), "DATA_DIR: /srv/data is on no persistentVolumeClaim"),
        ("cpu", set_variable("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c.o:4319"), "are let nowhere"),
        ("cpu", set_variable("REQUEST_TIMEOUT_S", "7200"), "gives up before the service does"),
        ("cpu", container_at("image", value="example.org/embedding_service:1.0.0"), "none that `bentoml"),
        ("cpu", container_at("image", value="a/protein_embedding_service:1-cuda"), "on a pod without GPUs"),
        ("cpu", container_at("ports", 0, "containerPort", value=8080), "BentoML opens 3000"),
        ("cpu", container_at("readinessProbe", "httpGet", "path", value="/readiness"), "asks /readiness"),
        ("cpu", container_at("livenessProbe", "httpGet", "path", value="/readyz"), "livenessProbe asks /readyz"),
        ("cpu", container_at("readinessProbe", "timeoutSeconds", value=5), "gives up after 5 s"),
        ("cpu", container_at("env", 1, "value", value="redis://redis-0:6379/0"), "no Redis at redis-0"),
        ("cpu", container_at("env", 0, "name", value="PASSWORD"), "REDIS_URL refers to what is not set"),
        ("cpu", pod_at("securityContext", "runAsUser", value=1000), "the image has 1034"),
        ("cpu", pod_at("terminationGracePeriodSeconds", value=30), "killed after 30 s"),
        ("cpu", at("HorizontalPodAutoscaler", *HPA, value="batcher_queue_length"), "no metric is batcher_queue_l"),
        ("cpu", at("Ingress", *PATH, value="/embeddings/embed/prot_t5"), "no route begins with /embeddings/embed"),
        ("cpu", at("Ingress", *PATH, value="/embeddings/compute/esm2_t6_8M"), "esm2_t6_8M is not served"),
        ("cpu", at("Ingress", *BODY_SIZE, value="8m"), "lets no body"),
        ("cpu", at("ServiceMonitor", *ENDPOINT, "path", value="/prometheus"), "asks /prometheus"),
        ("cpu", at("ServiceMonitor", *ENDPOINT, "authorization", value=None), "brings no key"),
        ("cpu", at("ServiceMonitor", *ENDPOINT, "relabelings", 0, "replacement", value="pes"), "rules and dashb"),
        ("cpu", at("StatefulSet", *CONTAINER, "image", value="redis:8"), "Redis is redis:8"),
        ("cpu", at("PersistentVolumeClaim", "spec", "accessModes", value=["ReadWriteOnce"]), "a volume for one"),
        ("split", query_with("jobs_queued", "jobs_waiting"), "no metric is jobs_waiting"),
        ("split", query_with("protein_embedding_service", "pes"), "another job than"),
        ("split", query_with("esm2_t33_650M", "prot_t5"), "jobs of other models"),
        ("split", set_variable("JOB_CONCURRENCY", "3"), "works on 6 jobs at a time"),
        ("gpu", set_variable("RUNNER_GPUS", "2"), "RUNNER_GPUS reserves 2 GPUs, the pod has 1"),
        ("split-s3", container_at("env", 3, "valueFrom", "secretKeyRef", "key", value="id"), "has no id"),
    ],
)  # fmt: skip
def test_a_wrong_name_is_found(overlay: str, change: Callable[[Manifests], None], said: str) -> None:
    manifests = Manifests.of(overlay)
    change(manifests)
    found = against_code.findings(manifests)
    assert any(said in finding for finding in found), found


def without_budgets(manifests: Manifests) -> None:
    manifests.every[:] = [one for one in manifests.every if one["kind"] != "PodDisruptionBudget"]


def without_default_deny(manifests: Manifests) -> None:
    manifests.every[:] = [one for one in manifests.every if one["metadata"]["name"] != "default-deny"]


def with_a_variable_twice(manifests: Manifests) -> None:
    variables = container_of(deployment(manifests))["env"]
    variables.append(dict(variables[0]))


def with_a_password(manifests: Manifests) -> None:
    container_of(deployment(manifests))["env"].append({"name": "API_KEYS", "value": "me:correct-horse"})


@rendering
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (container_at("image", value="a/protein_embedding_service:latest"), "latest-tag"),
        (container_at("image", value="a/protein_embedding_service"), "latest-tag"),
        (container_at("resources", "requests", "memory", value=None), "no requests.memory"),
        (container_at("resources", "limits", "memory", value=None), "no limits.memory"),
        (container_at("securityContext", "readOnlyRootFilesystem", value=False), "can be written"),
        (container_at("securityContext", "allowPrivilegeEscalation", value=True), "privileges can be gained"),
        (container_at("securityContext", "capabilities", "drop", value=["NET_RAW"]), "there are capabilities"),
        (container_at("livenessProbe", value=None), "livenessProbe"),
        (container_at("readinessProbe", "httpGet", "port", value=3001), "asks port 3001"),
        (container_at("volumeMounts", 1, "name", value="temporary"), "mounts"),
        (pod_at("securityContext", "runAsNonRoot", value=False), "run-as-non-root"),
        (pod_at("securityContext", "seccompProfile", value=None), "system calls are not filtered"),
        (pod_at("serviceAccountName", value="default"), "the default account"),
        (pod_at("automountServiceAccountToken", value=True), "a token is mounted"),
        (pod_at("topologySpreadConstraints", value=[]), "no-anti-affinity"),
        (pod_at("volumes", 1, "emptyDir", value={}), "may fill the node"),
        (pod_at("volumes", 0, value={"name": "data", "hostPath": {"path": "/srv"}}), "host: data"),
        (at("Deployment", "spec", "selector", "matchLabels", value={"app": "x"}), "does not select its own"),
        (at("Service", "spec", "selector", value={"app": "x"}), "selects 0 workloads"),
        (at("Service", "spec", "ports", 0, "targetPort", value="web"), "sends to port web"),
        (at("Ingress", *PATH[:-1], "backend", "service", "name", value="x"), "dangling: Ingress"),
        (at("HorizontalPodAutoscaler", "spec", "scaleTargetRef", "name", value="x"), "which is not there"),
        (at("PodDisruptionBudget", "spec", "selector", "matchLabels", value={"app": "x"}), "not for one workload"),
        (at("PodDisruptionBudget", "spec", "maxUnavailable", value=0), "lets no node be emptied"),
        (at("ServiceMonitor", *ENDPOINT, "port", value="web"), "asks nobody"),
        (at("ServiceAccount", "metadata", "name", value="x"), "names ServiceAccount embeddings"),
        (at("PersistentVolumeClaim", "metadata", "name", value="x"), "names PersistentVolumeClaim data"),
        (at("Ingress", "metadata", "namespace", value="default"), "use-namespace"),
        (without_budgets, "has no budget"),
        (without_default_deny, "what no policy names is open"),
        (with_a_variable_twice, "REDIS_PASSWORD twice"),
        (with_a_password, "has its value in the manifest"),
    ],
)
def test_carelessness_is_found(change: Callable[[Manifests], None], said: str) -> None:
    manifests = Manifests.of("cpu")
    change(manifests)
    found = lint.findings(manifests)
    assert any(said in finding for finding in found), found


@rendering
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("Deployment", ("spec", "replica")),
        ("ServiceMonitor", ("spec", "endpoint")),
        ("ScaledObject", ("spec", "min")),
    ],
)
def test_a_field_that_there_is_not_is_refused(kind: str, keys: tuple[str, str]) -> None:
    manifest = of_kind(Manifests.of("split"), kind)
    manifest[keys[0]][keys[1]] = 1
    with pytest.raises((kubernetes_validate.ValidationError, jsonschema_rs.ValidationError)):
        validate(manifest, VERSIONS[-1])


def test_every_folder_is_used() -> None:
    """A set or a component that no overlay has is checked by nobody."""
    texts = "".join(path.read_text() for path in K8S.rglob("kustomization.yaml"))
    for folder in (*(K8S / "components").iterdir(), *(K8S / "sets").iterdir()):
        assert re.search(rf"- \.\./(\.\./)?{folder.parent.name}/{folder.name}$", texts, re.MULTILINE), folder
    for path in _kustomizations():
        for name in yaml.safe_load(path.read_text()).get("resources", []):
            assert (path.parent / name).exists(), f"{path}: {name}"


def _kustomizations() -> list[Path]:
    return sorted(K8S.rglob("kustomization.yaml"))
