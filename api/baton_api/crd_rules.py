"""What no single field's limits say of a Model: each rule as CEL for the API server and as Python for the parser. Pure.

A rule's `message` names what is wrong and what helps; `field` is where the API server says it happened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .crd_spec import EngineSpec, ModelSpec, SloSpec
from .crd_workers import PoolSpec, ResourcesSpec, TolerationSpec
from .errors import SettingError
from .quantities import quantity

SOURCE_URL = (
    r"pvc://[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*"
    r"|hf://[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_-][A-Za-z0-9_.-]*(@[A-Za-z0-9_.-]+)?"
    r"|oci://[a-zA-Z0-9][A-Za-z0-9_.:/@-]*"
)


@dataclass(frozen=True, slots=True)
class CrossRule:
    """`cel` is true for what is right. `at` is the part of the spec that `self` means; `field` is relative to it.

    `shown` is CEL for the value that is told behind the message. Only of short texts: the API server takes the text of
    a number, or of a map's keys, for one of any length and refuses the rule.
    """

    at: tuple[str, ...]
    field: str
    cel: str
    message: str
    shown: str = ""


_PREFILL = "(has(self.prefill) ? self.prefill.replicas : (self.mode == 'aggregated' ? 0 : 1))"


def _of(role: str, name: str) -> str:
    """The role's own value where it is given, else the engine's."""
    return f"(has(self.{role}) && has(self.{role}.{name}) ? self.{role}.{name} : self.engine.{name})"


def _step(role: str) -> CrossRule:
    return CrossRule(
        (),
        f".{role}.maxBatchedTokens",
        f"{_of(role, 'maxBatchedTokens')} >= {_of(role, 'maxRunning')}",
        f"maxBatchedTokens of {role} is below its maxRunning: raise it (here or in spec.engine), or lower maxRunning",
    )


def _pool(role: str) -> tuple[CrossRule, ...]:
    """At the spec, not at the pool: the API server holds a default of {} to the rules of its own place."""
    given = f"!has(self.{role}) || " if role == "prefill" else ""
    requests, limits = f"self.{role}.resources.requests", f"self.{role}.resources.limits"
    whole = f"quantity(string({limits}[name])).isInteger()"
    compared = f"quantity(string({requests}[name])).compareTo(quantity(string({limits}[name])))"
    return (
        CrossRule(
            (role,),
            ".minReplicas",
            "!has(self.minReplicas) || self.minReplicas <= self.replicas",
            "minReplicas is above replicas: lower it, or add replicas",
        ),
        CrossRule(
            (role,),
            ".maxReplicas",
            "!has(self.maxReplicas) || self.maxReplicas >= self.replicas",
            "maxReplicas is below replicas: raise it",
        ),
        CrossRule(
            (),
            f".{role}.resources.requests",
            f"{given}{requests}.all(name, !(name in {limits}) || {compared} <= 0)",
            f"{role}.resources.requests has more of something than limits: lower requests, or raise limits",
        ),
        CrossRule(
            (),
            f".{role}.resources.limits",
            f"{given}{limits}.all(name, !name.contains('/') || {whole})",
            f"{role}.resources.limits has a fraction of a device: give a whole number",
        ),
        CrossRule(
            (),
            f".{role}.resources.requests",
            f"{given}{requests}.all(name, !name.contains('/') || (name in {limits} && {compared} == 0))",
            f"{role}.resources.requests names a device that limits have not as many of: give the same in limits",
        ),
    )


RULES = (
    *_pool("prefill"),
    *_pool("decode"),
    _step("prefill"),
    _step("decode"),
    CrossRule(
        (),
        ".source",
        rf"!self.source.contains('://') || self.source.matches(r'^({SOURCE_URL})$')",
        "source is no URL that is read: use a path, pvc://claim/path, hf://org/name@revision or oci://image",
        "self.source",
    ),
    CrossRule(
        (),
        ".prefill.replicas",
        f"self.mode != 'aggregated' || {_PREFILL} == 0",
        "prefill.replicas does not fit mode aggregated: use 0, or another mode",
    ),
    CrossRule(
        (),
        ".prefill.replicas",
        f"self.mode != 'disaggregated' || {_PREFILL} >= 1",
        "prefill.replicas does not fit mode disaggregated: use 1 or more",
    ),
    CrossRule(
        (),
        ".routing.keys",
        "self.routing.keys != 'text' || self.mode == 'aggregated'",
        "routing.keys text fits mode aggregated only: use tokens, or mode aggregated",
        "'mode ' + self.mode",
    ),
    CrossRule(
        (),
        ".routing.processes",
        "self.routing.processes <= self.routing.maxInFlight",
        "routing.processes is above maxInFlight, so some would serve nothing: lower it, or raise maxInFlight",
    ),
    CrossRule(
        (),
        ".decode.replicas",
        f"self.decode.replicas >= 1 || {_PREFILL} == 0",
        "decode.replicas 0 leaves prefill without decode: use 1 or more",
    ),
    CrossRule(
        (),
        ".rollout.maxSurge",
        "self.rollout.maxSurge + self.rollout.maxUnavailable >= 1",
        "rollout.maxSurge 0 stops a rollout when maxUnavailable is 0 too: use 1 or more",
    ),
    CrossRule(
        (),
        ".autoscaling.enabled",
        "!self.autoscaling.enabled || has(self.slo.ttft) || has(self.slo.tpot)",
        "autoscaling has no objective to keep: give slo.ttft or slo.tpot",
    ),
    *(
        CrossRule(
            (role, "tolerations", "*"),
            field,
            cel,
            message,
        )
        for role in ("prefill", "decode")
        for field, cel, message in (
            (".key", "has(self.key) || self.operator == 'Exists'", "key is missing: give it, or use operator Exists"),
            (
                ".value",
                "!has(self.value) || self.operator == 'Equal'",
                "value means nothing to operator Exists: drop it",
            ),
            (
                ".tolerationSeconds",
                "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                "tolerationSeconds needs effect NoExecute: give it, or drop tolerationSeconds",
            ),
        )
    ),
)


def problems(spec: ModelSpec) -> Iterator[SettingError]:
    """The same rules for the parser."""
    if "://" in spec.source and re.fullmatch(SOURCE_URL, spec.source, re.ASCII) is None:
        fix = "use a path, pvc://claim/path, hf://org/name@revision or oci://image"
        yield SettingError("spec.source", spec.source, "is no URL that is read", fix)
    for path, pool in (("spec.prefill", spec.prefill_pool), ("spec.decode", spec.decode)):
        yield from _pool_problems(path, pool)
        yield from _step_problems(path, pool, spec.engine)
    if spec.mode == "aggregated" and spec.prefill is not None and spec.prefill.replicas > 0:
        value = spec.prefill.replicas
        yield SettingError("spec.prefill.replicas", value, "does not fit mode aggregated", "use 0, or another mode")
    if spec.mode == "disaggregated" and spec.prefill_pool.replicas < 1:
        yield SettingError("spec.prefill.replicas", 0, "does not fit mode disaggregated", "use 1 or more")
    if spec.routing.keys == "text" and spec.mode != "aggregated":
        yield SettingError("spec.routing.keys", "text", f"does not fit mode {spec.mode}", "use tokens, or aggregated")
    if spec.routing.processes > spec.routing.max_in_flight:
        processes, most = spec.routing.processes, spec.routing.max_in_flight
        fix = "lower it, or raise maxInFlight"
        yield SettingError("spec.routing.processes", processes, f"is above maxInFlight {most}", fix)
    if spec.decode.replicas < 1 and spec.prefill_pool.replicas > 0:
        yield SettingError("spec.decode.replicas", 0, "leaves prefill without decode", "use 1 or more")
    if spec.rollout.max_surge + spec.rollout.max_unavailable < 1:
        yield SettingError("spec.rollout.maxSurge", 0, "stops a rollout when maxUnavailable is 0 too", "use 1 or more")
    if spec.autoscaling.enabled and spec.slo == SloSpec():
        yield SettingError("spec.autoscaling.enabled", True, "has no objective to keep", "give spec.slo.ttft or .tpot")


def _pool_problems(path: str, pool: PoolSpec) -> Iterator[SettingError]:
    """Invariant I8: min <= replicas <= max."""
    low, high = pool.min_replicas, pool.max_replicas
    if low is not None and low > pool.replicas:
        yield SettingError(
            f"{path}.minReplicas", low, f"is above replicas {pool.replicas}", "lower it, or add replicas"
        )
    if high is not None and high < pool.replicas:
        yield SettingError(f"{path}.maxReplicas", high, f"is below replicas {pool.replicas}", "raise it")
    yield from _resource_problems(f"{path}.resources", pool.resources)
    for index, toleration in enumerate(pool.tolerations):
        yield from _toleration_problems(f"{path}.tolerations[{index}]", toleration)


def _resource_problems(path: str, resources: ResourcesSpec) -> Iterator[SettingError]:
    """What the API server asks of a container's resources."""
    limits: Mapping[str, int | str] = resources.limits
    for name, amount in limits.items():
        if "/" in name and not (quantity(amount).denominator == 1 and quantity(amount) < 2**63):
            yield SettingError(f"{path}.limits.{name}", amount, "is no whole number of devices", "give one")
    for name, amount in resources.requests.items():
        field = f"{path}.requests.{name}"
        if name in limits and quantity(amount) > quantity(limits[name]):
            yield SettingError(field, amount, f"is above its limit {limits[name]}", "lower it, or raise the limit")
        elif "/" in name and (name not in limits or quantity(amount) != quantity(limits[name])):
            yield SettingError(field, amount, "is a device that cannot be shared", "give the same number in limits")


def _toleration_problems(path: str, toleration: TolerationSpec) -> Iterator[SettingError]:
    if toleration.key is None and toleration.operator != "Exists":
        yield SettingError(f"{path}.key", None, "is missing", "give it, or use operator Exists")
    if toleration.value is not None and toleration.operator == "Exists":
        yield SettingError(f"{path}.value", toleration.value, "means nothing to operator Exists", "drop it")
    if toleration.toleration_seconds is not None and toleration.effect != "NoExecute":
        seconds = toleration.toleration_seconds
        yield SettingError(f"{path}.tolerationSeconds", seconds, "needs effect NoExecute", "give it, or drop this")


def _step_problems(path: str, pool: PoolSpec, engine: EngineSpec) -> Iterator[SettingError]:
    """A step has to have room for a token of every running sequence."""
    batched, running = pool.max_batched_tokens or engine.max_batched_tokens, pool.max_running or engine.max_running
    if batched < running:
        field = f"{path}.maxBatchedTokens" if pool.max_batched_tokens else "spec.engine.maxBatchedTokens"
        yield SettingError(field, batched, f"is below maxRunning {running}", "raise it, or lower maxRunning")
