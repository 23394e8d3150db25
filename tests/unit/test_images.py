"""The Dockerfiles and what they install: pinned, non-root, complete, and nothing of one machine in them."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from support.kube.images import DOCKERFILES, REPOSITORY, pip_paths

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
MODULES = {name: f"baton_{name}.__main__" for name in DOCKERFILES}
WITHOUT_TORCH = ("gateway", "operator")


def text_of(component: str) -> str:
    return (REPOSITORY / DOCKERFILES[component]).read_text()


def stage(component: str, name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM )", text_of(component), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def copied(component: str) -> set[str]:
    return set(re.findall(r"^COPY \S+/(baton_\w+) /code/\1$", text_of(component), re.MULTILINE))


def file_of(module: str) -> Path | None:
    """Of one of our modules or packages."""
    roots = PROJECT["tool"]["hatch"]["build"]["dev-mode-dirs"]
    for root in roots:
        path = REPOSITORY / root / module.replace(".", "/")
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.exists():
                return candidate
    return None


def imports(module: str) -> Iterator[str]:
    """Our modules that a module imports, wherever in its text, and the packages on the way to them."""
    path = file_of(module)
    assert path is not None, module
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        named = []
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            named = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        for name in named:
            parts = name.split(".")
            yield from (one for end in range(1, len(parts) + 1) if file_of(one := ".".join(parts[:end])))


def reached(module: str) -> set[str]:
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imports(name)
    return seen


@pytest.mark.parametrize("component", DOCKERFILES)
def test_an_image_holds_every_package_that_its_process_imports_and_no_other(component: str) -> None:
    needed = {module.split(".")[0] for module in reached(MODULES[component])}
    assert copied(component) == needed


@pytest.mark.parametrize("component", WITHOUT_TORCH)
def test_gateway_and_operator_carry_no_torch(component: str) -> None:
    assert "torch" not in text_of(component).lower()
    pins = (REPOSITORY / f"deploy/requirements/{component}.txt").read_text()
    assert not re.search(r"^(torch|ucxx|libucx|nvidia|safetensors|numpy)", pins, re.MULTILINE)


def test_both_workers_share_the_layers_of_their_dependencies() -> None:
    assert stage("prefill", "dependencies") == stage("decode", "dependencies")


@pytest.mark.parametrize("component", DOCKERFILES)
def test_code_comes_in_layers_of_its_own_after_the_dependencies(component: str) -> None:
    final = text_of(component).rpartition("\nFROM ")[2]
    assert final.startswith("dependencies\n")
    assert re.findall(r"^COPY (\S+) ", final, re.MULTILINE)[-1] == "--from=code"
    assert "COPY" not in stage(component, "dependencies").replace("COPY deploy/requirements/", "")


@pytest.mark.parametrize("component", DOCKERFILES)
def test_processes_are_not_root_and_the_base_is_an_argument(component: str) -> None:
    text = text_of(component)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["65532:65532"]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}", "dependencies"]
    assert re.search(r"^ARG BASE=\S+:\d+\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)


@pytest.mark.parametrize("component", DOCKERFILES)
def test_nothing_of_one_machine_is_in_them(component: str) -> None:
    assert not re.search(r"index-url|find-links|trusted-host|https?://|PIP_", text_of(component))


@pytest.mark.parametrize("image", ["gateway", "operator", "worker"])
def test_the_pins_satisfy_what_the_extras_ask(image: str) -> None:
    """After a change that is meant: python tools/lock.py write"""
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (REPOSITORY / f"deploy/requirements/{image}.txt").read_text(), re.M))
    extras = {"worker": ["worker", "ucx"]}.get(image, [image])
    for requirement in asked(extras):
        if requirement.name != "torch":
            assert requirement.specifier.contains(pins[requirement.name.lower()]), requirement


def asked(extras: list[str]) -> Iterator[Requirement]:
    for extra in extras:
        for requirement in map(Requirement, PROJECT["project"]["optional-dependencies"][extra]):
            if requirement.name == PROJECT["project"]["name"]:
                yield from asked(sorted(requirement.extras))
            else:
                yield requirement


def test_what_pip_settings_name_is_lent_to_a_build(tmp_path: Path) -> None:
    (tmp_path / "simple").mkdir()
    settings = f"[global]\nextra-index-url = file://{tmp_path}/simple https://x.test/simple\nfind-links = {tmp_path}\n"
    assert list(pip_paths(settings)) == [str(tmp_path), str(tmp_path)]
