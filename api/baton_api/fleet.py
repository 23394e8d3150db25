"""The fleet file: which workers there are, written by the supervisor (or by hand), watched live by the gateway. Pure.

    {"model": "demo", "workers": [{"url": "http://127.0.0.1:9001"}, ...]}

Role, epoch, layout and readiness come from each worker's own /baton/v1/worker, never from the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .errors import SettingError


@dataclass(frozen=True, slots=True)
class FleetWorker:
    url: str


@dataclass(frozen=True, slots=True)
class Fleet:
    model: str
    workers: tuple[FleetWorker, ...]

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Fleet:
        """Raises SettingError naming the field when `data` is not a fleet."""
        try:
            raw = json.loads(data)
            return cls(str(raw["model"]), tuple(FleetWorker(str(worker["url"])) for worker in raw["workers"]))
        except (ValueError, TypeError, KeyError) as error:
            raise SettingError("fleet file", data[:80], f"is not a fleet ({error!r})", "see docs/fleet.md") from error
