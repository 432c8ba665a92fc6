"""What the Prometheus operator, KEDA and KubeRay take, as far as our manifests use it.

kubernetes-validate knows Kubernetes' own kinds alone. These are subsets by hand of the schemas in the projects'
CustomResourceDefinitions (monitoring.coreos.com/v1, keda.sh/v1alpha1, ray.io/v1): names and types as there,
closed, so that a field which is not listed here is a fault until somebody looks it up.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
STRINGS: Schema = {"type": "object", "additionalProperties": STRING}


def closed(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def kind(api_version: str, name: str, spec: Schema) -> Schema:
    metadata = closed(("name", "namespace"), name=STRING, namespace=STRING, labels=STRINGS, annotations=STRINGS)
    required = ("apiVersion", "kind", "metadata", "spec")
    return closed(required, apiVersion={"const": api_version}, kind={"const": name}, metadata=metadata, spec=spec)


_POLICY = closed(
    ("type", "value", "periodSeconds"),
    type={"enum": ["Pods", "Percent"]},
    value={"type": "integer", "minimum": 1},
    periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
)
_RULES = closed(
    policies=listed(_POLICY),
    selectPolicy={"enum": ["Max", "Min", "Disabled"]},
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
)

_RESOURCES = closed(requests=STRINGS, limits=STRINGS)
_POD_TEMPLATE = closed(("metadata", "spec"), metadata=closed(labels=STRINGS), spec={"type": "object"})

SCHEMAS: dict[str, Schema] = {
    "RayJob": kind(
        "ray.io/v1",
        "RayJob",
        closed(
            ("entrypoint", "rayClusterSpec"),
            entrypoint=STRING,
            submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
            shutdownAfterJobFinishes={"type": "boolean"},
            ttlSecondsAfterFinished=COUNT,
            activeDeadlineSeconds=COUNT,
            backoffLimit=COUNT,
            suspend={"type": "boolean"},
            rayClusterSpec=closed(
                ("rayVersion", "headGroupSpec", "workerGroupSpecs"),
                rayVersion=STRING,
                authOptions=closed(("mode",), mode={"enum": ["token"]}),
                enableInTreeAutoscaling={"type": "boolean"},
                autoscalerOptions=closed(idleTimeoutSeconds=COUNT, resources=_RESOURCES),
                headGroupSpec=closed(
                    ("rayStartParams", "template"), rayStartParams=STRINGS, template=_POD_TEMPLATE
                ),
                workerGroupSpecs=listed(
                    closed(
                        ("groupName", "rayStartParams", "template"),
                        groupName=STRING,
                        replicas=COUNT,
                        minReplicas=COUNT,
                        maxReplicas=COUNT,
                        rayStartParams=STRINGS,
                        template=_POD_TEMPLATE,
                    )
                ),
            ),
        ),
    ),
    "ServiceMonitor": kind(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        closed(
            ("selector", "endpoints"),
            selector=closed(matchLabels=STRINGS),
            jobLabel=STRING,
            endpoints=listed(
                closed(
                    port=STRING,
                    path=STRING,
                    scheme={"enum": ["http", "https"]},
                    interval={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                    scrapeTimeout={"type": "string", "pattern": r"^\d+(ms|s|m|h)$"},
                    authorization=closed(
                        type=STRING,
                        credentials=closed(("key",), name=STRING, key=STRING, optional={"type": "boolean"}),
                    ),
                    relabelings=listed(
                        closed(
                            sourceLabels=listed(STRING),
                            targetLabel=STRING,
                            regex=STRING,
                            replacement=STRING,
                            action={"enum": ["replace", "keep", "drop", "labelmap", "labeldrop", "labelkeep"]},
                        )
                    ),
                )
            ),
        ),
    ),
    "ScaledObject": kind(
        "keda.sh/v1alpha1",
        "ScaledObject",
        closed(
            ("scaleTargetRef", "triggers"),
            scaleTargetRef=closed(
                ("name",), apiVersion=STRING, kind=STRING, name=STRING, envSourceContainerName=STRING
            ),
            pollingInterval=COUNT,
            cooldownPeriod=COUNT,
            idleReplicaCount=COUNT,
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            fallback=closed(("failureThreshold", "replicas"), failureThreshold=COUNT, replicas=COUNT),
            advanced=closed(
                restoreToOriginalReplicaCount={"type": "boolean"},
                horizontalPodAutoscalerConfig=closed(
                    behavior=closed(scaleDown=_RULES, scaleUp=_RULES),
                ),
            ),
            triggers=listed(
                closed(
                    ("type", "metadata"),
                    type={"const": "prometheus"},
                    name=STRING,
                    metricType={"enum": ["AverageValue", "Value"]},
                    # Of the prometheus trigger; strings all of them
                    metadata=closed(
                        ("serverAddress", "query", "threshold"),
                        serverAddress=STRING,
                        query=STRING,
                        threshold=STRING,
                        activationThreshold=STRING,
                        ignoreNullValues={"enum": ["true", "false"]},
                    ),
                    authenticationRef=closed(("name",), name=STRING, kind=STRING),
                )
            ),
        ),
    ),
}
