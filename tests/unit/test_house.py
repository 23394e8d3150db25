"""The house's own rules: pure modules are listed, folders shadow nothing, stubs are fresh, metrics are used by name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
import pure  # noqa: E402

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def contract(name: str) -> dict[str, list[str]]:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    return next(found for found in contracts if found["id"] == name)


def test_every_module_that_says_pure_is_held_to_it() -> None:
    assert sorted(contract("pure")["source_modules"]) == sorted(name for name, _ in pure.pure_modules())


def test_no_component_folder_is_a_package() -> None:
    folders = (*pure.ROOTS, "sim", "tests/operator")
    assert not [folder for folder in folders if (REPOSITORY / folder / "__init__.py").exists()]


def test_torch_is_imported_only_by_the_engines_tensor_modules() -> None:
    named = {name for name, path in pure.modules() if re.search(r"^\s*(import|from) torch\b", path.read_text(), re.M)}
    assert all(name.startswith("baton_engine.") for name in named)


@pytest.mark.filterwarnings("default")
def test_the_grpc_stubs_are_those_of_the_proto(tmp_path: Path) -> None:
    proto = "baton_wire/pb/control.proto"
    outputs = [f"--{kind}={tmp_path}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(REPOSITORY / "wire/proto"), *outputs, proto]
    subprocess.run(command, check=True, cwd=REPOSITORY / "wire/proto", capture_output=True)
    for made in (tmp_path / "baton_wire/pb").iterdir():
        assert made.read_text() == (REPOSITORY / "wire/baton_wire/pb" / made.name).read_text(), made.name


def test_every_metric_a_component_names_stands_in_the_table() -> None:
    from baton_api.metrics import BY_NAME

    named = set()
    for name, path in pure.modules():
        if name != "baton_api.metrics":
            named |= set(re.findall(r'"((?:vllm:|baton_(?:worker|kv|gateway|operator)_)[a-z0-9_]+)"', path.read_text()))
    missing = {name for name in named if name not in BY_NAME and not name.startswith("baton_gateway_http")}
    assert not missing
