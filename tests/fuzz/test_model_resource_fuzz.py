"""Whatever a resource file holds, it is a Model or a SettingError, never anything else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from baton_api.crd import API_VERSION, KIND, Model, ModelSpec, parse_model
from baton_api.crd_schema import json_schema
from baton_api.errors import SettingError

Path = tuple[str, ...]
SCALARS = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        2,
        3,
        64,
        -1,
        0.5,
        1e9,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "auto",
        "ucx",
        "cpu",
        "x",
    ]
)
ANYTHING = st.recursive(
    SCALARS | st.text(max_size=4) | st.integers() | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=2),
    max_leaves=4,
)


def leaves(schema: dict[str, Any], path: Path = ()) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every field of the schema that holds no further fields."""
    for name, inner in schema["properties"].items():
        if "properties" in inner:
            yield from leaves(inner, (*path, name))
        yield (*path, name), inner


def right(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Small values within the field's limits; for what is not a number or a choice, anything."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema.get("type") in ("integer", "number"):
        low = int(schema.get("minimum", 0))
        return st.integers(low, min(low + 8, int(schema.get("maximum", low + 8))))
    return ANYTHING


LEAVES = tuple(leaves(json_schema()["properties"]["spec"]))
CHANGES = st.lists(
    st.sampled_from(LEAVES).flatmap(lambda leaf: st.tuples(st.just(leaf[0]), right(leaf[1]) | ANYTHING)), max_size=4
)


def accepted(raw: Any) -> Model | None:
    try:
        return parse_model(raw)
    except SettingError as error:
        refused = error
    assert refused.field and refused.message.startswith(refused.field)
    return None


def changed(changes: list[tuple[Path, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = {"source": "m"}
    for path, value in changes:
        at = spec
        for name in path[:-1]:
            inner = at.get(name)
            at[name] = at = inner if isinstance(inner, dict) else {}
        at[path[-1]] = value
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "m"}, "spec": spec}


@given(ANYTHING)
@settings(max_examples=100, deadline=None)
def test_anything_at_all(raw: Any) -> None:
    assert accepted(raw) is None


@given(CHANGES)
@settings(max_examples=400, deadline=None)
def test_a_few_fields_set_to_anything(changes: list[tuple[Path, Any]]) -> None:
    raw = changed(changes)
    before = copy.deepcopy(raw)
    model = accepted(raw)
    assert repr(raw) == repr(before)
    if model is not None:
        check(model.spec)


def check(spec: ModelSpec) -> None:
    """Invariant I8, and that the roles fit the mode."""
    for pool in (spec.prefill_pool, spec.decode):
        low = pool.replicas if pool.min_replicas is None else pool.min_replicas
        high = pool.replicas if pool.max_replicas is None else pool.max_replicas
        assert low <= pool.replicas <= high
    assert spec.prefill_pool.replicas == 0 or spec.mode != "aggregated"
