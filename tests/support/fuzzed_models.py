"""Models with a few fields set to anything: half of the values are within the field's own limits."""

from __future__ import annotations

import copy
import random
from typing import Any

from baton_api.crd import API_VERSION, KIND
from baton_api.crd_schema import json_schema

VALUES: tuple[Any, ...] = (
    *(True, False, 0, 1, 2, 3, 64, 4096, -1, 0.5, 1e9, 2**53, 2**63, ""),
    *(
        "auto",
        "ucx",
        "tcp",
        "cpu",
        "cuda:1",
        "x",
        "aggregated",
        "text",
        "1Gi",
        "500m",
        "a b",
        "ü",
        "pvc://c/p",
        "hf://a",
    ),
    *([], {}, ["x"], {"a": "b"}, {"cpu": 1}, {"cpu": "2"}, {"nvidia.com/gpu": 1}, [{"key": "a"}], {"targetMs": 5}),
)


def leaves(schema: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found = []
    for name, inner in schema.get("properties", {}).items():
        found += [((*path, name), inner), *leaves(inner, (*path, name))]
    return found


def fuzzed(draw: random.Random) -> dict[str, Any]:
    """A few fields of the spec set: half of the values are within the field's own limits."""
    metadata = {"name": "m", "namespace": "default"}
    made: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {"source": "some/model"},
    }
    for _ in range(draw.randint(1, 4)):
        path, schema = draw.choice(LEAVES)
        at = made["spec"]
        for name in path[:-1]:
            inner = at.get(name)
            at[name] = at = inner if isinstance(inner, dict) else {}
        at[path[-1]] = right(schema, draw) if draw.random() < 0.6 else copy.deepcopy(draw.choice(VALUES))
    return made


def right(schema: dict[str, Any], draw: random.Random) -> Any:
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if schema.get("type") in ("integer", "number"):
        low = int(schema.get("minimum", 0))
        return draw.randint(low, min(low + 80, int(schema.get("maximum", low + 80))))
    return copy.deepcopy(draw.choice(VALUES))


LEAVES = leaves(json_schema()["properties"]["spec"])
