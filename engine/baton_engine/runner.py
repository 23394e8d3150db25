"""TorchRunner: one step of the model over the paged KV (the tensor half behind batch.Runner)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from baton_api.errors import SettingError
from baton_api.layout import KvLayout
from baton_api.sampling import SampledToken

from .attention import PagedAttention
from .batch import Slice
from .checkpoint import model_digest, read_config, read_tensor_files
from .config import ModelConfig
from .kv_cache import ARRANGEMENT, KvStore, make_store, torch_dtype
from .linear import CopyBudget
from .model import Model
from .sampler import draw_tokens
from .tensor_settings import TensorSettings
from .weights import ModelWeights, Progress, load_weights


class TorchRunner:
    """Implements batch.Runner on a CPU or one CUDA device. Not thread-safe: one thread calls it, one call at a time."""

    def __init__(self, config: ModelConfig, weights: ModelWeights, store: KvStore, settings: TensorSettings) -> None:
        self._config, self._store = config, store
        self._max_model_len = _max_model_len(config, settings)
        self._device = weights.embedding.device
        self._attention = PagedAttention(config, store.pool)
        budget = CopyBudget(settings.packed_weights_bytes)
        self._model = Model(config, weights, self._attention, self._max_model_len, budget)

    @classmethod
    def load(cls, folder: Path, settings: TensorSettings, progress: Progress | None = None) -> TorchRunner:
        """Loads the Hugging Face directory `folder`. Raises SettingError with field, value and fix."""
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        device = _device(settings.device)
        config, files = read_config(folder), read_tensor_files(folder)
        dtype = settings.dtype if settings.dtype != "auto" else _natural_dtype(config, device)
        layout = KvLayout(
            model_digest=model_digest(config, files),
            num_layers=config.num_layers,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            block_tokens=settings.block_tokens,
            dtype=dtype,
            arrangement=ARRANGEMENT,
        )
        weights = load_weights(config, files, torch_dtype(dtype), device, progress)
        store = make_store(layout, settings.blocks(layout.block_bytes), device)
        return cls(config, weights, store, settings)

    @property
    def layout(self) -> KvLayout:
        return self._store.layout

    @property
    def store(self) -> KvStore:
        return self._store

    @property
    def max_model_len(self) -> int:
        return self._max_model_len

    @property
    def vocab_size(self) -> int:
        return self._config.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._config.eos_token_ids

    @torch.inference_mode()
    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        """Writes the KV of every slice's tokens and draws; result[i][j] answers slices[i].draws[j].

        A slice must own the blocks it writes: a partly written last block that it begins is zeroed first.
        Raises InternalError when the logits are not finite.
        """
        if not slices:
            return []
        order = sorted(range(len(slices)), key=lambda i: _row_order(slices[i]))
        ordered = [slices[i] for i in order]
        logits = self._forward(ordered)
        drawing = [piece for piece in ordered if piece.draws]
        rows = [row for row, piece in enumerate(drawing) for _ in piece.draws]
        draws = [draw for piece in drawing for draw in piece.draws]
        tokens = iter(draw_tokens(logits, rows, draws, self.eos_token_ids) if draws else ())
        by_slice = {i: [next(tokens) for _ in slices[i].draws] for i in order}
        return [by_slice[i] for i in range(len(slices))]

    @torch.inference_mode()
    def logits(self, slices: Sequence[Slice]) -> Tensor:
        """Like `run`, but returns the float32 logits [slices with draws, vocab_size] in the order of `slices`."""
        order = sorted(range(len(slices)), key=lambda i: _row_order(slices[i]))
        logits = self._forward([slices[i] for i in order])
        drawing = [i for i in order if slices[i].draws]
        return logits[self._to_device(sorted(range(len(drawing)), key=drawing.__getitem__))]

    @torch.inference_mode()
    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (source, destination) each."""
        if pairs:
            self._store.pool.copy(pairs)

    def _forward(self, slices: Sequence[Slice]) -> Tensor:
        """The float32 logits [slices with draws, vocab_size] of `slices` in row order."""
        positions = self._to_device([p for s in slices for p in range(s.start, s.start + len(s.token_ids))])
        token_ids = self._to_device([token_id for piece in slices for token_id in piece.token_ids])
        self._attention.wipe_fresh_tails(slices)
        hidden = self._model.hidden(token_ids, positions, self._attention.plan(slices, positions))
        last_rows: list[int] = []
        end = 0
        for piece in slices:
            end += len(piece.token_ids)
            if piece.draws:
                last_rows.append(end - 1)
        if len(last_rows) < end:
            hidden = hidden[self._to_device(last_rows)]
        return self._model.logits(hidden)

    def _to_device(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self._device, non_blocking=True)


def _row_order(piece: Slice) -> tuple[bool, int]:
    """Decode before prefill; decode by context length, so that neighbours share a padded call."""
    return len(piece.token_ids) > 1, piece.start


def _natural_dtype(config: ModelConfig, device: torch.device) -> str:
    """The checkpoint's on a GPU. On a CPU float32: it is not slower there, and rounds so finely that a token does not
    depend on what else is in the batch (bfloat16 kernels for one row and for many differ visibly)."""
    return "float32" if device.type == "cpu" else config.dtype


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError("device", name, "is no device", "use cpu, cuda or cuda:<index>") from error
    if device.type not in ("cpu", "cuda"):
        raise SettingError("device", name, "is not supported", "use cpu, cuda or cuda:<index>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingError("device", name, "is not there", "use cpu, or check the driver and torch's CUDA build")
    return device


def _max_model_len(config: ModelConfig, settings: TensorSettings) -> int:
    limit = settings.max_model_len
    if limit is None:
        return config.max_positions
    if limit > config.max_positions:
        raise SettingError(
            "max_model_len", limit, f"is above the model's {config.max_positions} positions", "use a smaller one"
        )
    return limit
