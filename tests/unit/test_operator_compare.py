"""Whether an object is as wanted already: what the API server adds or rewrites is no difference, everything else is."""

from __future__ import annotations

from typing import Any

import pytest

from baton_operator.compare import Compared, difference

SAME: list[tuple[Any, Any]] = [
    ({"a": 1}, {"a": 1, "b": 2}),
    ({"a": ""}, {}),
    ({"a": {}}, {}),
    ({"a": []}, {}),
    ({"a": False}, {}),
    ({"a": None}, {}),
    ({"limits": {"cpu": "1000m"}}, {"limits": {"cpu": "1"}}),
    ({"limits": {"memory": "1.5Gi"}}, {"limits": {"memory": "1536Mi"}}),
    ({"containers": [{"name": "a"}]}, {"containers": [{"name": "injected"}, {"name": "a", "image": "x"}]}),
    ({"env": [{"name": "A", "value": ""}]}, {"env": [{"name": "A"}]}),
    ({"ports": [{"port": 80}]}, {"ports": [{"port": 80, "protocol": "TCP"}]}),
    ({"command": ["a", "b"]}, {"command": ["a", "b"]}),
]
DIFFERENT: list[tuple[Any, Any, str]] = [
    ({"a": 1}, {"a": 2}, "a"),
    ({"a": 1}, {}, "a"),
    ({"a": True}, {"a": 1}, "a"),
    ({"a": {"b": 1}}, {"a": 3}, "a"),
    ({"a": {"b": {"c": "x"}}}, {"a": {"b": {"c": "y"}}}, "a.b.c"),
    ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1001m"}}, "limits.cpu"),
    ({"limits": {"cpu": "1"}}, {"limits": {}}, "limits.cpu"),
    ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "x"}}, "limits.cpu"),
    (
        {"containers": [{"name": "a", "image": "x"}]},
        {"containers": [{"name": "a", "image": "y"}]},
        "containers[0].image",
    ),
    ({"containers": [{"name": "a"}]}, {"containers": [{"name": "b"}]}, "containers[0]"),
    ({"command": ["a"]}, {"command": ["a", "b"]}, "command"),
    ({"command": ["a", "b"]}, {"command": ["b", "a"]}, "command[0]"),
    ({"command": ["a"]}, {"command": "a"}, "command"),
]


@pytest.mark.parametrize(("wanted", "found"), SAME)
def test_is_as_wanted(wanted: Any, found: Any) -> None:
    assert difference(wanted, found) is None


@pytest.mark.parametrize(("wanted", "found", "path"), DIFFERENT)
def test_is_not_as_wanted(wanted: Any, found: Any, path: str) -> None:
    assert difference(wanted, found) == path


def test_an_object_is_compared_again_when_its_version_has_moved() -> None:
    def service(version: str, **spec: Any) -> dict[str, Any]:
        return {"kind": "Service", "metadata": {"name": "m", "resourceVersion": version}, "spec": spec}

    compared, wanted = Compared(), {"kind": "Service", "metadata": {"name": "m"}, "spec": {"port": 80}}
    assert compared.difference(wanted, service("5", port=80)) is None
    assert compared.difference(wanted, service("6", port=81)) == "spec.port"
    assert compared.difference(wanted, service("6", port=81)) == "spec.port"
    assert compared.difference(wanted, service("7", port=80)) is None
    unversioned = service("", port=80)
    assert compared.difference(wanted, unversioned) is None
    assert compared.difference(wanted, service("", port=82)) == "spec.port"
