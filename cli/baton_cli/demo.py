"""`baton demo`: one prefill and one decode worker answer real questions, and every answer shows where its time went."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from baton_api.crd import API_VERSION, KIND, Model, parse_model
from baton_api.errors import BatonError, SettingError
from baton_wire.http_client import HttpClient

from .client import Message, ask
from .rundir import RunDir
from .status import look
from .up import Deployment, StartFailed, deployed, log_tails
from .view import View

CHUNK_TOKENS = 64
BLOCK_TOKENS = 16
MODEL_PATH = Path("examples/demo_model/model")
QUESTION = "What is a KV ticket?"
EARLIER = (
    ("What is prefill?", "Prefill is the first leg of a request: it computes the keys and values of the whole prompt."),
    ("What is decode?", "Decode is the second leg of a request: it generates the answer token by token."),
    ("What is a block?", "A block is a fixed run of tokens with their keys and values of all layers in one region."),
    ("What is a lease?", "A lease is the promise of a prefill worker to keep the blocks until decode has pulled them."),
    ("What is an epoch?", "An epoch names one incarnation of a worker process; after a restart it is new."),
)


@dataclass(frozen=True, slots=True)
class Scene:
    """One question of the demo, what was said before it, and what to look at."""

    about: str
    question: str
    earlier: tuple[tuple[str, str], ...] = ()

    @property
    def messages(self) -> list[Message]:
        turns = [
            Message(role, text) for turn in self.earlier for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return [*turns, Message("user", self.question)]


SCENES = (
    Scene("a short prompt", QUESTION),
    Scene(
        f"the end of a conversation: prefill computes chunks of {CHUNK_TOKENS} tokens, decode pulls meanwhile",
        "What is the gateway?",
        EARLIER,
    ),
    Scene("the same conversation, another question: its beginning is in both prefix caches", "What is TTFT?", EARLIER),
)


def demo_model(source: Path, transport: str) -> Model:
    """One prefill worker, one decode worker; small chunks, so that a long prompt takes several."""
    spec: dict[str, Any] = {
        "source": str(source),
        "engine": {"threads": 1, "maxBatchedTokens": CHUNK_TOKENS},
        "kv": {"blockTokens": BLOCK_TOKENS, "blocks": 512, "transport": transport},
        "routing": {"minRemotePrefillTokens": 0},
    }
    return parse_model({"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "demo"}, "spec": spec})


def find_source() -> Path:
    """The demo model of this checkout. Raises SettingError."""
    for folder in (*Path(__file__).resolve().parents, Path.cwd()):
        if (folder / MODEL_PATH / "config.json").is_file():
            return folder / MODEL_PATH
    raise SettingError("demo model", str(MODEL_PATH), "is not here", "run this in a checkout of the repository")


async def demo(run_dir: RunDir, view: View, model: Model) -> int:
    """Exit code 0 when every question was answered, 1 otherwise, with the logs' ends."""
    with run_dir.held():
        try:
            async with deployed(model, run_dir, view, host="127.0.0.1", port=0) as deployment:
                view.topology(*await look(run_dir))
                for scene in SCENES:
                    await _play(scene, deployment, view)
        except BatonError as error:
            if isinstance(error, SettingError):
                raise
            stopped = isinstance(error, StartFailed) and not error.message
            view.failure("stopped before it was ready" if stopped else error.message, log_tails(run_dir))
            return 1
    return 0


async def _play(scene: Scene, deployment: Deployment, view: View) -> None:
    view.question(scene.question, scene.about)
    http = HttpClient()
    try:
        fields = {"temperature": 0.0, "max_tokens": 96}
        answered = await ask(http, deployment.endpoint, scene.messages, view.piece, **fields)
    finally:
        await http.close()
    view.timing(answered)
