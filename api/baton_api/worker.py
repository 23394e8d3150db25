"""Who a worker is and how it is doing: what GET /baton/v1/worker answers and what the gateway routes on. Pure."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from .errors import WorkerProtocolError


class Role(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's own view of its load. `kv_usage` is in [0, 1]."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    total_blocks: int = 0
    free_blocks: int = 0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """`epoch` is one incarnation of the process (random hex): a restart is a new epoch.

    `control_address` is the gRPC "host:port" for control and KV transfer; `fingerprint` is the KvLayout's;
    `kv_transport` is what was negotiated ("ucx/tcp", "ucx/shm", "tcp", "cma", "inproc").
    """

    worker_id: str
    role: Role
    epoch: str
    model: str
    revision: str
    fingerprint: str
    control_address: str
    kv_transport: str
    block_tokens: int
    max_model_len: int
    ready: bool
    draining: bool
    load: WorkerLoad = WorkerLoad()

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> WorkerInfo:
        """Raises WorkerProtocolError when `data` is not a WorkerInfo. Unknown fields are ignored (newer workers)."""
        try:
            raw: dict[str, Any] = json.loads(data)
            load = WorkerLoad(**_typed(WorkerLoad, raw.get("load", {})))
            known = {**_typed(cls, raw), "role": Role(raw["role"]), "load": load}
            if not (known["block_tokens"] >= 1 and known["max_model_len"] >= 1 and 0.0 <= load.kv_usage <= 1.0):
                raise ValueError("block_tokens, max_model_len or load.kv_usage is out of range")
            return cls(**known)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkerProtocolError(f"worker description is malformed: {error}") from error


_KINDS: dict[Any, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (float, int)}


def _typed(cls: Any, raw: Any) -> dict[str, Any]:
    """The fields of `cls` in `raw`. Raises TypeError for one of another type: it would only fail later, in routing."""
    if not isinstance(raw, dict):
        raise TypeError(f"{cls.__name__} is {type(raw).__name__}")
    known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
    for name, value in known.items():
        kinds = _KINDS.get(cls.__dataclass_fields__[name].type)
        if kinds is not None and type(value) not in kinds:
            raise TypeError(f"{name} is {type(value).__name__}")
    return known
