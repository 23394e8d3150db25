"""What should be there for a Model: its Pods' rights, mounts and settings, and what makes a new revision."""

from __future__ import annotations

import json
from typing import Any

import pytest

from baton_api import kubernetes as names
from baton_api.crd import API_VERSION, KIND, Model, parse_model
from baton_api.errors import SettingError
from baton_api.settings import parse
from baton_api.worker import Role
from baton_gateway.settings import GatewaySettings
from baton_operator.desired import Desired, desired, revision_of
from baton_operator.objects import Owner
from baton_operator.settings import OperatorSettings
from baton_worker.settings import WorkerSettings

OWNER = Owner("m", "ns", "uid-1")
SETTINGS = OperatorSettings(prefill_image="prefill:1", decode_image="decode:1", gateway_image="gateway:1")


def model(**spec: Any) -> Model:
    metadata = {"name": "m", "namespace": "ns"}
    whole = {"source": "demo_model/model", **spec}
    return parse_model({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": whole})


def wanted(**spec: Any) -> Desired:
    return desired(model(**spec), OWNER, SETTINGS, frozenset())


def named(found: Desired, kind: str, name: str) -> dict[str, Any]:
    return next(item for item in found.objects if item["kind"] == kind and item["metadata"]["name"] == name)


def template(found: Desired, role: Role) -> dict[str, Any]:
    of_workers: dict[str, Any] = found.workers[role]["spec"]["template"]
    return of_workers


def pods(found: Desired) -> list[dict[str, Any]]:
    gateway = named(found, "Deployment", "m-gateway")["spec"]["template"]
    return [*(template(found, role) for role in found.workers), gateway]


def container(template: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = template["spec"]["containers"][0]
    return first


def test_every_pod_is_restricted_and_without_a_token_unless_it_asks_the_api() -> None:
    for template in pods(wanted(source="hf://org/name")):
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 65532
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in (*spec["containers"], *spec["initContainers"]):
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        assert not {"hostNetwork", "hostIPC", "hostPID"} & set(spec)
    prefill, decode, gateway = pods(wanted())
    assert [one["spec"]["automountServiceAccountToken"] for one in (prefill, decode, gateway)] == [False, False, True]


def test_only_a_worker_with_an_rdma_device_is_root_and_may_lock_memory() -> None:
    found = wanted(source="hf://o/n", decode={"resources": {"limits": {"rdma/hca": 1, "nvidia.com/gpu": 1}}})
    decode = template(found, Role.DECODE)
    assert container(decode)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        "runAsNonRoot": False,
        "runAsUser": 0,
    }
    assert container(decode)["resources"] == {
        "requests": {"cpu": "100m", "memory": "256Mi"},
        "limits": {"rdma/hca": "1", "nvidia.com/gpu": "1"},
    }
    others = [*decode["spec"]["initContainers"], *(container(one) for one in pods(found) if one is not decode)]
    assert len(others) == 3
    assert not [one for one in others if "add" in one["securityContext"]["capabilities"]]
    assert not [one for one in others if "runAsUser" in one["securityContext"]]


def test_root_without_a_right_over_others_files_reads_its_volumes() -> None:
    """Root without CAP_DAC_OVERRIDE is held to modes: Secrets are root's, of the Pod's group, mode 0440."""
    decode = template(wanted(decode={"resources": {"limits": {"rdma/hca": 1}}}), Role.DECODE)["spec"]
    assert decode["securityContext"]["fsGroup"] == decode["securityContext"]["runAsGroup"] == 65532
    assert {one["name"]: one.get("secret", {}).get("defaultMode") for one in decode["volumes"]} == {
        "settings": None,
        "secret": 0o440,
        "tmp": None,
        "shm": None,
    }


def test_only_ucx_needs_shared_memory() -> None:
    volumes = [one["name"] for one in template(wanted(kv={"transport": "ucx/tcp"}), Role.DECODE)["spec"]["volumes"]]
    assert "shm" not in volumes and "tmp" in volumes


def test_a_pod_has_requests_where_its_pool_says_nothing_of_the_kind() -> None:
    found = wanted(decode={"resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}})
    prefill, decode, gateway = (container(template)["resources"] for template in pods(found))
    assert prefill == gateway == {"requests": {"cpu": "100m", "memory": "256Mi"}}
    assert decode == {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}


def test_probes_grace_and_drain_belong_together() -> None:
    found = wanted(failurePolicy={"drainSeconds": 20.5})
    for one in pods(found):
        assert one["spec"]["terminationGracePeriodSeconds"] == 21 + 15
        assert container(one)["readinessProbe"]["httpGet"]["path"] == "/ready"
        assert container(one)["livenessProbe"]["httpGet"]["path"] == "/health"
    assert container(pods(found)[2])["lifecycle"] == {"preStop": {"sleep": {"seconds": 3}}}
    assert "lifecycle" not in container(template(found, Role.DECODE))


def test_the_settings_files_parse_to_what_the_processes_take() -> None:
    found = wanted(
        servedName="Qwen/Qwen3",
        kv={"blockTokens": 32, "transport": "tcp", "blocks": 99},
        prefill={"maxRunning": 8, "resources": {"limits": {"cpu": "1500m"}}},
        routing={"indexKeys": 5},
    )
    for role in Role:
        item = named(found, "ConfigMap", f"m-{role.value}-{found.revision}")
        settings = parse(WorkerSettings, json.loads(item["data"]["settings.json"]))
        assert (settings.revision, settings.model_name, settings.kv.num_blocks) == (found.revision, "Qwen/Qwen3", 99)
        assert (settings.host, settings.port, settings.control_port) == ("0.0.0.0", 9000, 9001)
        assert settings.model_path == "/models/demo_model/model"
        assert (settings.engine.max_running, settings.engine.threads) == (
            (8, 2) if role is Role.PREFILL else (64, None)
        )
        assert item["immutable"]
    gateway = parse(GatewaySettings, json.loads(named(found, "ConfigMap", "m-gateway")["data"]["settings.json"]))
    assert (gateway.discovery, gateway.model_name, gateway.namespace, gateway.index_keys) == (
        "kubernetes",
        "m",
        "ns",
        5,
    )
    assert gateway.served_name == "Qwen/Qwen3"


@pytest.mark.parametrize(
    ("source", "path", "volume"),
    [
        ("demo_model/model", "/models/demo_model/model", None),
        ("./demo_model/model", "/models/demo_model/model", None),
        ("/srv/model", "/srv/model", None),
        ("pvc://claim/a/b", "/models/a/b", {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}),
        ("pvc://claim", "/models", {"persistentVolumeClaim": {"claimName": "claim", "readOnly": True}}),
        ("oci://r.example/m:1", "/models", {"image": {"reference": "r.example/m:1", "pullPolicy": "IfNotPresent"}}),
        ("hf://org/name@v1", "/models", {"emptyDir": {}}),
    ],
)
def test_a_source_is_mounted_in_workers_and_gateway(source: str, path: str, volume: dict[str, Any] | None) -> None:
    found = wanted(source=source)
    for one in pods(found):
        given = [item for item in one["spec"]["volumes"] if item["name"] == "model"]
        assert given == ([] if volume is None else [{"name": "model", **volume}])
        mounts = [item for item in container(one)["volumeMounts"] if item["name"] == "model"]
        assert mounts == ([] if volume is None else [{"name": "model", "mountPath": "/models", "readOnly": True}])
    settings = json.loads(named(found, "ConfigMap", "m-gateway")["data"]["settings.json"])
    assert settings["model_path"] == path


def test_a_repository_is_fetched_with_its_weights_for_workers_only() -> None:
    found = wanted(source="hf://org/name@v1", engine={"env": {"HF_TOKEN": "t"}})
    worker, _, gateway = pods(found)
    command = worker["spec"]["initContainers"][0]["command"]
    assert command[:7] == ["hf", "download", "org/name", "--revision", "v1", "--local-dir", "/models"]
    assert "*.safetensors" not in command
    assert "*.safetensors" in gateway["spec"]["initContainers"][0]["command"]
    assert {"name": "HF_TOKEN", "value": "t"} in gateway["spec"]["initContainers"][0]["env"]


def test_who_a_worker_is_cannot_be_overridden_by_the_model() -> None:
    found = wanted(engine={"env": {"BATON_WORKER_ID": "x", "A": "1"}})
    env = container(template(found, Role.DECODE))["env"]
    assert [one["name"] for one in env] == ["A", "BATON_WORKER_ID", "BATON_ADVERTISE_HOST"]
    assert env[1]["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_pools_have_their_own_place() -> None:
    found = wanted(
        decode={
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {"x": 1}},
            "labels": {"team": "a", "baton.dev/role": "mine"},
            "annotations": {"networks": "rdma"},
            "runtimeClassName": "nvidia",
            "serviceAccountName": "mine",
        }
    )
    decode = template(found, Role.DECODE)
    assert decode["spec"]["tolerations"] == [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert decode["spec"]["nodeSelector"] == {"gpu": "h200"} and decode["spec"]["runtimeClassName"] == "nvidia"
    assert decode["metadata"]["labels"]["team"] == "a" and decode["metadata"]["labels"]["baton.dev/role"] == "decode"
    assert decode["metadata"]["annotations"] == {"networks": "rdma"}
    assert "nodeSelector" not in template(found, Role.PREFILL)["spec"]


def test_an_aggregated_model_has_nothing_of_prefill() -> None:
    found = wanted(mode="aggregated")
    assert set(found.workers) == {Role.DECODE}
    assert not [item for item in found.objects if "prefill" in item["metadata"]["name"]]


def test_monitors_are_there_only_where_their_kinds_are() -> None:
    kinds = {item["kind"] for item in desired(model(), OWNER, SETTINGS, frozenset({"PodMonitor"})).objects}
    assert "PodMonitor" in kinds and "ServiceMonitor" not in kinds


SAME_REVISION: list[dict[str, Any]] = [
    {"decode": {"replicas": 5, "minReplicas": 1, "maxReplicas": 9}},
    {"routing": {"minRemotePrefillTokens": 1}},
    {"slo": {"ttft": {"targetMs": 5}}},
    {"rollout": {"maxSurge": 3}},
    {"mode": "aggregated"},
    {"failurePolicy": {"onPrefillFailure": "fail"}},
]
NEW_REVISION: list[dict[str, Any]] = [
    {"source": "other"},
    {"servedName": "x"},
    {"engine": {"image": "mine:1"}},
    {"engine": {"env": {"A": "1"}}},
    {"kv": {"blockTokens": 32}},
    {"decode": {"maxRunning": 3}},
    {"prefill": {"resources": {"limits": {"cpu": 1}}}},
    {"decode": {"nodeSelector": {"a": "b"}}},
    {"failurePolicy": {"drainSeconds": 5}},
]


@pytest.mark.parametrize("spec", SAME_REVISION, ids=str)
def test_scaling_routing_and_objectives_are_no_new_revision(spec: dict[str, Any]) -> None:
    assert revision_of(model(**spec), SETTINGS) == revision_of(model(), SETTINGS)


@pytest.mark.parametrize("spec", NEW_REVISION, ids=str)
def test_what_a_worker_depends_on_is_a_new_revision(spec: dict[str, Any]) -> None:
    assert revision_of(model(**spec), SETTINGS) != revision_of(model(), SETTINGS)
    assert len(revision_of(model(**spec), SETTINGS)) == 10


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"engine": {"type": "vllm"}}, "spec.engine.type"),
        ({"engine": {"args": ["--x"]}}, "spec.engine.args"),
        ({"kv": {"dtype": "bfloat16"}}, "spec.kv.dtype"),
        ({"kv": {"transport": "cma"}}, "spec.kv.transport"),
        ({"kv": {"transport": "ucx/shm"}}, "spec.kv.transport"),
        ({"kv": {"tiers": [{"name": "host", "bytes": 1}]}}, "spec.kv.tiers"),
        ({"autoscaling": {"enabled": True}, "slo": {"ttft": {"targetMs": 1}}}, "spec.autoscaling.enabled"),
        ({"decode": {"parallelism": {"tensor": 8}}}, "spec.decode.parallelism"),
    ],
)
def test_what_this_release_does_not_do_is_refused_by_name(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as refused:
        wanted(**spec)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("name", "is_so"),
    [
        *((f"m{end}", True) for end in ("", "-gateway", "-workers", "-secret", "-api-key", "-prefill", "-decode")),
        ("m-decode-0123456789", True),
        *((name, False) for name in ("m-x", "mm", "m-gateway-2", "m-decode-012345678", "x-m", "m-decode-012345678g")),
    ],
)
def test_which_names_children_may_have(name: str, is_so: bool) -> None:
    assert names.is_childs_name("m", name) == is_so


def test_every_object_made_has_such_a_name() -> None:
    found = desired(model(), OWNER, SETTINGS, frozenset(("PodMonitor", "ServiceMonitor")))
    made = [item["metadata"]["name"] for item in found.objects] + list(found.secrets)
    assert len(made) == 19 and all(names.is_childs_name(OWNER.name, name) for name in made)
