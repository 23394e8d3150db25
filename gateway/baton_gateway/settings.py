"""What can be set of a gateway, with defaults and limits. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from baton_api.errors import SettingError
from baton_api.settings import setting

from .routing import Policy

SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"
_OR_NONE = r"([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?"
"""A DNS label (RFC 1123), as Kubernetes wants names, or nothing."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """One JSON file: {"fleet_file": ..., "model_path": ..., ...}. The secret may come from BATON_SECRET and the API key
    from BATON_API_KEY instead."""

    model_path: str = setting(description="directory with tokenizer.json and the chat template")
    discovery: str = setting("file", "who says which workers there are", choices=("file", "kubernetes"))
    fleet_file: str = setting("", "discovery file: which workers there are; watched live")
    model_name: str = setting("", "discovery kubernetes: name of the Model", pattern=_OR_NONE)
    served_name: str = setting("", "discovery kubernetes: what clients call the model; default: model_name")
    namespace: str = setting("", "discovery kubernetes: the Model's; default: this Pod's", pattern=_OR_NONE)
    service_account_dir: str = setting(SERVICE_ACCOUNT_DIR, "discovery kubernetes: token, ca.crt, namespace")
    host: str = setting("127.0.0.1", "address to listen on")
    port: int = setting(8000, "TCP port; 0 takes a free one", low=0, high=65535)
    reuse_port: bool = setting(False, "SO_REUSEPORT, for several gateway processes on one port")
    processes: int = setting(1, "gateway processes on the one port, started again when they die", low=1, high=64)
    secret_file: str = setting("", "file with the deployment's secret (at least 32 bytes)")
    auth: bool = setting(True, "whether /v1 needs an API key")
    api_keys: tuple[str, ...] = setting((), "API keys; one is generated and printed when there is none")
    api_key_file: str = setting("", "file with one API key per line")
    metrics_need_key: bool = setting(False, "whether /metrics needs an API key")
    server_timing: bool = setting(True, "whether answers carry the split of their time to first token")

    mode: str = setting("auto", "where prompts are prefilled", choices=("auto", "disaggregated", "aggregated"))
    on_prefill_failure: str = setting("recompute", "what decode does without KV", choices=("recompute", "fail"))
    prefix_keys: str = setting(
        "tokens",
        "what prefixes are known by; text: nothing is tokenised here, aggregated only",
        choices=("tokens", "text"),
    )
    min_remote_prefill_tokens: int = setting(32, "shorter (uncached) prompts are prefilled on decode", low=0)
    index_keys: int = setting(500_000, "block keys in the prefix index of each process, about 150 bytes each", low=1)

    request_timeout_s: float = setting(600.0, "from receipt to the answer's end", low=0.01)
    first_byte_timeout_s: float = setting(60.0, "from sending the legs to the first token of a stream", low=0.01)
    queue_ttl_s: float = setting(30.0, "longest wait for a slot or a worker", low=0)
    max_in_flight: int = setting(1024, "requests being served at once", low=1)
    max_queued: int = setting(1024, "requests waiting for a slot", low=0)
    max_tokenising: int = setting(256, "prompts waiting for the tokeniser", low=1)
    tokeniser_threads: int = setting(1, "threads that tokenise", low=1, high=64)
    text_cache_bytes: int = setting(64 * 1024 * 1024, "memory for texts whose tokens are remembered; 0: none", low=0)
    inline_bytes: int = setting(1024, "bodies up to this size are tokenised without a thread", low=0)
    max_connections: int = setting(4096, "client connections open at once", low=1)
    max_connections_per_address: int = setting(
        512, "of one address (IPv6: one /64); behind a proxy give it max_connections", low=1
    )
    parse_inline_bytes: int = setting(65536, "larger bodies are parsed on a thread", low=0)
    max_bodies_bytes: int = setting(512 * 1024 * 1024, "request bodies and unread answers, all together", low=1)
    max_body_bytes: int = setting(16 * 1024 * 1024, "largest request body", low=1)
    max_header_bytes: int = setting(32 * 1024, "request line and header section together", low=1)
    max_headers: int = setting(100, "header fields of a request", low=1)
    header_timeout_s: float = setting(10.0, "from the first byte of a head to its end", low=0.01)
    body_grace_s: float = setting(10.0, "that a body may fall behind body_min_bytes_per_s", low=0.01)
    body_min_bytes_per_s: float = setting(1024.0, "slower bodies get 408", low=0.01)
    idle_timeout_s: float = setting(75.0, "an idle client connection is closed after so long", low=0.01)
    write_stall_s: float = setting(60.0, "a client that takes nothing of its answer for so long is cut", low=0.01)
    max_answer_bytes: int = setting(64 * 1024 * 1024, "largest answer that is not streamed", low=1)

    heartbeat_interval_s: float = setting(1.0, "between two looks at a worker", low=0.01)
    heartbeat_timeout_s: float = setting(0.6, "an answer slower than this is a miss, and it is asked again", low=0.01)
    heartbeat_misses: int = setting(3, "misses in a row until a worker is lost", low=1)
    heartbeat_slow_s: float = setting(
        3.0, "a worker that has been answering late may take as long as it did, at most this", low=0.01
    )
    fleet_poll_s: float = setting(0.25, "between two looks at the fleet file", low=0.01)
    suspend_s: float = setting(2.0, "a worker that failed a request is avoided for so long", low=0)
    slow_transfer_s: float = setting(
        1.0, "a pair whose KV keeps a request waiting longer, and longer than computing it, is avoided", low=0
    )
    retry_ratio: float = setting(0.1, "retries per request, in the long run", low=0, high=1)
    retry_burst: int = setting(10, "retries that may be saved up", low=0)
    max_resumes: int = setting(3, "times that an answer goes on elsewhere when its worker died", low=0)
    resume_burst: int = setting(1024, "such moves that may be saved up; one is earned per request", low=0)
    drain_delay_s: float = setting(0.0, "after SIGTERM: not ready, yet still accepting, for so long", low=0)
    drain_s: float = setting(60.0, "after that: time for admitted requests to end", low=0)

    def __post_init__(self) -> None:
        if self.discovery == "file":
            if not self.fleet_file:
                raise SettingError("fleet_file", "", "is missing", "name the fleet file, or use discovery: kubernetes")
            for field in ("model_name", "served_name", "namespace"):
                if value := getattr(self, field):
                    fix = "leave it out: the fleet file names the model"
                    raise SettingError(field, value, "does not go with discovery: file", fix)
        elif not self.model_name:
            raise SettingError("model_name", "", "is missing", "discovery: kubernetes needs the Model's name")
        elif self.fleet_file:
            fix = "leave it out: EndpointSlices name the workers"
            raise SettingError("fleet_file", self.fleet_file, "does not go with discovery: kubernetes", fix)
        if self.prefix_keys == "text" and self.mode != "aggregated":
            raise SettingError("prefix_keys", "text", f"does not fit mode {self.mode}", "a transfer needs tokens")
        if self.processes > self.max_in_flight:
            fix = f"give at most max_in_flight, {self.max_in_flight}"
            raise SettingError("processes", self.processes, "leaves some of them no request to serve", fix)

    @property
    def policy(self) -> Policy:
        return Policy(self.mode, self.on_prefill_failure, self.min_remote_prefill_tokens)  # type: ignore[arg-type]
