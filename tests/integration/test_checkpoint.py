"""What is wrong with a model directory is said by name; two models never share a digest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton_api.errors import SettingError
from baton_engine.checkpoint import INDEX_FILE, model_digest, read_config, read_tensor_files
from baton_engine.runner import TorchRunner
from baton_engine.tensor_settings import TensorSettings
from support.tiny_models import TinyModel, make_model

SETTINGS = TensorSettings(num_blocks=2)
WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model(tmp_path / "model", TinyModel())


def digest(folder: Path) -> str:
    return model_digest(read_config(folder), read_tensor_files(folder))


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "config.json' does not exist"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "safetensors"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "is not a JSON object"),
    "weights cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]), "not as long"),
    "weights are something else": (lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 100), "has a header of"),
    "header is garbage": (lambda f: (f / WEIGHTS).write_bytes(b"\x02" + b"\0" * 7 + b"[]"), "broken header"),
    "a tensor is missing": (
        lambda f: edit_weights(f, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        "model.layers.1.mlp.up_proj.weight",
    ),
    "a tensor is unknown": (lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(2))), "'extra'"),
    "a tensor has another shape": (
        lambda f: edit_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(65)})),
        r"has shape \[65\], not \[64\]",
    ),
    "a tensor has an unread dtype": (
        lambda f: edit_weights(f, lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)})),
        "is stored as I8",
    ),
    "the index names a file that is not there": (
        lambda f: (f / INDEX_FILE).write_text('{"weight_map": {"a": "model-00001.safetensors"}}'),
        "is no file here",
    ),
    "the index points outside": (
        lambda f: (f / INDEX_FILE).write_text('{"weight_map": {"a": "../secret.safetensors"}}'),
        "is no file here",
    ),
    "the index is empty": (lambda f: (f / INDEX_FILE).write_text("{}"), "weight_map"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_directory_stops_the_start(folder: Path, name: str) -> None:
    damage, message = BROKEN[name]
    damage(folder)
    with pytest.raises(SettingError, match=message):
        TorchRunner.load(folder, SETTINGS)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (TensorSettings(num_blocks=1, device="cuda:99"), "device"),
        (TensorSettings(num_blocks=1, device="meta"), "device"),
        (TensorSettings(num_blocks=1, device="abacus"), "device"),
        (TensorSettings(num_blocks=1, max_model_len=4096), "max_model_len"),
        (TensorSettings(kv_bytes=100), "kv_bytes"),
        (TensorSettings(num_blocks=1 << 32), "kv_bytes"),
        (TensorSettings(num_blocks=1 << 50), "kv_bytes"),
    ],
)
def test_settings_that_cannot_be_met_stop_the_start(folder: Path, settings: TensorSettings, field: str) -> None:
    with pytest.raises(SettingError) as caught:
        TorchRunner.load(folder, settings)
    assert caught.value.field == field


def test_settings_shape_the_runner(folder: Path) -> None:
    runner = TorchRunner.load(folder, TensorSettings(kv_bytes=1 << 20, max_model_len=100, block_tokens=8))
    assert runner.max_model_len == 100
    assert runner.layout.block_bytes == 8 * 2 * 2 * 2 * 16 * 4
    assert runner.store.num_blocks == (1 << 20) // runner.layout.block_bytes
    assert runner.vocab_size == 640 and runner.eos_token_ids == {0, 2}


def test_progress_goes_from_the_first_tensor_to_all_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = make_model(tmp_path, TinyModel(shards=3))
    TorchRunner.load(folder, SETTINGS, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen) and len(seen) == 21
    assert seen[-1][0] == seen[-1][1]


def test_what_a_checkpoint_carries_without_need_is_skipped(tmp_path: Path) -> None:
    folder = make_model(tmp_path, TinyModel(tied=True))
    edit_weights(
        folder,
        lambda t: t.update(
            {"lm_head.weight": torch.zeros(640, 64), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
        ),
    )
    assert TorchRunner.load(folder, SETTINGS).vocab_size == 640


def test_a_float16_checkpoint_is_served_in_float32(folder: Path) -> None:
    edit_weights(folder, lambda t: t.update({name: value.half() for name, value in t.items()}))
    edit_config(folder, dtype="float16")
    assert TorchRunner.load(folder, SETTINGS).layout.dtype == "float32"


def test_equal_models_have_equal_digests_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    edit_config(copy, eos_token_id=5, transformers_version="4.1")
    assert digest(copy) == digest(folder)


CHANGES: dict[str, Callable[[Path], object]] = {
    "rope theta": lambda f: edit_config(f, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
    "norm epsilon": lambda f: edit_config(f, rms_norm_eps=1e-3),
    "one tensor trained on": lambda f: edit_weights(f, lambda t: t["model.layers.1.mlp.up_proj.weight"].mul_(1.001)),
    "the last element of a tensor": lambda f: edit_weights(
        f, lambda t: t["model.embed_tokens.weight"][-1, -1:].add_(1.0)
    ),
    "another dtype": lambda f: edit_weights(f, lambda t: t.update({n: v.bfloat16() for n, v in t.items()})),
    "two tensors swapped": lambda f: edit_weights(
        f,
        lambda t: t.update(
            {
                "model.layers.0.mlp.up_proj.weight": t["model.layers.0.mlp.gate_proj.weight"],
                "model.layers.0.mlp.gate_proj.weight": t["model.layers.0.mlp.up_proj.weight"],
            }
        ),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_computes_other_kv_has_another_digest(folder: Path, name: str) -> None:
    before = digest(folder)
    CHANGES[name](folder)
    assert digest(folder) != before


def test_seeds_make_models_that_differ(tmp_path: Path) -> None:
    assert len({digest(make_model(tmp_path / str(seed), TinyModel(seed=seed))) for seed in range(3)}) == 3


def test_a_models_config_and_digest_are_read_without_torch(folder: Path) -> None:
    """So that the gateway and the command line can look at a model."""
    program = (
        "import sys, pathlib; from baton_engine import checkpoint as c, tensor_settings; f = pathlib.Path(sys.argv[1]);"
        "print(c.model_digest(c.read_config(f), c.read_tensor_files(f)), 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", program, str(folder)], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == [digest(folder), "False"]
