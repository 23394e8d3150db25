"""JSON schemas for kubeconform, made from an API server's own OpenAPI document. Pure, but for `write`.

Strict: a field that the server does not know is an error, as it is for `kubectl apply`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]
REFERENCE = "#/definitions/"
LOCATION = "{{ .ResourceKind }}-{{ .Group }}-{{ .ResourceAPIVersion }}.json"
"""The name of a kind's file, as kubeconform is told it; kinds are in lower case, the core group is its version."""
INT_OR_STRING = {"type": ["string", "integer"]}
NUMBERS_TOO = {
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": INT_OR_STRING,
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "number"]},
}
"""Written as text in the document, yet the server takes numbers as well."""


def write(openapi: Json, folder: Path) -> str:
    """One file per kind; returns kubeconform's -schema-location."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, definition in openapi["definitions"].items():
        for known in definition.get("x-kubernetes-group-version-kind", ()):
            path = folder / f"{known['kind'].lower()}-{known['group'] or known['version']}-{known['version']}.json"
            path.write_text(json.dumps(standalone(openapi["definitions"], name)))
    return f"{folder}/{LOCATION}"


def standalone(definitions: Json, name: str) -> Json:
    """The schema of one definition with all that it refers to."""
    found: Json = {}
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found[one] = NUMBERS_TOO.get(one) or strict(definitions[one])
            waiting += references(found[one])
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": f"{REFERENCE}{name}",
        "definitions": found,
    }


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(reference := schema.get("$ref"), str):
            yield reference.removeprefix(REFERENCE)
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def strict(schema: Json) -> Json:
    """Without room for unknown fields, below as well."""
    made = dict(schema)
    if properties := schema.get("properties"):
        made["properties"] = {name: strict(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            made[name] = strict(schema[name])
    return made
