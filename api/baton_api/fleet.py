"""The fleet: which workers there are. From a file (the supervisor's, or by hand), or from a cluster. Pure.

    {"model": "demo", "workers": [{"url": "http://127.0.0.1:9001"}, ...]}

Role, epoch, layout and readiness come from each worker's own /baton/v1/worker. Whoever started it may say which role
and revision it should have; a worker that says otherwise gets no requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from .errors import SettingError
from .worker import Role, WorkerInfo


@dataclass(frozen=True, slots=True)
class FleetWorker:
    """`role` and `revision` are what it should be; None: whatever it says."""

    url: str
    role: Role | None = None
    revision: str | None = None

    def contradiction(self, info: WorkerInfo) -> str | None:
        """What the worker says of itself that it should not be."""
        if self.role is not None and info.role is not self.role:
            return f"it is a {info.role.value} worker and should be {self.role.value}"
        if self.revision is not None and info.revision != self.revision:
            return f"it serves revision {info.revision!r} and should serve {self.revision!r}"
        return None


@dataclass(frozen=True, slots=True)
class Fleet:
    model: str
    workers: tuple[FleetWorker, ...]

    def to_json(self) -> bytes:
        return json.dumps({"model": self.model, "workers": [_said(one) for one in self.workers]}, indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Fleet:
        """Raises SettingError naming the field when `data` is not a fleet."""
        try:
            raw = json.loads(data)
            return cls(str(raw["model"]), tuple(_worker(worker) for worker in raw["workers"]))
        except (ValueError, TypeError, KeyError) as error:
            raise SettingError("fleet file", data[:80], f"is not a fleet ({error!r})", "see docs/fleet.md") from error


def _said(worker: FleetWorker) -> dict[str, str]:
    known = {field.name: getattr(worker, field.name) for field in fields(worker)}
    return {name: str(value) for name, value in known.items() if value is not None}


def _worker(raw: Any) -> FleetWorker:
    if not isinstance(raw, dict):
        raise TypeError(f"a worker is {type(raw).__name__}")
    role, revision = raw.get("role"), raw.get("revision")
    return FleetWorker(
        str(raw["url"]), None if role is None else Role(role), None if revision is None else str(revision)
    )
