"""Where a Pod finds the model: what to mount, and what to fetch before it starts. Pure.

Sources, and what becomes of them (docs/design/0005-kubernetes.md):

    some/path            /models/some/path, which the image has
    /some/path           the same path
    pvc://claim/path     the claim at /models, read-only
    oci://image          an image volume at /models, read-only
    hf://org/name@rev    fetched by an init container into an emptyDir at /models
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from baton_api.kubernetes import MODELS_DIR

VOLUME = "model"
WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class Fetch:
    """A repository to download; `revision` "" is its default branch."""

    repository: str
    revision: str

    def command(self, *, with_weights: bool) -> list[str]:
        """Of huggingface_hub, which comes with tokenizers and so is in every image."""
        revision = ["--revision", self.revision] if self.revision else []
        unwanted = WEIGHTS[1:] if with_weights else WEIGHTS
        without = [word for pattern in unwanted for word in ("--exclude", pattern)]
        return ["hf", "download", self.repository, *revision, "--local-dir", MODELS_DIR, *without]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """`path` is where the process looks; `volume` None: the image has it."""

    path: str
    volume: dict[str, Any] | None = None
    read_only: bool = True
    fetch: Fetch | None = None


def model_source(source: str) -> ModelSource:
    """Of a source that the rules of the CRD let through."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        path = source if source.startswith("/") else f"{MODELS_DIR}/{source.removeprefix('./')}"
        return ModelSource(path)
    if scheme == "pvc":
        claim, _, inside = rest.partition("/")
        volume = {"name": VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        return ModelSource(f"{MODELS_DIR}/{inside}".rstrip("/"), volume)
    if scheme == "oci":
        return ModelSource(MODELS_DIR, {"name": VOLUME, "image": {"reference": rest, "pullPolicy": "IfNotPresent"}})
    repository, _, revision = rest.partition("@")
    return ModelSource(MODELS_DIR, {"name": VOLUME, "emptyDir": {}}, False, Fetch(repository, revision))
