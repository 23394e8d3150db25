"""What requests share and what one of them is: the parts of a gateway, a visitor, a job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from baton_api.blocks import derive_key, tenant_salt
from baton_api.errors import ContextLengthExceeded, NotFound
from baton_api.openai import ChatRequest
from baton_wire.http_client import HttpClient

from .admission import Admission, RetryBudget
from .attempt import Attempt, Failure
from .discovery import FleetChanges
from .index import PrefixIndex
from .legs import AnyPrompt
from .pairs import Pairs
from .registry import Registry
from .routing import Policy
from .settings import GatewaySettings
from .strand import Alarms, Strand
from .telemetry import Telemetry
from .timeline import Timeline
from .tokenising import Asked, Tokeniser


@dataclass(slots=True)
class Visitor:
    """Who asks, under which request id, and what runs the request."""

    tenant: str
    request_id: str
    strand: Strand


@dataclass(slots=True)
class Parts:
    """What every request shares. `draw` gives random bytes; `now` is monotonic seconds; `deadlines` expire requests,
    `first_bytes` attempts at a stream whose head has not come."""

    settings: GatewaySettings
    secret: bytes
    registry: Registry
    changes: FleetChanges
    index: PrefixIndex
    client: HttpClient
    tokeniser: Tokeniser
    admission: Admission
    deadlines: Alarms
    first_bytes: Alarms
    retries: RetryBudget
    resumes: RetryBudget
    telemetry: Telemetry
    draw: Callable[[int], bytes]
    now: Callable[[], float] = time.monotonic
    pairs: Pairs = field(init=False)
    attempts: set[Attempt] = field(default_factory=set)
    policy: Policy = field(init=False)
    ticket_key: bytes = b""
    worker_key: str = ""

    def __post_init__(self) -> None:
        self.policy = self.settings.policy
        self.pairs = Pairs(self.settings.suspend_s)
        self.ticket_key = derive_key(self.secret, "ticket")
        self.worker_key = derive_key(self.secret, "worker-http").hex()

    def salt(self, tenant: str, cache_salt: str | None) -> bytes:
        """A client's own salt only narrows: it is mixed into its tenant's, never used in its place."""
        return _salt(self.secret, tenant if cache_salt is None else f"{tenant}/{cache_salt}")


_salt = lru_cache(maxsize=4096)(tenant_salt)


@dataclass(slots=True)
class Job:
    """One request on its way; `fields` are the body's used fields, seed included. `emitted`: what the client has of the
    answer already, as the workers told it; `revision`: of the model that began it."""

    id: str
    path: str
    fields: dict[str, Any]
    asked: Asked
    prompt: AnyPrompt
    headers: tuple[tuple[str, str], ...]
    deadline_s: float
    timeline: Timeline
    failures: list[Failure] = field(default_factory=list)
    emitted: str = ""
    revision: str | None = None


def check_model(registry: Registry, model: str) -> None:
    if model != registry.model:
        raise NotFound(f"model {model[:64]!r} is not served here", param="model", code="model_not_found")


def check_context(registry: Registry, asked: Asked, prompt: AnyPrompt) -> None:
    """Raises ContextLengthExceeded with the counts before any worker is asked. An estimate refuses nothing."""
    if not prompt.exact:
        return
    limit = registry.longest_context
    wanted = asked.sampling.max_tokens or 1
    if limit is not None and len(prompt) + wanted > limit:
        raise ContextLengthExceeded(
            f"this model's context is {limit} tokens; the prompt has {len(prompt)} and {wanted} were asked for",
            param="messages" if isinstance(asked, ChatRequest) else "prompt",
        )
