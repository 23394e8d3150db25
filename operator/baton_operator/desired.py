"""What should be there for a Model: its objects, its revision, and what of it cannot be done here. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from baton_api import kubernetes as names
from baton_api.crd import Model, ParallelismSpec, PoolSpec
from baton_api.errors import SettingError
from baton_api.worker import Role

from . import kinds, objects
from .objects import Owner
from .pods import gateway_template, worker_template
from .process_settings import as_file, gateway_settings, worker_settings
from .settings import OperatorSettings

Json = dict[str, Any]
WITHIN_ONE_MACHINE = ("ucx/shm", "cma")


@dataclass(frozen=True, slots=True)
class Desired:
    """`objects` are applied as they stand; `workers` are the newest revision's Deployments without their size, which
    the rollout says."""

    revision: str
    objects: tuple[Json, ...]
    workers: Mapping[Role, Json]
    secrets: tuple[str, ...]


def pools_of(model: Model) -> dict[Role, PoolSpec]:
    """Mode aggregated has no prefill pool at all; in the other modes one of size 0 can be scaled up."""
    pools = {Role.PREFILL: model.spec.prefill_pool, Role.DECODE: model.spec.decode}
    if model.spec.mode == "aggregated":
        del pools[Role.PREFILL]
    return pools


def desired(model: Model, owner: Owner, settings: OperatorSettings, optional: frozenset[str]) -> Desired:
    """`optional` are the kinds of CRDs that this cluster has. Raises SettingError for what is refused."""
    for refusal in refusals(model):
        raise refusal
    revision = revision_of(model, settings)
    gateway_file = as_file(gateway_settings(model))
    gateway = gateway_template(model, settings, objects.digest(gateway_file))
    made = [
        objects.gateway_account(owner),
        objects.gateway_role(owner),
        objects.gateway_role_binding(owner),
        objects.gateway_config_map(owner, gateway_file),
        objects.gateway_service(owner),
        objects.workers_service(owner),
        objects.gateway_deployment(owner, gateway, settings.gateway_replicas),
        objects.budget(
            owner,
            names.gateway_name(owner.name),
            names.component_labels(owner.name, names.GATEWAY),
            names.gateway_selector(owner.name),
        ),
        objects.network_policy(owner),
    ]
    if kinds.POD_MONITOR.kind in optional:
        made.append(objects.workers_monitor(owner))
    if kinds.SERVICE_MONITOR.kind in optional:
        made.append(objects.gateway_monitor(owner))
    workers = {}
    for role, pool in pools_of(model).items():
        file = as_file(worker_settings(model, role, pool, revision))
        template = worker_template(model, role, pool, revision, settings)
        made += [
            objects.worker_config_map(owner, role, revision, file),
            objects.pool(owner, role, pool),
            objects.budget(
                owner,
                names.pool_name(owner.name, role),
                names.role_labels(owner.name, role),
                names.role_selector(owner.name, role),
            ),
        ]
        workers[role] = objects.worker_deployment(owner, role, revision, template)
    secrets = (names.secret_name(owner.name), names.api_key_name(owner.name))
    return Desired(revision, tuple(made), workers, secrets)


def revision_of(model: Model, settings: OperatorSettings) -> str:
    """A digest of all that a worker's process or Pod depends on, of both roles: they move together. Sizes, routing and
    objectives are not in it."""
    pools = {Role.PREFILL: model.spec.prefill_pool, Role.DECODE: model.spec.decode}
    return objects.digest(
        [
            [
                as_file(worker_settings(model, role, pool, "")),
                worker_template(model, role, pool, "", settings),
            ]
            for role, pool in pools.items()
        ]
    )


def refusals(model: Model) -> Iterator[SettingError]:
    """What would have to be served otherwise than it was asked for: that is never done quietly."""
    spec = model.spec
    engine, kv = spec.engine, spec.kv
    if engine.type != "native":
        yield SettingError("spec.engine.type", engine.type, "is not run by this release", "use native")
    if engine.args:
        yield SettingError("spec.engine.args", list(engine.args), "mean nothing to engine native", "leave them out")
    if kv.dtype not in ("auto", engine.dtype):
        yield SettingError("spec.kv.dtype", kv.dtype, "differs from the compute type", "use auto")
    if kv.transport in WITHIN_ONE_MACHINE:
        fix = "use ucx, ucx/tcp or tcp"
        yield SettingError("spec.kv.transport", kv.transport, "does not get from one Pod to another", fix)
    if kv.tiers:
        yield SettingError("spec.kv.tiers", len(kv.tiers), "tiers: there are none in this release", "leave them out")
    if spec.autoscaling.enabled:
        fix = "leave it out; an HPA or kubectl scale can drive the Pools"
        yield SettingError("spec.autoscaling.enabled", True, "asks for the planner, which this release lacks", fix)
    for role, pool in (("prefill", spec.prefill_pool), ("decode", spec.decode)):
        if pool.parallelism != ParallelismSpec():
            fix = "leave it out; more replicas are possible"
            path, asked = f"spec.{role}.parallelism", pool.parallelism
            yield SettingError(path, asked, "needs a worker of several devices, which engine native is not", fix)
