"""Which changes of a Model are told as Kubernetes Events. Pure."""

from __future__ import annotations

from typing import Any

from baton_api.crd_status import Reason

from .kinds import MODEL
from .objects import digest
from .snapshot import condition_of

Json = dict[str, Any]
COMPONENT = "baton-operator"
GOOD = (Reason.SERVING, Reason.ROLLING_OUT)
BAD = (
    Reason.INVALID_SPEC, Reason.NOT_SUPPORTED, Reason.REFUSED_BY_API_SERVER, Reason.PODS_REFUSED,
    Reason.NAME_TAKEN, Reason.WRITES_FAIL, Reason.WORKERS_UNSCHEDULABLE,
    Reason.WORKERS_CRASHING, Reason.IMAGE_UNAVAILABLE, Reason.GATEWAY_CRASHING, Reason.NO_PREFILL_WORKERS,
    Reason.NO_DECODE_WORKERS, Reason.FEWER_WORKERS,
)  # fmt: skip


def events_of(raw: Json, status: Json, now: str) -> list[Json]:
    """For what a condition says newly: `raw` has the status before."""
    told: list[Json] = []
    for condition in status.get("conditions") or []:
        before = condition_of(raw, condition["type"])
        if condition["type"] not in ("Ready", "Progressing", "Degraded") or before.get("reason") == condition["reason"]:
            continue
        if condition["reason"] in (*GOOD, *BAD) and condition["reason"] not in [event["reason"] for event in told]:
            told.append(_event(raw, condition, now))
    return told


def _event(raw: Json, condition: Json, now: str) -> Json:
    """The same content has the same name; another message of the same second has another."""
    metadata = raw["metadata"]
    content = [metadata["uid"], condition["reason"], condition["message"], now]
    name = f"{metadata['name']}.{digest(content, 16)}"
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": MODEL.api_version,
            "kind": MODEL.kind,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": "Warning" if condition["reason"] in BAD else "Normal",
        "reason": condition["reason"],
        "message": condition["message"],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
