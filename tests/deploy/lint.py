"""What kube-linter looks for, by hand: it is a Go program that no package of Python's, Debian's or npm's brings.

Its names of the checks are those of its documentation. One finding a line; none, if all is well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator

from tests.deploy.manifests import Manifest, Manifests, container_of, labels_of_pods, name_of, pod_of, probes_of

_PINNED = re.compile(r".+:[\w.-]*\d[\w.-]*|.+@sha256:[0-9a-f]{64}")
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|_KEY$|^API_KEYS$|^ADMIN_API_KEYS$")
_HOST = ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace")


def findings(manifests: Manifests) -> list[str]:
    """Everything that is not as it should be."""
    found = [
        f"{name_of(workload)}: {check}: {said}"
        for workload in manifests.workloads
        for check, rule in OF_WORKLOADS.items()
        for said in rule(workload)
    ]
    found += [f"{check}: {said}" for check, rule in OF_ALL.items() for said in rule(manifests)]
    return found


def latest_tag(workload: Manifest) -> Iterator[str]:
    image = container_of(workload)["image"]
    if not _PINNED.fullmatch(image) or image.endswith(":latest"):
        yield image


def resources(workload: Manifest) -> Iterator[str]:
    """unset-cpu-requirements, unset-memory-requirements."""
    given = container_of(workload).get("resources", {})
    for kind, names in (("requests", ("cpu", "memory")), ("limits", ("memory",))):
        for name in names:
            if name not in given.get(kind, {}):
                yield f"no {kind}.{name}"
    gpus = [given.get(kind, {}).get("nvidia.com/gpu") for kind in ("requests", "limits")]
    if gpus[0] != gpus[1]:
        yield "GPUs are asked for and limited differently"


def run_as_non_root(workload: Manifest) -> Iterator[str]:
    security = pod_of(workload).get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield str(security)


def unsafe_container(workload: Manifest) -> Iterator[str]:
    """no-read-only-root-fs, privilege-escalation-container, privileged-container, drop-net-raw-capability."""
    security = container_of(workload).get("securityContext", {})
    if security.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    if security.get("allowPrivilegeEscalation") is not False:
        yield "privileges can be gained"
    if security.get("privileged") or security.get("capabilities") != {"drop": ["ALL"]}:
        yield "there are capabilities"
    if pod_of(workload).get("securityContext", {}).get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "system calls are not filtered"


def host(workload: Manifest) -> Iterator[str]:
    """host-network, host-pid, host-ipc, docker-sock, sensitive-host-mounts."""
    pod = pod_of(workload)
    yield from (name for name in _HOST if pod.get(name))
    yield from (volume["name"] for volume in pod.get("volumes", []) if "hostPath" in volume)


def service_account(workload: Manifest) -> Iterator[str]:
    """default-service-account, no token."""
    pod = pod_of(workload)
    if pod.get("serviceAccountName", "default") == "default":
        yield "the default account"
    if pod.get("automountServiceAccountToken") is not False:
        yield "a token is mounted"


def probes(workload: Manifest) -> Iterator[str]:
    """no-liveness-probe, no-readiness-probe, liveness-port, readiness-port, startup-port."""
    container = container_of(workload)
    given = dict(probes_of(container))
    yield from (name for name in ("startupProbe", "readinessProbe", "livenessProbe") if name not in given)
    ports = {port[key] for port in container.get("ports", []) for key in ("name", "containerPort")}
    for name, probe in given.items():
        for how in ("httpGet", "tcpSocket"):
            if how in probe and probe[how]["port"] not in ports:
                yield f"{name} asks port {probe[how]['port']}"


def spread(workload: Manifest) -> Iterator[str]:
    """no-anti-affinity, for what has more than one pod."""
    if workload["spec"].get("replicas") == 1:
        return
    constraints = pod_of(workload).get("topologySpreadConstraints", [])
    keys = {each["topologyKey"] for each in constraints}
    if not {"kubernetes.io/hostname", "topology.kubernetes.io/zone"} <= keys:
        yield f"spread over {sorted(keys)}"
    for each in constraints:
        if not each.get("labelSelector", {}).get("matchLabels", {}).items() <= labels_of_pods(workload).items():
            yield f"{each['topologyKey']} selects other pods"
        if not each.get("labelSelector"):
            yield f"{each['topologyKey']} selects nothing"


def selectors(workload: Manifest) -> Iterator[str]:
    """mismatching-selector."""
    wanted = workload["spec"]["selector"].get("matchLabels", {})
    if not wanted or not wanted.items() <= labels_of_pods(workload).items():
        yield f"{wanted} does not select its own pods"


def environment(workload: Manifest) -> Iterator[str]:
    """duplicate-env-var, env-var-secret, env-value-from."""
    variables = container_of(workload).get("env", [])
    yield from (f"{name} twice" for name, n in Counter(each["name"] for each in variables).items() if n > 1)
    yield from (
        f"{each['name']} has its value in the manifest"
        for each in variables
        if "value" in each and _SECRET.search(each["name"])
    )


def mounts(workload: Manifest) -> Iterator[str]:
    """Every mount has its volume, every volume its mount."""
    mounted = [mount["name"] for mount in container_of(workload).get("volumeMounts", [])]
    claims = workload["spec"].get("volumeClaimTemplates", [])
    volumes = [volume["name"] for volume in pod_of(workload).get("volumes", [])]
    volumes += [claim["metadata"]["name"] for claim in claims]
    if sorted(mounted) != sorted(volumes):
        yield f"mounts {sorted(mounted)} of volumes {sorted(volumes)}"
    for volume in pod_of(workload).get("volumes", []):
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
            yield f"{volume['name']} may fill the node"


def rollout(workload: Manifest) -> Iterator[str]:
    """minimum-three-replicas is not asked for; that a rollout can go on is."""
    rolling = workload["spec"].get("strategy", {}).get("rollingUpdate")
    if workload["kind"] == "Deployment" and (not rolling or rolling["maxSurge"] + rolling["maxUnavailable"] < 1):
        yield str(rolling)


def dangling(manifests: Manifests) -> Iterator[str]:
    """dangling-service, -ingress, -networkpolicy, -horizontalpodautoscaler, -servicemonitor, and of budgets."""
    for service in manifests.of_kind("Service"):
        selected = manifests.with_labels(service["spec"]["selector"])
        if len(selected) != 1:
            yield f"{name_of(service)} selects {len(selected)} workloads"
        for workload in selected:
            ports = {port[key] for port in container_of(workload)["ports"] for key in ("name", "containerPort")}
            for port in service["spec"]["ports"]:
                if port.get("targetPort", port["port"]) not in ports:
                    yield f"{name_of(service)} sends to port {port.get('targetPort', port['port'])}"
    for ingress in manifests.of_kind("Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                backend = path["backend"]["service"]
                target = manifests.find("Service", backend["name"])
                open_ports = [port["name"] for port in target["spec"]["ports"]] if target else []
                if backend["port"].get("name") not in open_ports:
                    yield f"{name_of(ingress)} sends {path['path']} to {backend}"
    for scaler in manifests.of_kind("HorizontalPodAutoscaler", "ScaledObject"):
        target = scaler["spec"]["scaleTargetRef"]
        if manifests.find(target["kind"], target["name"]) is None:
            yield f"{name_of(scaler)} scales {target['name']}, which is not there"
    for budget in manifests.of_kind("PodDisruptionBudget"):
        if len(manifests.with_labels(budget["spec"]["selector"].get("matchLabels", {"?": "?"}))) != 1:
            yield f"{name_of(budget)} is not for one workload"
    for policy in manifests.of_kind("NetworkPolicy"):
        if not manifests.with_labels(policy["spec"]["podSelector"].get("matchLabels", {})):
            yield f"{name_of(policy)} is for no pods"
        for peer in _peers(policy):
            if set(peer) == {"podSelector"} and not manifests.with_labels(peer["podSelector"]["matchLabels"]):
                yield f"{name_of(policy)} names pods that are not there"
    for monitor in manifests.of_kind("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        asked = [
            one for one in manifests.of_kind("Service") if wanted.items() <= one["metadata"]["labels"].items()
        ]
        named = [{port["name"] for port in service["spec"]["ports"]} for service in asked]
        if not asked or any(
            endpoint["port"] not in each for endpoint in monitor["spec"]["endpoints"] for each in named
        ):
            yield f"{name_of(monitor)} asks nobody"


def references(manifests: Manifests) -> Iterator[str]:
    """non-existent-service-account, and the same of claims and config maps."""
    for workload in manifests.workloads:
        pod, where = pod_of(workload), name_of(workload)
        wanted = [("ServiceAccount", pod["serviceAccountName"])]
        wanted += [
            ("ConfigMap", each["configMapRef"]["name"]) for each in container_of(workload).get("envFrom", [])
        ]
        wanted += [
            ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            for volume in pod.get("volumes", [])
            if "persistentVolumeClaim" in volume
        ]
        for kind, name in wanted:
            if manifests.find(kind, name) is None:
                yield f"{where} names {kind} {name}, which is not there"


def budgets(manifests: Manifests) -> Iterator[str]:
    """pdb-max-unavailable, pdb-min-available, pdb-unhealthy-pod-eviction-policy, and that there is one."""
    for budget in manifests.of_kind("PodDisruptionBudget"):
        spec = budget["spec"]
        if spec.get("maxUnavailable") != 1 or "minAvailable" in spec:
            yield f"{name_of(budget)} lets no node be emptied, or all pods go at once"
        if "unhealthyPodEvictionPolicy" not in spec:
            yield f"{name_of(budget)} keeps pods that are ill"
    covered = [budget["spec"]["selector"]["matchLabels"] for budget in manifests.of_kind("PodDisruptionBudget")]
    for workload in manifests.of_kind("Deployment"):
        if not any(selector.items() <= labels_of_pods(workload).items() for selector in covered):
            yield f"{name_of(workload)} has no budget"


def replicas(manifests: Manifests) -> Iterator[str]:
    """hpa-minimum-three-replicas is not asked for. One thing alone says how many pods there are."""
    for workload in manifests.of_kind("Deployment"):
        name = workload["metadata"]["name"]
        scalers = [
            scaler
            for scaler in manifests.of_kind("HorizontalPodAutoscaler", "ScaledObject")
            if scaler["spec"]["scaleTargetRef"]["name"] == name
        ]
        if len(scalers) + ("replicas" in workload["spec"]) != 1:
            yield f"{name_of(workload)}: {len(scalers)} scalers, and `replicas`: {'replicas' in workload['spec']}"


def namespaces(manifests: Manifests) -> Iterator[str]:
    """use-namespace."""
    (namespace,) = manifests.of_kind("Namespace")
    for manifest in manifests.every:
        if manifest is not namespace and manifest["metadata"].get("namespace") != namespace["metadata"]["name"]:
            yield name_of(manifest)


def exposure(manifests: Manifests) -> Iterator[str]:
    """exposed-services, non-isolated-pod."""
    for service in manifests.of_kind("Service"):
        if service["spec"].get("type", "ClusterIP") != "ClusterIP":
            yield f"{name_of(service)} has a port of its own outside"
    closed = [each["spec"] for each in manifests.of_kind("NetworkPolicy") if each["spec"]["podSelector"] == {}]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in closed:
        yield "what no policy names is open"
    if manifests.of_kind("Secret"):
        yield "a secret is in the manifests"


def _peers(policy: Manifest) -> Iterator[Manifest]:
    for direction, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(direction, []):
            yield from rule.get(side, [])


OF_WORKLOADS: dict[str, Callable[[Manifest], Iterator[str]]] = {
    "latest-tag": latest_tag,
    "unset-requirements": resources,
    "run-as-non-root": run_as_non_root,
    "unsafe-container": unsafe_container,
    "host": host,
    "service-account": service_account,
    "probes": probes,
    "no-anti-affinity": spread,
    "mismatching-selector": selectors,
    "environment": environment,
    "mounts": mounts,
    "rollout": rollout,
}
OF_ALL: dict[str, Callable[[Manifests], Iterator[str]]] = {
    "dangling": dangling,
    "references": references,
    "disruption-budgets": budgets,
    "replicas": replicas,
    "use-namespace": namespaces,
    "exposure": exposure,
}
