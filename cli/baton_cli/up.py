"""`baton up`: one Model as local processes, from its file to the last child's end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from baton_api.crd import API_VERSION, KIND, Model, parse_model
from baton_api.errors import BatonError, SettingError
from baton_wire.http_client import HttpClient

from .client import Endpoint
from .compose import Place, compose, notices
from .rundir import RunDir
from .supervisor import Supervisor
from .view import View

GATEWAY_READY_S = 30.0


@dataclass(frozen=True, slots=True)
class Changes:
    """What the command line says beside, or in place of, a resource file."""

    source: Path | None = None
    prefill: int | None = None
    decode: int | None = None
    transport: str | None = None


def read_model(file: Path | None, changes: Changes) -> Model:
    """The Model of `file`, or the smallest one for `changes.source`; a relative source is relative to the file.

    Raises SettingError.
    """
    if (file is None) == (changes.source is None):
        raise SettingError("arguments", None, "name no model, or two", "give a resource file or --model PATH")
    raw = smallest(changes.source) if changes.source is not None else _load(file)
    model = parse_model(_changed(raw, changes))
    source = model.spec.source
    if file is not None and "://" not in source and not os.path.isabs(source):
        return parse_model(_with_spec(_changed(raw, changes), source=str(file.parent / source)))
    return model


def smallest(source: Path) -> dict[str, Any]:
    """A Model with everything at its default, named after its directory."""
    name = "".join(char if char.isalnum() and char.isascii() else "-" for char in source.absolute().name.lower())
    metadata = {"name": name.strip("-")[:63].strip("-") or "model"}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"source": str(source)}}


def _load(file: Path | None) -> Any:
    assert file is not None
    try:
        return yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingError("file", str(file), f"cannot be read ({error})", "give a YAML file with one Model") from error


def _changed(raw: Any, changes: Changes) -> Any:
    if changes.prefill is not None:
        raw = _with_spec(raw, prefill=_pool(raw, "prefill", changes.prefill))
    if changes.decode is not None:
        raw = _with_spec(raw, decode=_pool(raw, "decode", changes.decode))
    if changes.transport is not None:
        raw = _with_spec(raw, kv={**_part(raw, "kv"), "transport": changes.transport})
    return raw


def _with_spec(raw: Any, **changed: Any) -> Any:
    if not isinstance(raw, dict) or not isinstance(raw.get("spec"), dict):
        return raw  # parse_model says what is wrong with it
    return {**raw, "spec": {**raw["spec"], **changed}}


def _part(raw: Any, name: str) -> dict[str, Any]:
    spec = raw.get("spec") if isinstance(raw, dict) else None
    part = spec.get(name) if isinstance(spec, dict) else None
    return part if isinstance(part, dict) else {}


def _pool(raw: Any, role: str, replicas: int) -> dict[str, Any]:
    kept = {name: v for name, v in _part(raw, role).items() if name not in ("minReplicas", "maxReplicas")}
    return {**kept, "replicas": replicas}


@dataclass(frozen=True, slots=True)
class Deployment:
    """One that is up. `ended` gives why it stopped, None when it was asked to."""

    endpoint: Endpoint
    supervisor: Supervisor
    ended: asyncio.Task[str | None]


class StartFailed(BatonError):
    """The deployment did not come up; the message says why."""

    reason = "start_failed"


@contextlib.asynccontextmanager
async def deployed(model: Model, run_dir: RunDir, view: View, *, host: str, port: int) -> AsyncIterator[Deployment]:
    """Brings `model` up; at the end of the block everything is stopped in order. The run directory must be held.

    Raises SettingError, before anything is started, and StartFailed when it does not come up; the latter's message is
    empty when it was asked to stop before.
    """
    for notice in notices(model.spec):
        view.notice(notice)
    key = run_dir.make_secrets(os.environ.get("BATON_API_KEY"))
    processes = compose(model, _place(model, run_dir, host, port))
    check_address(host, port)
    supervisor = Supervisor(processes, run_dir, model.name, on_change=view.on_change, on_progress=view.on_progress)
    view.processes(processes)
    running = asyncio.create_task(supervisor.run())
    with _signals(supervisor):
        try:
            try:
                url = await _url(supervisor, running, len(processes) - 1)
            finally:
                view.end_bars()
            yield Deployment(Endpoint(url, key, model.name), supervisor, running)
        finally:
            if not running.done():
                supervisor.stop()
                await running


async def _url(supervisor: Supervisor, running: asyncio.Task[str | None], workers: int) -> str:
    """The gateway's, as soon as it would send a request to any of so many workers."""
    if not await supervisor.ready() or supervisor.url is None:
        raise StartFailed(await running or "")
    end_s = time.monotonic() + GATEWAY_READY_S
    url, http = supervisor.url, HttpClient()
    try:
        while await _workers_seen(http, url) < workers:
            if running.done():
                raise StartFailed(await running or "")
            if time.monotonic() > end_s:
                raise StartFailed(f"the gateway did not see all workers within {GATEWAY_READY_S:g} s")
            await asyncio.sleep(0.05)
    finally:
        await http.close()
    return url


async def _workers_seen(http: HttpClient, url: str) -> int:
    """How many workers the gateway would route to."""
    try:
        answer = await http.request("GET", f"{url}/ready", timeout_s=2.0)
        return int(json.loads(answer.body)["workers"]) if answer.status == 200 else 0
    except (BatonError, ValueError, KeyError, TypeError):
        return 0


@contextlib.contextmanager
def _signals(supervisor: Supervisor) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, supervisor.stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _place(model: Model, run_dir: RunDir, host: str, port: int) -> Place:
    source = Path(model.spec.source)
    if "://" not in model.spec.source and not (source / "config.json").is_file():
        fix = "give a directory in Hugging Face format"
        raise SettingError("spec.source", model.spec.source, "holds no config.json", fix)
    return Place(
        model_path=str(source.absolute()),
        fleet_file=str(run_dir.fleet_file),
        secret_file=str(run_dir.secret_file),
        api_key_file=str(run_dir.api_key_file),
        host=host,
        port=port,
        cores=len(os.sched_getaffinity(0)),
    )


def check_address(host: str, port: int) -> None:
    """Whether the gateway could listen there: asked before workers spend seconds starting. Raises SettingError."""
    if not 0 <= port <= 65535:
        raise SettingError("--port", port, "is no port", "give 1 to 65535, or 0 for a free one")
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingError("--host", host, f"is no address ({error})", "give one of this machine's") from error
    for family, kind, protocol, _, address in found:
        try:
            _bind(family, kind, protocol, address)
        except OSError as error:
            why = f"cannot be listened on ({address[0]}: {error.strerror})"
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise SettingError("--port", port, why, "give another one, or 0 for a free one") from error
            raise SettingError("--host", host, why, "give an address of this machine") from error


def _bind(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> None:
    """As the gateway's server does it. Raises OSError."""
    with socket.socket(family, kind, protocol) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            tried.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        tried.bind(address)


async def up(model: Model, run_dir: RunDir, view: View, *, host: str, port: int) -> int:
    """Until it is told to stop (exit code 0) or cannot go on (1)."""
    with run_dir.held():
        try:
            async with deployed(model, run_dir, view, host=host, port=port) as deployment:
                endpoint = deployment.endpoint
                view.endpoint(endpoint.url, endpoint.api_key, endpoint.model)
                failure = await asyncio.shield(deployment.ended)
        except StartFailed as error:
            failure = error.message
        if not failure:
            return 0
        view.failure(failure, log_tails(run_dir))
    return 1


def log_tails(run_dir: RunDir) -> list[tuple[str, str]]:
    """The end of every child's log."""
    return [(file.stem, run_dir.log_tail(file.stem)) for file in sorted(run_dir.path.glob("*.log"))]
