"""A prefill and a decode worker in this process, composed as in production, asked over their real HTTP faces.

What the gateway does (choose, sign, send both legs at once) is done here by hand, so that tests can forge and delay.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from baton_api.blocks import derive_key, prompt_digest, tenant_salt
from baton_api.handoff import HandOff
from baton_api.settings import parse
from baton_api.tickets import Ticket, sign_ticket
from baton_api.worker import Role
from baton_decode.leg import DecodeLeg
from baton_kv.transport import Transport
from baton_prefill.leg import PrefillLeg
from baton_wire.http_client import HttpClient
from baton_worker.process import Worker, load_parts
from baton_worker.settings import WorkerSettings

SECRET = b"s" * 32
SALT = tenant_salt(SECRET, "tenant")
NUMBERS = itertools.count()


@dataclass(frozen=True)
class Answer:
    """One request's outcome: per choice the tokens, text, logprobs and finish reason; the usage; the spans."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]
    prefill_status: int | None

    @property
    def tokens(self) -> list[list[int]]:
        return [choice["token_ids"] for choice in self.body["choices"]]


def worker_settings(name: str, model: Path, transport: str, directory: Path, **changes: Any) -> WorkerSettings:
    secret = directory / "secret"
    secret.write_bytes(SECRET)
    raw: dict[str, Any] = {
        "worker_id": name,
        "model_path": str(model),
        "model_name": "tiny",
        "secret_file": str(secret),
        "kv": {"transport": transport, "num_blocks": 512, "lease_s": 10.0, **changes.pop("kv", {})},
        "engine": {"dtype": "float32", "threads": 1, "max_batched_tokens": 128, **changes.pop("engine", {})},
    }
    return parse(WorkerSettings, {**raw, **changes})


@dataclass
class Pair:
    """`async with Pair.of(model, transport, tmp_path) as pair:`; invariants are checked on the way out."""

    prefill: Worker
    decode: Worker
    client: HttpClient = field(default_factory=HttpClient)

    @classmethod
    def of(
        cls,
        model: Path,
        transport: str,
        directory: Path,
        wrap: Callable[[Transport], Transport] = lambda inner: inner,
        **changes: Any,
    ) -> Pair:
        """`wrap` goes around the prefill worker's transport."""
        made = []
        for role, leg in ((Role.PREFILL, PrefillLeg), (Role.DECODE, DecodeLeg)):
            settings = worker_settings(f"{role}-0", model, transport, directory, **changes)
            parts = load_parts(settings, SECRET)
            if role is Role.PREFILL:
                parts = replace(parts, transport=wrap(parts.transport))
            made.append(Worker(role, parts, leg(parts), derive_key(SECRET, "worker-http").hex()))
        return cls(*made)

    async def __aenter__(self) -> Pair:
        await self.prefill.start()
        await self.decode.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.check_quiet()
        finally:
            await self.client.close()
            await self.decode.close()
            await self.prefill.close()

    async def check_quiet(self, within_s: float = 15.0) -> None:
        """Every block of both pools is free or cached, no lease, no request: invariant I3 after quiescence."""
        end_s = time.monotonic() + within_s
        while not self.quiet and time.monotonic() < end_s:
            await asyncio.sleep(0.02)
        for worker in (self.prefill, self.decode):
            worker.parts.engine.check_invariants()
            worker.leg.check_invariants()
            stats = worker.parts.engine.stats()
            assert (stats.running, stats.waiting, stats.kv_usage) == (0, 0, 0.0), (worker.role, stats)
        assert self.quiet

    @property
    def quiet(self) -> bool:
        stats = [worker.parts.engine.stats() for worker in (self.prefill, self.decode)]
        busy = any(stat.running or stat.waiting or stat.kv_usage for stat in stats)
        return not busy and not self.prefill.leg.leases

    def ticket(self, tokens: list[int], transfer_id: str, lifetime_s: float = 60.0, **changes: Any) -> str:
        info = self.prefill.info()
        digest = prompt_digest(tokens, info.block_tokens, SALT).hex()
        ticket = Ticket(
            transfer_id=transfer_id,
            prefill_id=info.worker_id,
            prefill_epoch=info.epoch,
            prefill_address=info.control_address,
            decode_id=self.decode.info().worker_id,
            fingerprint=info.fingerprint,
            prompt_digest=digest,
            num_tokens=len(tokens),
            expires_at_s=time.time() + lifetime_s,
        )
        return sign_ticket(replace(ticket, **changes), derive_key(SECRET, "ticket"))

    async def aggregated(self, tokens: list[int], **params: Any) -> Answer:
        hand_off = HandOff("decode", f"t{next(NUMBERS)}", SALT.hex(), 60.0)
        return await self.post(self.decode, tokens, hand_off, params)

    async def disaggregated(
        self, tokens: list[int], *, policy: str = "fail", ticket: str | None = None, **params: Any
    ) -> Answer:
        """Both legs at once; the first leg's status comes with the answer."""
        transfer_id = f"t{next(NUMBERS)}"
        wire = ticket if ticket is not None else self.ticket(tokens, transfer_id)
        legs = [
            HandOff(leg, transfer_id, SALT.hex(), 60.0, wire, policy)  # type: ignore[arg-type]
            for leg in ("prefill", "decode")
        ]
        params.setdefault("seed", secrets.randbits(32))
        first, second = await asyncio.gather(
            self.post(self.prefill, tokens, legs[0], params), self.post(self.decode, tokens, legs[1], params)
        )
        return replace(second, prefill_status=first.status)

    async def post(self, worker: Worker, tokens: list[int], hand_off: HandOff, params: dict[str, Any]) -> Answer:
        body = {
            "model": "tiny",
            "prompt_token_ids": tokens,
            "return_token_ids": True,
            "kv_transfer_params": hand_off.to_params(),
            **params,
        }
        assert worker.http is not None
        response = await self.client.request(
            "POST",
            f"http://127.0.0.1:{worker.http.port}/v1/completions",
            body=json.dumps(body).encode(),
            headers=[("authorization", f"Bearer {derive_key(SECRET, 'worker-http').hex()}")],
            timeout_s=60.0,
        )
        return Answer(response.status, json.loads(response.body), response.headers, None)
