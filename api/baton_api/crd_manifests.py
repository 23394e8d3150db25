"""The CRDs as Kubernetes takes them; `python tools/crds.py` writes them to deploy/crds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .crd import GROUP, KIND, VERSION
from .crd_schema import Schema, json_schema, pool_schema
from .kubernetes import MODEL_PLURAL, POOL_KIND, POOL_PLURAL

Column = tuple[str, str, str, int, str]
"""Name, type, path, priority (0 always, 1 with -o wide), description."""

_READY = '.status.conditions[?(@.type=="Ready")]'
MODEL_COLUMNS: tuple[Column, ...] = (
    ("Ready", "string", f"{_READY}.status", 0, "whether requests are served as the spec says"),
    ("Reason", "string", f"{_READY}.reason", 0, "why"),
    ("Prefill", "string", ".status.prefill.summary", 0, "prefill workers, ready/wanted"),
    ("Decode", "string", ".status.decode.summary", 0, "decode workers, ready/wanted"),
    ("Gateway", "string", ".status.gateway", 0, "gateway Pods, ready/wanted"),
    ("Endpoint", "string", ".status.endpoint", 0, "where clients in the cluster reach it"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "since when"),
    ("Source", "string", ".spec.source", 1, "what is served"),
    ("Revision", "string", ".status.revision", 1, "the newest revision of the workers"),
    ("Step", "string", ".status.plan.step", 1, "what the operator is doing"),
    ("Message", "string", f"{_READY}.message", 1, "why, and what to do about it"),
)
POOL_COLUMNS: tuple[Column, ...] = (
    ("Model", "string", ".spec.model", 0, "the Model"),
    ("Role", "string", ".spec.role", 0, "prefill or decode"),
    ("Wanted", "integer", ".spec.replicas", 0, "workers wanted"),
    ("Ready", "integer", ".status.readyReplicas", 0, "workers that are ready"),
    ("Updated", "integer", ".status.updatedReplicas", 0, "ready workers of the newest revision"),
    ("Reason", "string", f"{_READY}.reason", 0, "of Ready"),
    ("Age", "date", ".metadata.creationTimestamp", 0, "since when"),
    ("Min", "integer", ".spec.minReplicas", 1, "fewest"),
    ("Max", "integer", ".spec.maxReplicas", 1, "most"),
    ("Message", "string", f"{_READY}.message", 1, "why, and what to do about it"),
)
POOL_SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}


def manifests() -> dict[str, dict[str, Any]]:
    """File name to CustomResourceDefinition."""
    model = _crd(KIND, MODEL_PLURAL, "mdl", json_schema(), MODEL_COLUMNS, {"status": {}})
    pool = _crd(POOL_KIND, POOL_PLURAL, "pool", pool_schema(), POOL_COLUMNS, {"status": {}, "scale": POOL_SCALE})
    return {"models.yaml": model, "pools.yaml": pool}


def _crd(
    kind: str, plural: str, short: str, schema: Schema, columns: Sequence[Column], subresources: Mapping[str, Any]
) -> dict[str, Any]:
    names = {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower(), "categories": ["all"]}
    if short != names["singular"]:
        names["shortNames"] = [short]
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": dict(subresources),
        "additionalPrinterColumns": [
            {"name": name, "type": kind_, "jsonPath": path, "priority": priority, "description": description}
            for name, kind_, path, priority, description in columns
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "baton", "app.kubernetes.io/component": "crds"},
        },
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }
