"""Chart, deploy/ and examples against the schemas of the API server that runs here, by kubeconform."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.kube import schemas
from support.kube_cluster import Api, Cluster

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
import chart  # noqa: E402

Conform = Callable[..., dict[str, Any]]


def program(name: str) -> str:
    found = chart.find_program(name)
    if found is None:
        pytest.skip(f"no {name}: put it on the PATH, or set KUBE_ASSETS to a folder that has it")
    return found


@pytest.fixture(scope="module")
def conform(cluster: Cluster, api: Api, tmp_path_factory: pytest.TempPathFactory) -> Conform:
    """What kubeconform says of files, or of a text."""
    kubeconform = program("kubeconform")
    status, openapi = api("GET", "/openapi/v2")
    assert status == 200
    location = schemas.write(openapi, tmp_path_factory.mktemp("schemas"))

    def run(*files: Path, text: str | None = None) -> dict[str, Any]:
        command = [kubeconform, "-output=json", "-verbose", "-summary", f"-schema-location={location}"]
        ended = subprocess.run([*command, *map(str, files)], input=text, check=False, text=True, capture_output=True)
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    return run


def problems(found: dict[str, Any]) -> list[dict[str, Any]]:
    """A document that holds comments only has no status."""
    return [one for one in found["resources"] if one["status"] not in ("statusValid", "")]


@pytest.mark.parametrize("values", [None, *chart.PROFILES])
@pytest.mark.parametrize("helm", ["helm", "helm3"])
def test_everything_that_the_chart_renders_conforms(conform: Conform, helm: str, values: str | None) -> None:
    chosen = [f"--values={chart.CHART}/values-{values}.yaml"] if values else []
    command = [program(helm), "template", "baton", str(chart.CHART), f"--kube-version={chart.KUBE_VERSION}", *chosen]
    found = conform(text=subprocess.run(command, check=True, text=True, capture_output=True).stdout)
    assert problems(found) == [] and found["summary"]["valid"] >= 8


def test_deploy_and_the_examples_conform(conform: Conform) -> None:
    files = [path for path in chart.DEPLOY.rglob("*.yaml") if path.name != "kustomization.yaml"]
    found = conform(*files, *(REPOSITORY / "examples").glob("*.yaml"))
    assert problems(found) == []
    kinds = {one["kind"] for one in found["resources"]}
    assert kinds >= {"Model", "CustomResourceDefinition", "Deployment", "ClusterRole", "Lease", "ConfigMap"}


@pytest.mark.parametrize(
    ("kind", "version", "spec", "said"),
    [
        ("Model", "baton.dev/v1alpha1", {"source": "x", "sauce": 1}, "sauce"),
        ("Model", "baton.dev/v1alpha1", {"prefill": {}}, "source"),
        ("Deployment", "apps/v1", {"selector": {}, "template": {"spec": {"containers": [{"image": 1}]}}}, "image"),
    ],
)
def test_what_the_server_would_refuse_is_found(
    conform: Conform, kind: str, version: str, spec: dict[str, Any], said: str
) -> None:
    document = {"apiVersion": version, "kind": kind, "metadata": {"name": "m"}, "spec": spec}
    (found,) = problems(conform(text=json.dumps(document)))
    assert found["status"] == "statusInvalid" and said in found["msg"]
