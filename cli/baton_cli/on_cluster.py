"""The commands that look at a cluster: `status`, `explain`, `doctor`. Each returns its exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict

from baton_api.errors import BatonError, SettingError

from . import cluster
from . import doctor as examination
from .cluster_view import model_row, models_table, show_explanation, show_lines
from .explain import explain as explained
from .kube_config import Chosen, find_access
from .preflight import Line, cluster_lines, host_lines
from .view import plain_console


async def status(chosen: Chosen, name: str | None, as_json: bool) -> int:
    """The Models of the namespace, or the one called `name`."""
    access = find_access(chosen, os.environ)
    async with cluster.opened(access) as api:
        found = await cluster.models(api, access.namespace)
    rows = [model_row(model) for model in found if name in (None, model["metadata"]["name"])]
    if name is not None and not rows:
        known = ", ".join(sorted(model["metadata"]["name"] for model in found)) or "none there"
        raise SettingError("--name", name, f"is no Model in namespace {access.namespace}", f"use one of: {known}")
    if as_json:
        print(json.dumps({"namespace": access.namespace, "models": rows}, indent=2))
    else:
        plain_console().print(models_table(access.namespace, rows))
    return 0


async def explain(chosen: Chosen, name: str, as_json: bool) -> int:
    """0: it is ready as it stands now. What the operator said of an older generation says nothing of this one."""
    access = find_access(chosen, os.environ)
    async with cluster.opened(access) as api:
        said = explained(await cluster.look(api, access.namespace, name))
    if as_json:
        print(json.dumps(said.as_data(), indent=2))
    else:
        show_explanation(plain_console(), said)
    return 0 if said.ready == "True" and said.current else 1


async def doctor(chosen: Chosen, as_json: bool) -> int:
    lines = [*host_lines(examination.examine_host()), *await _of_cluster(chosen)]
    if as_json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
    else:
        show_lines(plain_console(), lines)
    return 1 if any(line.level == "fail" for line in lines) else 0


async def _of_cluster(chosen: Chosen) -> Iterable[Line]:
    """A cluster that was asked for and cannot be had is a failure; none at all is fine on one machine."""
    try:
        access = find_access(chosen, os.environ)
    except SettingError as error:
        if chosen != Chosen() or os.environ.get("KUBECONFIG"):
            return (Line("fail", "cluster", error.message),)
        return (Line("warn", "cluster", "none configured", f"for Kubernetes: {error.message}"),)
    try:
        return tuple(cluster_lines(await examination.examine_cluster(access)))
    except BatonError as error:
        fix = "is the address right, the server up, the login fresh? kubectl cluster-info"
        return (Line("fail", "cluster", f"{access.host}:{access.port}: {error.message}", fix),)
