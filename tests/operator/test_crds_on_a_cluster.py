"""The CRDs on a real API server: what it refuses and with which words, what it fills in, and that the parser agrees."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from baton_api.crd import API_VERSION, KIND, Model, parse_model
from baton_api.crd_rules import RULES
from baton_api.errors import SettingError
from support.fuzzed_models import fuzzed
from support.kube_cluster import Api, Cluster

MODELS = "/apis/baton.dev/v1alpha1/namespaces/default/models?dryRun=All&fieldValidation=Strict"
POOLS = MODELS.replace("models", "pools")


def model(name: str = "m", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"source": "some/model", **copy.deepcopy(spec)},
    }


def device(amount: Any) -> dict[str, Any]:
    return {"nvidia.com/gpu": amount}


TAINT = {"key": "a"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"source": None}, "spec.source"),
    ({"source": ""}, "spec.source"),
    ({"source": "s3://bucket/model"}, "spec.source"),
    ({"source": "hf://just-a-name"}, "spec.source"),
    ({"sources": "x"}, "spec.sources"),
    ({"engine": {"image": "a b"}}, "spec.engine.image"),
    ({"mode": "both"}, "spec.mode"),
    ({"prefill": {"replicas": -1}}, "spec.prefill.replicas"),
    ({"prefill": {"replicas": 5000}}, "spec.prefill.replicas"),
    ({"prefill": {"minReplicas": 2}}, "spec.prefill.minReplicas"),
    ({"prefill": {"replicas": 3, "maxReplicas": 2}}, "spec.prefill.maxReplicas"),
    ({"decode": {"minReplicas": 2}}, "spec.decode.minReplicas"),
    ({"decode": {"replicas": 3, "maxReplicas": 2}}, "spec.decode.maxReplicas"),
    ({"decode": {"replicas": 0}}, "spec.decode.replicas"),
    ({"prefill": {"maxBatchedTokens": 32}}, "spec.prefill.maxBatchedTokens"),
    ({"decode": {"maxRunning": 1024}}, "spec.decode.maxBatchedTokens"),
    ({"engine": {"maxBatchedTokens": 8}}, "maxBatchedTokens"),
    ({"mode": "aggregated", "prefill": {"replicas": 1}}, "spec.prefill.replicas"),
    ({"mode": "disaggregated", "prefill": {"replicas": 0}}, "spec.prefill.replicas"),
    ({"routing": {"keys": "text"}}, "spec.routing.keys"),
    ({"rollout": {"maxSurge": 0}}, "spec.rollout.maxSurge"),
    ({"routing": {"processes": 3, "maxInFlight": 2}}, "spec.routing.processes"),
    ({"routing": {"maxConnections": 0}}, "spec.routing.maxConnections"),
    ({"routing": {"maxConnectionsPerAddress": 0}}, "spec.routing.maxConnectionsPerAddress"),
    ({"autoscaling": {"enabled": True}}, "spec.autoscaling.enabled"),
    ({"slo": {"ttft": {"targetMs": 0}}}, "spec.slo.ttft.targetMs"),
    ({"slo": {"ttft": {"targetMs": 1, "quantile": 0}}}, "spec.slo.ttft.quantile"),
    ({"slo": {"ttft": {"targetMs": 1, "quantile": 1}}}, "spec.slo.ttft.quantile"),
    ({"decode": {"resources": {"limits": {"memory": "80 GB"}}}}, "spec.decode.resources.limits.memory"),
    ({"decode": {"resources": {"limits": {"memory": "-1"}}}}, "spec.decode.resources.limits.memory"),
    ({"decode": {"resources": {"limits": {"gpu": 1}}}}, "spec.decode.resources.limits"),
    ({"prefill": {"resources": {"limits": device("1500m")}}}, "spec.prefill.resources.limits"),
    ({"decode": {"resources": {"limits": device("1500m")}}}, "spec.decode.resources.limits"),
    ({"decode": {"resources": {"requests": device(1)}}}, "spec.decode.resources.requests"),
    ({"decode": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}}, "spec.decode.resources.requests"),
    ({"prefill": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}}}, "spec.prefill.resources.requests"),
    ({"prefill": {"resources": {"requests": device(1), "limits": device(2)}}}, "spec.prefill.resources.requests"),
    ({"decode": {"nodeSelector": {"a b": "c"}}}, "spec.decode.nodeSelector"),
    ({"decode": {"labels": {"a": "not a label"}}}, "spec.decode.labels.a"),
    ({"prefill": {"tolerations": [{"operator": "Equal"}]}}, "spec.prefill.tolerations[0].key"),
    (
        {"decode": {"tolerations": [{**TAINT, "operator": "Exists", "value": "b"}]}},
        "spec.decode.tolerations[0].value",
    ),
    (
        {"decode": {"tolerations": [{**TAINT, "tolerationSeconds": 3}]}},
        "decode.tolerations[0].tolerationSeconds",
    ),
    ({"decode": {"priorityClassName": "No_Such"}}, "spec.decode.priorityClassName"),
    ({"engine": {"env": {"A=B": "1"}}}, "spec.engine.env"),
    ({"engine": {"args": ["x"] * 65}}, "spec.engine.args"),
    ({"kv": {"transport": "rdma"}}, "spec.kv.transport"),
    ({"kv": {"tiers": [{"name": "host"}]}}, "spec.kv.tiers[0].bytes"),
]


@pytest.mark.parametrize(("spec", "field"), REFUSED, ids=[f"{field}-{n}" for n, (_, field) in enumerate(REFUSED)])
def test_a_wrong_field_is_refused_by_the_api_server_and_by_the_parser(
    api: Api, spec: dict[str, Any], field: str
) -> None:
    status, answer = api("POST", MODELS, model(**spec))
    assert status in (400, 422), answer
    assert field in answer["message"]
    with pytest.raises(SettingError):
        parse_model(model(**spec))


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ({"source": "s3://bucket/model"}, "(it is s3://bucket/model)"),
        ({"routing": {"keys": "text"}}, "(it is mode auto)"),
    ],
)
def test_the_value_of_a_wrong_text_is_told(api: Api, spec: dict[str, Any], value: str) -> None:
    assert value in api("POST", MODELS, model(**spec))[1]["message"]


def test_every_cross_field_rule_is_refused_by_some_row_above(api: Api) -> None:
    said = "\n".join(api("POST", MODELS, model(**spec))[1]["message"] for spec, _ in REFUSED)
    assert not [rule.message for rule in RULES if rule.message not in said and "*" not in rule.at]


@pytest.mark.parametrize("name", ["1m", "m" * 56, "Upper"])
def test_a_name_that_no_service_could_have_is_refused(api: Api, name: str) -> None:
    status, answer = api("POST", MODELS, model(name))
    assert status == 422 and "metadata.name" in answer["message"]


ACCEPTED: list[dict[str, Any]] = [
    {},
    {"source": "pvc://claim/some/path"},
    {"source": "hf://org/name@main"},
    {"source": "oci://registry.example/models/m:1"},
    {"mode": "aggregated", "routing": {"keys": "text"}},
    {"mode": "aggregated", "prefill": {"replicas": 0}, "decode": {"replicas": 0}},
    {"autoscaling": {"enabled": True}, "slo": {"tpot": {"targetMs": 20}}},
    {"rollout": {"maxSurge": 0, "maxUnavailable": 1}},
    {
        "decode": {
            "replicas": 2,
            "minReplicas": 1,
            "maxReplicas": 4,
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {**device(1), "rdma/hca": "2"},
            },
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
            "labels": {"team": "a"},
            "annotations": {"k8s.v1.cni.cncf.io/networks": "rdma, rdma"},
            "runtimeClassName": "nvidia",
        }
    },
]


@pytest.mark.parametrize("spec", ACCEPTED, ids=[str(n) for n in range(len(ACCEPTED))])
def test_what_is_right_is_accepted_with_its_defaults_and_parses_to_the_same_model(
    api: Api, spec: dict[str, Any]
) -> None:
    status, answer = api("POST", MODELS, model(**spec))
    assert status == 201, answer
    assert parse_model(answer).spec == parse_model(model(**spec)).spec
    assert answer["spec"]["kv"]["blockTokens"] == 16


def test_kubectl_explains_every_field_and_lists_short_names(cluster: Cluster) -> None:
    text = cluster.kubectl("explain", "model", "--recursive")
    assert "blockTokens" in text and "drainSeconds" in text
    assert "time to first token" in cluster.kubectl("explain", "mdl.spec.slo.ttft")
    assert "<no description>" not in cluster.kubectl("explain", "model.spec.decode")
    assert "kubectl scale" in cluster.kubectl("explain", "pool.spec.replicas")
    resources = cluster.kubectl("api-resources", "--api-group=baton.dev")
    assert "mdl" in resources and "pools" in resources


def test_a_pool_keeps_its_role_and_has_a_scale(api: Api) -> None:
    pool = {
        "apiVersion": API_VERSION,
        "kind": "Pool",
        "metadata": {"name": "scaled"},
        "spec": {"role": "decode", "model": "m", "minReplicas": 1},
    }
    path = "/apis/baton.dev/v1alpha1/namespaces/default/pools"
    assert api("POST", path, pool)[0] == 201
    try:
        scale = api("GET", f"{path}/scaled/scale")[1]
        assert scale["spec"]["replicas"] == 1
        merge = "application/merge-patch+json"
        assert api("PATCH", f"{path}/scaled/scale", {"spec": {"replicas": 3}}, merge)[0] == 200
        assert api("GET", f"{path}/scaled")[1]["spec"]["replicas"] == 3
        status, answer = api("PATCH", f"{path}/scaled", {"spec": {"role": "prefill"}}, merge)
        assert status == 422 and "spec.role" in answer["message"]
        status, answer = api("PATCH", f"{path}/scaled", {"spec": {"maxReplicas": 1, "minReplicas": 2}}, merge)
        assert status == 422 and "spec.minReplicas" in answer["message"]
    finally:
        api("DELETE", f"{path}/scaled")


def test_whole_numbers_written_with_a_point_come_back_without(api: Api) -> None:
    status, answer = api("POST", MODELS, model(decode={"threads": 1.0}))
    assert status == 201 and parse_model(answer).spec.decode.threads == 1


FUZZED = 800


def parsed_or_error(raw: dict[str, Any]) -> Model | SettingError:
    try:
        return parse_model(raw)
    except SettingError as error:
        return error


def test_fuzzed_models_are_refused_naming_a_field_or_accepted_and_then_parsed_as_well(api: Api) -> None:
    """Server and parser agree: neither takes what the other refuses."""
    draw = random.Random(20261125)
    accepted = 0
    for _ in range(FUZZED):
        made = fuzzed(draw)
        status, answer = api("POST", MODELS, made)
        parsed = parsed_or_error(made)
        if isinstance(parsed, SettingError):
            assert status in (400, 422), f"only the parser refuses {json.dumps(made)}: {parsed.message}"
            assert "spec" in answer["message"] and parsed.field.startswith("spec"), answer["message"]
        else:
            assert status == 201, f"only the API server refuses {json.dumps(made)}: {answer['message']}"
            assert parse_model(answer).spec == parsed.spec
            accepted += 1
    assert FUZZED / 10 < accepted < FUZZED * 9 / 10
