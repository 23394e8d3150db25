"""The Model resource: what is accepted, what is refused and with which words, and the CRD's schema made from it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton_api.crd import API_VERSION, KIND, Model, PoolSpec, parse_model
from baton_api.crd_schema import json_schema
from baton_api.errors import SettingError
from baton_api.settings import camel_case

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/model_schema.json"
SMALLEST: dict[str, Any] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "m"},
    "spec": {"source": "some/model"},
}


def resource(**spec: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SMALLEST), "spec": {"source": "some/model", **spec}}


def test_only_the_source_is_required_and_everything_else_has_a_default() -> None:
    model = parse_model(SMALLEST)
    assert model.name == "m"
    assert (model.spec.prefill_pool.replicas, model.spec.decode.replicas, model.spec.mode) == (1, 1, "auto")


def test_fields_are_written_in_camel_case() -> None:
    model = parse_model(
        resource(
            servedName="Qwen/Qwen3-0.6B",
            prefill={"replicas": 2, "minReplicas": 1, "maxReplicas": 4, "maxBatchedTokens": 64},
            kv={"blockTokens": 32, "leaseSeconds": 5, "tiers": [{"name": "host", "bytes": 1024}]},
            slo={"ttft": {"targetMs": 300, "quantile": 0.9}},
            failurePolicy={"onPrefillFailure": "fail"},
            decode={"resources": {"limits": {"nvidia.com/gpu": 1, "memory": "80Gi"}}},
        )
    )
    spec = model.spec
    assert model.name == "Qwen/Qwen3-0.6B"
    assert spec.prefill == PoolSpec(replicas=2, min_replicas=1, max_replicas=4, max_batched_tokens=64)
    assert (spec.kv.block_tokens, spec.kv.lease_seconds, spec.kv.tiers[0].bytes) == (32, 5.0, 1024)
    assert spec.slo.ttft is not None and spec.slo.ttft.target_ms == 300.0
    assert spec.failure_policy.on_prefill_failure == "fail"
    assert spec.decode.resources.limits == {"nvidia.com/gpu": 1, "memory": "80Gi"}


def test_an_aggregated_model_has_no_prefill_workers() -> None:
    assert parse_model(resource(mode="aggregated")).spec.prefill_pool.replicas == 0


def test_what_the_api_server_adds_is_left_alone() -> None:
    metadata = {"name": "m", "uid": "1", "resourceVersion": "7", "managedFields": [], "labels": {"a": "b"}}
    model = parse_model({**SMALLEST, "metadata": metadata, "status": {"anything": 1}})
    assert model.metadata.labels == {"a": "b"}


SPECS: list[tuple[dict[str, Any], str, str]] = [
    ({"source": None}, "spec.source", "is missing"),
    ({"source": ""}, "spec.source", "does not match"),
    ({"source": 7}, "spec.source", "is int"),
    ({"sources": "x"}, "spec.sources", "is not a known field"),
    ({"mode": "both"}, "spec.mode", "use one of auto, disaggregated, aggregated"),
    ({"prefill": 2}, "spec.prefill", "is not a mapping"),
    ({"prefill": {"replicas": "2"}}, "spec.prefill.replicas", "give a int"),
    ({"prefill": {"replicas": True}}, "spec.prefill.replicas", "true is bool; give a int"),
    ({"prefill": {"replicas": 1 << 20000}}, "spec.prefill.replicas", "an integer of 20001 bits is above 4096"),
    ({"prefill": "x" * 5000}, "spec.prefill", "xx'... is not a mapping"),
    ({"mode": list(range(5000))}, "spec.mode", "[0, 1, 2, 3, ...] is list; give a str"),
    ({"source": {"a": {"b": {"c": 1}}}}, "spec.source", "{'a': {'b': {...}}} is dict; give a str"),
    ({"x" * 5000: 1}, "spec." + "x" * 100, "is not a known field"),
    ({"prefill": {"replicas": -1}}, "spec.prefill.replicas", "is below 0"),
    ({"prefill": {"replicas": 5000}}, "spec.prefill.replicas", "is above 4096"),
    ({"prefill": {"min_replicas": 1}}, "spec.prefill.min_replicas", "is not a known field"),
    ({"prefill": {"minReplicas": 2}}, "spec.prefill.minReplicas", "is above replicas 1"),
    ({"prefill": {"maxBatchedTokens": 32}}, "spec.prefill.maxBatchedTokens", "is below maxRunning 64"),
    ({"engine": {"maxBatchedTokens": 8}}, "spec.engine.maxBatchedTokens", "is below maxRunning 64"),
    ({"decode": {"replicas": 3, "maxReplicas": 2}}, "spec.decode.maxReplicas", "is below replicas 3"),
    ({"decode": {"replicas": 0}}, "spec.decode.replicas", "leaves prefill without decode"),
    ({"decode": {"device": "gpu"}}, "spec.decode.device", "does not match"),
    ({"decode": {"parallelism": {"tensor": 0}}}, "spec.decode.parallelism.tensor", "is below 1"),
    ({"decode": {"resources": {"limits": {"cpu": 1.5}}}}, "spec.decode.resources.limits.cpu", "give a int or str"),
    ({"mode": "aggregated", "prefill": {"replicas": 1}}, "spec.prefill.replicas", "does not fit mode aggregated"),
    ({"routing": {"keys": "text"}}, "spec.routing.keys", "does not fit mode auto"),
    ({"routing": {"processes": 3, "maxInFlight": 2}}, "spec.routing.processes", "is above maxInFlight 2"),
    ({"mode": "disaggregated", "prefill": {"replicas": 0}}, "spec.prefill.replicas", "use 1 or more"),
    ({"kv": {"transport": "rdma"}}, "spec.kv.transport", "use one of ucx, ucx/tcp, ucx/shm, tcp"),
    ({"kv": {"blockTokens": 0}}, "spec.kv.blockTokens", "is below 1"),
    ({"kv": {"leaseSeconds": float("nan")}}, "spec.kv.leaseSeconds", "is below 0.1"),
    ({"kv": {"leaseSeconds": 10**400}}, "spec.kv.leaseSeconds", "is no float"),
    ({"kv": {"tiers": {"name": "host"}}}, "spec.kv.tiers", "is not a list"),
    ({"kv": {"tiers": [{"name": "host", "bytes": 1}, {"name": "tape", "bytes": 1}]}}, "spec.kv.tiers[1].name", "host"),
    ({"slo": {"ttft": {"quantile": 0.9}}}, "spec.slo.ttft.targetMs", "is missing"),
    ({"slo": {"ttft": {"targetMs": 1, "quantile": 1}}}, "spec.slo.ttft.quantile", "is above 0.9999"),
    ({"autoscaling": {"enabled": True}}, "spec.autoscaling.enabled", "give spec.slo.ttft or .tpot"),
    ({"rollout": {"maxSurge": 0}}, "spec.rollout.maxSurge", "stops a rollout"),
    ({"engine": {"type": "tgi"}}, "spec.engine.type", "use one of native, vllm, sglang"),
    ({"engine": {"env": {"A": 1}}}, "spec.engine.env.A", "give a str"),
    ({"engine": {"env": ["A=1"]}}, "spec.engine.env", "is not a mapping"),
    ({"engine": {"args": "--x"}}, "spec.engine.args", "is not a list"),
    ({"engine": {"args": ["x"] * 65}}, "spec.engine.args", "use 64 or fewer"),
    ({"engine": {"env": {"A-B": "1"}}}, "spec.engine.env.A-B", "does not match"),
    ({"source": "s3://bucket"}, "spec.source", "use a path, pvc://"),
    ({"decode": {"resources": {"limits": {"cpu": "1 m"}}}}, "spec.decode.resources.limits.cpu", "does not match"),
    ({"decode": {"resources": {"limits": {"cpu": "1" * 33}}}}, "spec.decode.resources.limits.cpu", "33 characters"),
    ({"decode": {"resources": {"limits": {"a/b": "1m"}}}}, "spec.decode.resources.limits.a/b", "is no whole number"),
    ({"decode": {"resources": {"requests": {"a/b": 1}}}}, "spec.decode.resources.requests.a/b", "cannot be shared"),
    (
        {"decode": {"resources": {"requests": {"cpu": 2}, "limits": {"cpu": "1500m"}}}},
        "spec.decode.resources.requests.cpu",
        "is above its limit",
    ),
    ({"decode": {"tolerations": [{}]}}, "spec.decode.tolerations[0].key", "is missing"),
    (
        {"decode": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}},
        "spec.decode.tolerations[0].value",
        "drop it",
    ),
    (
        {"decode": {"tolerations": [{"key": "a", "tolerationSeconds": 1}]}},
        "spec.decode.tolerations[0].tolerationSeconds",
        "NoExecute",
    ),
    ({"failurePolicy": {"onPrefillFailure": "retry"}}, "spec.failurePolicy.onPrefillFailure", "recompute, fail"),
]


@pytest.mark.parametrize(("spec", "field", "words"), SPECS, ids=[f"{field} {words}" for _, field, words in SPECS])
def test_a_wrong_field_is_named_with_its_path_and_what_would_be_right(
    spec: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(SettingError) as refused:
        parse_model(resource(**spec))
    assert refused.value.field == field
    assert words in refused.value.message
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"apiVersion": "baton.dev/v2"}, "apiVersion"),
        ({"apiVersion": None}, "apiVersion"),
        ({"kind": "Pool"}, "kind"),
        ({"metadata": {}}, "metadata.name"),
        ({"metadata": None}, "metadata.name"),
        ({"metadata": "m"}, "metadata"),
        ({"metadata": {"name": "Upper"}}, "metadata.name"),
        ({"metadata": {"name": "-m"}}, "metadata.name"),
        ({"metadata": {"name": "m" * 64}}, "metadata.name"),
        ({"metadata": {"name": "m\n"}}, "metadata.name"),
        ({"metadata": {"name": "m", "labels": {"a": 1}}}, "metadata.labels.a"),
        ({"spec": None}, "spec"),
        ({"replicas": 2}, "replicas"),
    ],
)
def test_what_is_not_a_model_of_this_version_is_refused(change: dict[str, Any], field: str) -> None:
    with pytest.raises(SettingError) as refused:
        parse_model({**SMALLEST, **change})
    assert refused.value.field == field


@pytest.mark.parametrize("raw", [None, [], "kind: Model", 7])
def test_what_is_no_mapping_is_refused(raw: Any) -> None:
    with pytest.raises(SettingError, match="is not a mapping"):
        parse_model(raw)


@pytest.mark.parametrize("file", sorted(ROOT.glob("examples/*.yaml")), ids=lambda file: file.name)
def test_every_example_is_a_model(file: Path) -> None:
    assert isinstance(parse_model(yaml.safe_load(file.read_bytes())), Model)


@pytest.mark.parametrize(
    ("python", "resource_name"), [("a", "a"), ("max_in_flight", "maxInFlight"), ("dtype", "dtype")]
)
def test_names_are_spelled_as_kubernetes_does(python: str, resource_name: str) -> None:
    assert camel_case(python) == resource_name


def test_the_schema_is_the_committed_one() -> None:
    """After a change that is meant: python -m baton_api.crd_schema > tests/golden/model_schema.json"""
    assert json_schema() == json.loads(GOLDEN.read_bytes())


def test_every_property_of_the_schema_is_typed_and_described() -> None:
    """What the API server asks of a structural schema."""

    def visit(path: str, schema: dict[str, Any]) -> None:
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert set(schema.get("required", ())) <= set(schema.get("properties", ())), path
        assert not set(schema) & {"$ref", "additionalItems", "nullable", "const"}, path
        for name, sub in schema.get("properties", {}).items():
            assert sub["description"], f"{path}.{name}"
            visit(f"{path}.{name}", sub)
        for inner in ("items", "additionalProperties"):
            if inner in schema:
                visit(f"{path}.{inner}", schema[inner])

    visit("spec", json_schema()["properties"]["spec"])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("mode", "enum"), ["auto", "disaggregated", "aggregated"]),
        (("mode", "default"), "auto"),
        (("kv", "default"), {}),
        (("kv", "properties", "blockTokens", "minimum"), 1),
        (("kv", "properties", "blockTokens", "maximum"), 1024),
        (("kv", "properties", "blocks", "type"), "integer"),
        (("slo", "properties", "ttft", "required"), ["targetMs"]),
        (("engine", "properties", "device", "pattern"), "^(auto|cpu|cuda(:[0-9]+)?)$"),
        (("engine", "properties", "args", "items"), {"type": "string"}),
        (("decode", "properties", "replicas", "default"), 1),
    ],
)
def test_limits_and_defaults_of_the_schema_are_those_of_the_parser(path: tuple[str, ...], expected: Any) -> None:
    found: Any = json_schema()["properties"]["spec"]["properties"]
    for name in path:
        found = found[name]
    assert found == expected
