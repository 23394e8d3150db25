"""No field of a Model is taken and then ignored: each changes an object or is refused, but for the few named here."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from baton_api.crd import API_VERSION, KIND, ModelSpec, parse_model
from baton_api.errors import SettingError
from baton_api.settings import camel_case, members, rule_of
from baton_operator.desired import Desired, desired
from baton_operator.objects import Owner
from baton_operator.settings import OperatorSettings

Path = tuple[str, ...]
SETTINGS = OperatorSettings(prefill_image="prefill:1", decode_image="decode:1", gateway_image="gateway:1")
NO_OBJECTS = {
    "prefill.replicas": "the Pool's size: test_operator_status.py, test_rollout.py",
    "decode.replicas": "the same",
    "rollout.maxSurge": "how a rollout goes: test_rollout.py",
    "rollout.maxUnavailable": "the same",
    "slo.ttft.targetMs": "for the planner, which this release lacks; the field's description says so",
    "slo.ttft.quantile": "the same",
    "slo.tpot.targetMs": "the same",
    "slo.tpot.quantile": "the same",
    "autoscaling.scaleDownDelaySeconds": "the same; enabled is refused",
}
SAMPLES: dict[str, Any] = {
    "device": "cpu",
    "minReplicas": 1,
    "maxBatchedTokens": 1000,
    "requests": {"cpu": "1"},
    "limits": {"cpu": "1"},
    "quantile": 0.9,
}
"""Where a value made of the type alone would be wrong."""
TOLERATION = {"tolerations": [{"key": "a", "effect": "NoExecute"}]}
CONTEXTS: dict[str, dict[str, Any]] = {
    "autoscaling.enabled": {"slo": {"ttft": {"targetMs": 1}}},
    "routing.keys": {"mode": "aggregated"},
    "slo.ttft": {"slo": {"ttft": {"targetMs": 1}}},
    "slo.tpot": {"slo": {"tpot": {"targetMs": 1}}},
    "kv.tiers": {"kv": {"tiers": [{"name": "host", "bytes": 1}]}},
    "prefill.tolerations": {"prefill": TOLERATION},
    "decode.tolerations": {"decode": TOLERATION},
}
"""What has to be said beside a field, by the beginning of its path."""


def leaves(cls: type[Any], above: Path = ()) -> Iterator[tuple[Path, Any, Any]]:
    """(path, field, type) of all that can be said; "*" stands for an item of a list."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path, (hint, *_) = (*above, camel_case(field.name)), members(hints[field.name])
        if typing.get_origin(hint) is tuple and dataclasses.is_dataclass(typing.get_args(hint)[0]):
            path, hint = (*path, "*"), typing.get_args(hint)[0]
        if dataclasses.is_dataclass(hint):
            yield from leaves(typing.cast("type[Any]", hint), path)
        else:
            yield path, field, hint


def another(path: Path, field: Any, hint: Any) -> Any:
    """A value that is not the default."""
    if path[-1] in SAMPLES:
        return SAMPLES[path[-1]]
    if choices := rule_of(field).choices:
        return next(choice for choice in choices if choice != field.default)
    if hint is bool:
        return not field.default
    if hint in (int, float):
        return (field.default if isinstance(field.default, int | float) else 1) + 1
    if typing.get_origin(hint) is tuple:
        return ["x"]
    return {"x": "1"} if typing.get_origin(hint) is Mapping else "x"


def nested(path: Path, value: Any) -> Any:
    for name in reversed(path):
        value = [value] if name == "*" else {name: value}
    return value


def merged(below: Any, above: Any) -> Any:
    if isinstance(below, dict) and isinstance(above, dict):
        return {**below, **{name: merged(below.get(name), value) for name, value in above.items()}}
    if isinstance(below, list) and isinstance(above, list):
        return [merged(one, other) for one, other in zip(below, above, strict=True)]
    return above


def outcome(spec: dict[str, Any]) -> Desired | None:
    """None: refused. A spec that no API server would take is the test's mistake."""
    metadata = {"name": "m", "namespace": "ns"}
    whole = {"source": "demo_model/model", **spec}
    model = parse_model({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": whole})
    try:
        return desired(model, Owner("m", "ns", "uid-1"), SETTINGS, frozenset())
    except SettingError:
        return None


def test_every_field_changes_an_object_or_is_refused() -> None:
    found = {".".join(path): (path, another(path, field, hint)) for path, field, hint in leaves(ModelSpec)}
    assert len(found) > 80
    ignored = set()
    for name, (path, value) in found.items():
        context = next((given for start, given in CONTEXTS.items() if name.startswith(start)), {})
        changed = outcome(merged(context, nested(path, value)))
        if changed is not None and changed == outcome(context):
            ignored.add(name)
    assert ignored == set(NO_OBJECTS)
