"""Rights used, from an API server's audit log, beside rights granted, from its RBAC objects. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

Right = tuple[str, str, str]
"""(API group, resource with its subresource, verb)"""


def used(audit_lines: Iterable[str], service_account: str) -> set[Right]:
    """By one service account ("namespace:name"), what was refused left out. A patch that made an object (server-side
    apply) used `create` too: the API server asks for both and logs one."""
    found: set[Right] = set()
    for line in audit_lines:
        event = json.loads(line)
        target, code = event.get("objectRef"), event.get("responseStatus", {}).get("code", 0)
        if event["user"]["username"] != f"system:serviceaccount:{service_account}" or not target or code == 403:
            continue
        resource = "/".join(part for part in (target["resource"], target.get("subresource")) if part)
        for verb in {event["verb"], *(["create"] if event["verb"] == "patch" and code == 201 else [])}:
            found.add((target.get("apiGroup", ""), resource, verb))
    return found


def granted(roles: Iterable[Any]) -> set[Right]:
    """By Roles and ClusterRoles."""
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
