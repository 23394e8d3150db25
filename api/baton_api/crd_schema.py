"""The CRDs' OpenAPI v3 structural schemas, made from the classes in `crd`, `crd_pool` and `crd_status`. Pure.

Source: Kubernetes, "Specifying a structural schema": every property typed, no $ref, int-or-string by its extension.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from .crd import MODEL_NAME, ModelSpec
from .crd_pool import PoolResourceSpec
from .crd_rules import RULES, CrossRule
from .crd_status import ModelStatus, PoolStatus
from .settings import Rule, camel_case, members, rule_of

Schema = dict[str, Any]
_SCALARS = {bool: "boolean", float: "number", str: "string"}


def json_schema() -> Schema:
    """Schema of a whole Model, as it stands under `openAPIV3Schema`."""
    schema = _resource(
        "A model served by separate prefill and decode pools behind an OpenAI-compatible gateway.",
        ModelSpec,
        ModelStatus,
    )
    schema["x-kubernetes-validations"] = [
        {
            "rule": f"self.metadata.name.matches('^({MODEL_NAME})$')",
            "message": "metadata.name does not fit: use at most 55 of a-z, 0-9 and -, a letter first",
        }
    ]
    for rule in RULES:
        place = _at(schema["properties"]["spec"], rule.at)
        place.setdefault("x-kubernetes-validations", []).append(_validation(rule))
    return schema


def pool_schema() -> Schema:
    """Schema of a whole Pool."""
    schema = _resource(
        "The workers of one role of a Model: made by the operator, scaled by whoever likes to (kubectl scale, an HPA).",
        PoolResourceSpec,
        PoolStatus,
    )
    schema["properties"]["spec"]["x-kubernetes-validations"] = [
        {
            "rule": "!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            "message": "minReplicas is above maxReplicas: lower it, or raise maxReplicas",
            "fieldPath": ".minReplicas",
        },
        *(
            {
                "rule": f"self.{name} == oldSelf.{name}",
                "message": f"{name} cannot change: make another Pool",
                "fieldPath": f".{name}",
            }
            for name in ("role", "model")
        ),
    ]
    return schema


def _resource(description: str, spec: type[Any], status: type[Any]) -> Schema:
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _object(spec),
            "status": _status(status),
        },
    }


def _status(cls: type[Any]) -> Schema:
    schema = _object(cls)
    schema["properties"]["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return schema


def _at(schema: Schema, path: tuple[str, ...]) -> Schema:
    for name in path:
        schema = schema["items"] if name == "*" else schema["properties"][name]
    return schema


def _validation(rule: CrossRule) -> Schema:
    said = {"rule": rule.cel, "message": rule.message, "fieldPath": rule.field}
    if rule.shown:
        said["messageExpression"] = f"'{rule.message} (it is ' + {rule.shown} + ')'"
    return said


def _object(cls: type[Any]) -> Schema:
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    schema: Schema = {"type": "object", "description": (cls.__doc__ or "").strip()}
    required = [camel_case(field.name) for field in fields if _required(field)]
    if required:
        schema["required"] = required
    schema["properties"] = {camel_case(field.name): _property(field, hints[field.name]) for field in fields}
    return schema


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _property(field: dataclasses.Field[Any], hint: Any) -> Schema:
    rule = rule_of(field)
    schema = _type(hint)
    if rule.description:
        schema["description"] = rule.description
    if schema.get("type") in ("array", "object") and "properties" not in schema:
        _limit_items(schema, rule)
        texts: Schema = {}
    else:
        texts = _texts(rule)
    limits = {"minimum": rule.low, "maximum": rule.high, "enum": list(rule.choices) or None, **texts}
    default = {} if _default(field) is None else {"default": _default(field)}
    fractions = _fraction_rules(rule)
    if fractions:
        schema["x-kubernetes-validations"] = fractions
    return schema | {name: value for name, value in limits.items() if value is not None} | default


def _texts(rule: Rule) -> Schema:
    pattern = {} if rule.pattern is None else {"pattern": f"^({rule.pattern})$"}
    return pattern if rule.longest is None else pattern | {"maxLength": rule.longest}


def _fraction_rules(rule: Rule) -> list[Schema]:
    """The API server cuts limits to whole numbers where the value is whole (0 passes a minimum of 0.5): those with a
    fraction are said again in CEL."""
    return [
        {"rule": f"self {sign} {limit!r}", "message": f"use {limit:g} or {word}"}
        for limit, sign, word in ((rule.low, ">=", "more"), (rule.high, "<=", "less"))
        if isinstance(limit, float) and not limit.is_integer()
    ]


def _limit_items(schema: Schema, rule: Rule) -> None:
    """How many items or values, and their pattern; a mapping's keys have theirs in CEL, as a schema cannot say it."""
    mapping = schema["type"] == "object"
    if rule.most is not None:
        schema["maxProperties" if mapping else "maxItems"] = rule.most
    schema.get("additionalProperties" if mapping else "items", {}).update(_texts(rule))
    if rule.keys is not None:
        keys = f"self.all(name, name.matches(r'^({rule.keys})$'))"
        message = f"a name does not match {rule.keys}"
        schema["x-kubernetes-validations"] = [{"rule": keys, "message": message}]


def _default(field: dataclasses.Field[Any]) -> Any:
    """The default as JSON has it; None for a field without one. A nested object's defaults stand at its own fields: {}
    makes the API server fill them in."""
    if field.default_factory is not MISSING:
        return {}
    if field.default is MISSING:
        return None
    return list(field.default) if isinstance(field.default, tuple) else field.default


def _type(hint: Any) -> Schema:
    hint, *others = members(hint)
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if others:
        return {"x-kubernetes-int-or-string": True}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _object(hint)
    if origin is tuple:
        return {"type": "array", "items": _type(args[0])}
    if origin is Mapping and args[1] is Any:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(args[1])}
    if hint is int:
        return {"type": "integer", "format": "int64"}
    return {"type": _SCALARS[hint]}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
