"""How what a cluster says is shown: a table of Models, one Model explained, the doctor's lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .cluster import Json
from .explain import Explanation
from .preflight import Line

COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def model_row(model: Json) -> dict[str, Any]:
    """What `baton status` says of one Model; no Ready from before its last edit."""
    status = model.get("status") or {}
    seen = status.get("observedGeneration") == model["metadata"].get("generation")
    conditions = (status.get("conditions") or []) if seen else []
    ready: Json = next((one for one in conditions if one["type"] == "Ready"), {})
    return {
        "name": model["metadata"]["name"],
        "ready": ready.get("status", "Unknown"),
        "reason": ready.get("reason", "NotObserved"),
        "prefill": (status.get("prefill") or {}).get("summary", ""),
        "decode": (status.get("decode") or {}).get("summary", ""),
        "gateway": status.get("gateway", ""),
        "step": (status.get("plan") or {}).get("step", ""),
        "revision": status.get("revision", ""),
        "endpoint": status.get("endpoint", ""),
    }


def models_table(namespace: str, rows: Iterable[dict[str, Any]]) -> Table:
    table = Table(title=f"Models in namespace {namespace}", title_justify="left", box=None, pad_edge=False)
    found = list(rows)
    for column in found[0] if found else ("none",):
        table.add_column(column)
    for row in found:
        table.add_row(*(escape(str(value)) for value in row.values()))
    return table


def show_explanation(console: Console, said: Explanation) -> None:
    colour = {"True": "green", "False": "red"}.get(said.ready, "yellow")
    head = f"[bold]{escape(said.name)}[/] in {escape(said.namespace)}: Ready [{colour}]{said.ready}[/], {said.reason}"
    console.print(head)
    console.print(f"  {escape(said.message)}")
    if said.endpoint:
        console.print(f"  endpoint   {escape(said.endpoint)}/v1")
    for role, text in said.roles:
        console.print(f"  {role:10} {text}")
    if said.plan:
        console.print(f"  plan       {said.plan.get('step')}: {escape(str(said.plan.get('reason')))}")
    _section(console, "conditions", (_condition(one) for one in said.conditions))
    _section(console, "revisions", (_revision(one) for one in said.revisions))
    _section(console, "pods in trouble", (f"{one.pod}: {one.why}" for one in said.troubles))
    _section(console, "last warnings", said.events)
    _section(console, "next", said.next_steps)


def _section(console: Console, title: str, lines: Iterable[str]) -> None:
    for number, line in enumerate(lines):
        if number == 0:
            console.print(f"[bold]{title}[/]")
        console.print(f"  {escape(line)}")


def _condition(one: Json) -> str:
    since = one.get("lastTransitionTime", "")
    return f"{one['type']:12} {one['status']:8} {one.get('reason', '')} since {since}: {one.get('message', '')}"


def _revision(one: Json) -> str:
    ready, replicas, wanted = (one.get(name, 0) for name in ("ready", "replicas", "wanted"))
    return f"{one['role']:8} {one['revision']}  {ready} ready, {replicas} there, {wanted} wanted"


def show_lines(console: Console, lines: Iterable[Line]) -> None:
    for line in lines:
        console.print(f"[{COLOURS[line.level]}]{line.level:4}[/]  {line.what:20} {escape(line.found)}")
        if line.fix:
            console.print(f"{'':28}-> {escape(line.fix)}")
