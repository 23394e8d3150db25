"""How rights are read off an audit log and off roles."""

from __future__ import annotations

import json
from typing import Any

from support.kube.rights import granted, used

ME = "system:serviceaccount:here:me"


def line(verb: str, code: int = 200, user: str = ME, **target: Any) -> str:
    return json.dumps({"user": {"username": user}, "verb": verb, "objectRef": target, "responseStatus": {"code": code}})


def test_only_the_accounts_own_requests_count_and_refused_ones_do_not() -> None:
    lines = [
        line("list", resource="pods"),
        line("delete", resource="pods", code=403),
        line("get", resource="pods", user="system:serviceaccount:here:other"),
    ]
    assert used(lines, "here:me") == {("", "pods", "list")}


def test_a_patch_that_makes_an_object_is_a_create_too() -> None:
    lines = [
        line("patch", 201, resource="deployments", apiGroup="apps"),
        line("patch", resource="models", subresource="status"),
    ]
    assert used(lines, "here:me") == {
        ("apps", "deployments", "patch"),
        ("apps", "deployments", "create"),
        ("", "models/status", "patch"),
    }


def test_roles_add_up() -> None:
    rule = {"apiGroups": ["", "apps"], "resources": ["a"], "verbs": ["list", "watch"]}
    assert granted([{"rules": [rule]}, {"rules": []}]) == {
        (group, "a", verb) for group in ("", "apps") for verb in ("list", "watch")
    }
