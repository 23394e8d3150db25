"""The Model CRD's OpenAPI v3 structural schema, made from the classes in `crd`. Pure.

Source: Kubernetes, "Specifying a structural schema": every property typed, no $ref, int-or-string by its extension.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import MISSING
from typing import Any

from .crd import ModelSpec
from .settings import camel_case, members, rule_of

Schema = dict[str, Any]
_SCALARS = {bool: "boolean", int: "integer", float: "number", str: "string"}


def json_schema() -> Schema:
    """Schema of the whole resource, as it stands under `openAPIV3Schema`."""
    return {
        "type": "object",
        "description": "A model served by separate prefill and decode pools behind an OpenAI-compatible gateway.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _object(ModelSpec),
            "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
        },
    }


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
    limits = {"minimum": rule.low, "maximum": rule.high, "enum": list(rule.choices) or None}
    pattern = None if rule.pattern is None else f"^({rule.pattern})$"
    default = {} if _default(field) is None else {"default": _default(field)}
    return (
        schema | {name: value for name, value in {**limits, "pattern": pattern}.items() if value is not None} | default
    )


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
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(args[1])}
    return {"type": _SCALARS[hint]}


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=2))
