"""What a role builds its leg from: the loaded model, the engine, the transport, the keys."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baton_api.blocks import NO_TENANT, derive_key, tenant_salt
from baton_engine.engine import NativeEngine
from baton_engine.limits import EngineSettings
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings
from baton_engine.text.prompt import ModelReader
from baton_engine.text.tokenizer import Tokenizer, load_chat_template
from baton_kv.settings import KvSettings
from baton_kv.transport import Transport, make_transport

from .settings import WorkerSettings
from .telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class Parts:
    """`epoch` names this incarnation; `salt` keys the blocks of requests that came without a tenant's."""

    settings: WorkerSettings
    epoch: str
    ticket_key: bytes
    salt: bytes
    engine: NativeEngine
    tokenizer: Tokenizer
    reader: ModelReader
    transport: Transport
    kv_settings: KvSettings
    telemetry: Telemetry


def load_parts(settings: WorkerSettings, secret: bytes, progress: Callable[[int, int], None] | None = None) -> Parts:
    """Everything that takes long, the weights above all. Call it on the event loop's thread.

    Raises SettingError for a model or setting that cannot work."""
    folder = Path(settings.model_path)
    tokenizer = Tokenizer.load(folder)
    kv_settings = _kv(settings)
    runner = TorchRunner.load(folder, _tensors(settings), progress)
    return Parts(
        settings=settings,
        epoch=secrets.token_hex(8),
        ticket_key=derive_key(secret, "ticket"),
        salt=tenant_salt(secret, NO_TENANT),
        engine=NativeEngine(runner, _engine(settings)),
        tokenizer=tokenizer,
        reader=ModelReader(tokenizer, load_chat_template(folder)),
        transport=make_transport(kv_settings.transport, kv_settings),
        kv_settings=kv_settings,
        telemetry=Telemetry(settings.model_name),
    )


def _tensors(settings: WorkerSettings) -> TensorSettings:
    compute, kv = settings.engine, settings.kv
    return TensorSettings(
        device=compute.device,
        dtype=compute.dtype,
        threads=compute.threads,
        max_model_len=compute.max_model_len,
        block_tokens=kv.block_tokens,
        num_blocks=kv.num_blocks,
        kv_bytes=kv.kv_bytes,
    )


def _engine(settings: WorkerSettings) -> EngineSettings:
    compute = settings.engine
    return EngineSettings(
        max_batched_tokens=compute.max_batched_tokens,
        max_running=compute.max_running,
        max_requests=compute.max_requests,
    )


def _kv(settings: WorkerSettings) -> KvSettings:
    kv = settings.kv
    return KvSettings(
        transport=kv.transport,
        data_host=settings.reached_at,
        lease_s=kv.lease_s,
        heartbeat_s=kv.heartbeat_s,
        transfer_timeout_s=kv.transfer_timeout_s,
    )
