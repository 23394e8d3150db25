"""`baton status`: what the supervisor knows of its children and what each worker says of itself."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from baton_api.blocks import derive_key
from baton_api.errors import BatonError
from baton_api.worker import WorkerInfo
from baton_wire.http_client import HttpClient

from .rundir import RunDir, Running, WorkerState

ASK_S = 2.0


@dataclass(frozen=True, slots=True)
class Row:
    """One child; `info` None: it is the gateway, is not ready, or did not answer (`problem` says so)."""

    state: WorkerState
    info: WorkerInfo | None = None
    problem: str = ""


async def look(run_dir: RunDir) -> tuple[Running, tuple[Row, ...]]:
    """Raises SettingError when nothing runs there."""
    running = run_dir.read_state()
    key = derive_key(run_dir.secret_file.read_bytes().strip(), "worker-http").hex()
    http = HttpClient()
    try:
        rows = await asyncio.gather(*(_row(http, key, child) for child in running.workers))
    finally:
        await http.close()
    return running, tuple(rows)


async def _row(http: HttpClient, key: str, state: WorkerState) -> Row:
    if state.url is None or state.role == "gateway":
        return Row(state)
    try:
        headers = (("authorization", f"Bearer {key}"),)
        answer = await http.request("GET", f"{state.url}/baton/v1/worker", headers=headers, timeout_s=ASK_S)
        return Row(state, WorkerInfo.from_json(answer.body))
    except BatonError as error:
        return Row(state, problem=error.message)


def as_data(running: Running, rows: tuple[Row, ...]) -> dict[str, Any]:
    """What `--output json` prints."""
    head = {"name": running.name, "model": running.model, "pid": running.pid, "url": running.url}
    children = [
        {**asdict(row.state), "info": asdict(row.info) if row.info else None, "problem": row.problem} for row in rows
    ]
    return {**head, "children": children}


def as_table(running: Running, rows: tuple[Row, ...]) -> Table:
    title = f"{running.name}: model {running.model} at {running.url or 'no endpoint yet'}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("name", "phase", "pid", "url", "epoch", "transport"):
        table.add_column(column)
    for column in ("running", "waiting", "KV blocks", "restarts"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    state, info = row.state, row.info
    phase = "draining" if info is not None and info.draining else row.problem or state.phase
    known = (state.name, phase, str(state.pid or ""), state.url or "")
    if info is None:
        return (*known, state.epoch or "", "", "", "", "", str(state.restarts))
    load = info.load
    blocks = f"{load.total_blocks - load.free_blocks}/{load.total_blocks}"
    said = (info.epoch, info.kv_transport, str(load.running), str(load.waiting), blocks)
    return (*known, *said, str(state.restarts))
