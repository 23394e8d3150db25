"""Reads a Hugging Face model directory: its config, its safetensors files and their identity.

Only safetensors: the format cannot execute code. Its layout (8 bytes little-endian header length, JSON header, data)
is https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from baton_api.errors import SettingError

from .config import ModelConfig, parse_config

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_HEADER_BYTES = 100 * 1024 * 1024
SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: safetensors dtype ("F32", "BF16", ...), shape, [begin, end) bytes from `data_start`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    path: Path
    data_start: int
    header_digest: bytes
    tensors: dict[str, TensorEntry]


def read_config(folder: Path) -> ModelConfig:
    """config.json and, if there, generation_config.json of `folder`. Raises SettingError."""
    generation = folder / "generation_config.json"
    return parse_config(_read_json(folder / "config.json"), _read_json(generation) if generation.exists() else None)


def read_tensor_files(folder: Path) -> list[TensorFile]:
    """The headers of all weight files, in the order of their names. Raises SettingError."""
    index = folder / INDEX_FILE
    if index.exists():
        names = sorted(set(_weight_map(index).values()))
    elif (folder / SINGLE_FILE).exists():
        names = [SINGLE_FILE]
    else:
        raise SettingError(
            "model", str(folder), f"has neither {SINGLE_FILE} nor {INDEX_FILE}", "convert to safetensors"
        )
    return [_read_header(folder, name) for name in names]


def model_digest(config: ModelConfig, files: list[TensorFile]) -> str:
    """64 hex digits: equal only if KV computed by one is right for the other.

    Covers the KV-relevant config and, for every weight file in order, its size, its whole header (names, dtypes,
    shapes, offsets) and the first, middle and last 4 KiB of every tensor. Reading every byte of a large model would
    take minutes at each start; training, merging or converting touches whole tensors, so three samples of each
    tensor tell two models apart. An adversary who edits single weights between the samples is not its concern: the
    digest guards against mixing models, signed tickets against foreign workers. Files sharded differently differ.
    """
    digest = hashlib.sha256(json.dumps(config.kv_identity, sort_keys=True).encode())
    for file in files:
        digest.update(file.path.stat().st_size.to_bytes(8, "little"))
        digest.update(file.header_digest)
        with file.path.open("rb") as stream:
            for name in sorted(file.tensors):
                _sample(digest, stream, file.data_start, file.tensors[name])
    return digest.hexdigest()


def _sample(digest: Any, stream: BinaryIO, data_start: int, entry: TensorEntry) -> None:
    size = entry.end - entry.begin
    for offset in sorted({0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)}):
        stream.seek(data_start + entry.begin + offset)
        digest.update(stream.read(min(SAMPLE_BYTES, size - offset)))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SettingError(INDEX_FILE, weight_map, "has no weight_map", "download the model again")
    return weight_map


def _read_header(folder: Path, name: str) -> TensorFile:
    path = folder / name
    if Path(name).name != name or not path.is_file():
        raise SettingError("model", str(path), "is named by the index but is no file here", "download the model again")
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise SettingError("model", str(path), f"has a header of {length} bytes", "download the model again")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        tensors = {
            key: TensorEntry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for key, value in header.items()
            if key != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError("model", str(path), f"has a broken header ({error})", "download the model again") from error
    if max((entry.end for entry in tensors.values()), default=0) + 8 + length != path.stat().st_size:
        raise SettingError("model", str(path), "is not as long as its header says", "download the model again")
    return TensorFile(path, 8 + length, hashlib.sha256(raw).digest(), tensors)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError("model", str(path), "does not exist", "name a Hugging Face model directory") from error
    except ValueError as error:
        raise SettingError("model", str(path), f"is not JSON ({error})", "download the model again") from error
    if not isinstance(data, dict):
        raise SettingError("model", str(path), "is not a JSON object", "download the model again")
    return data
