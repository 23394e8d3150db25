"""The chart: what it renders is valid and current, what it refuses, in Helm 4 and 3."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from baton_api.metrics import ALL, BY_NAME
from baton_api.settings import parse
from baton_operator.settings import OperatorSettings

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "tools"))
import chart  # noqa: E402
import dashboards  # noqa: E402

HELMS = ("helm", "helm3")
VALIDATED_AGAINST = "1.36"
OURS = "baton.dev"
PROFILES = ((), *((f"values-{name}.yaml",) for name in chart.PROFILES))
SCALES = {
    "watchNamespaces": "--set=watchNamespaces={a,b}",
    "namespaced": "--set=scope=namespaced,watchNamespaces={a,b}",
    "digest": "--set=images.registry=registry.test/,images.gateway.digest=sha256:" + "a" * 64,
    "pull secrets": "--set=images.pullSecrets={one}",
    "monitor": "--api-versions=monitoring.coreos.com/v1/ServiceMonitor",
}


def need(helm: str) -> str:
    found = chart.find_program(helm)
    if found is None:
        pytest.skip(f"no {helm}: put it on the PATH, or set KUBE_ASSETS to a folder that has it")
    return found


def render(*arguments: str, helm: str = "helm", values: tuple[str, ...] = ()) -> list[Any]:
    files = [f"--values={chart.CHART / name}" for name in values]
    command = [need(helm), "template", "baton", str(chart.CHART), "--namespace=baton-system", "--kube-version=1.36.0"]
    ended = subprocess.run([*command, *files, *arguments], check=False, text=True, capture_output=True)
    if ended.returncode:
        raise ValueError(ended.stderr)
    return [document for document in yaml.safe_load_all(ended.stdout) if document]


def test_what_is_made_from_metrics_schema_and_crds_is_current() -> None:
    """After a change that is meant: python tools/chart.py write"""
    assert chart.stale(chart.files()) == []


@pytest.mark.parametrize("helm", HELMS)
def test_deploy_is_the_chart_rendered(helm: str) -> None:
    """After a change that is meant: python tools/chart.py write"""
    assert chart.stale(chart.rendered(need(helm))) == []


@pytest.mark.parametrize("helm", HELMS)
def test_lint_finds_nothing(helm: str) -> None:
    ended = subprocess.run([need(helm), "lint", "--strict", str(chart.CHART)], check=False, capture_output=True)
    assert ended.returncode == 0, ended.stdout.decode()


@pytest.mark.parametrize("values", PROFILES, ids=str)
@pytest.mark.parametrize("extra", [None, *SCALES])
def test_every_manifest_is_valid(values: tuple[str, ...], extra: str | None) -> None:
    documents = render(*([SCALES[extra]] if extra else []), values=values)
    assert documents
    for document in documents:
        if document["apiVersion"].partition("/")[0] not in ("monitoring.coreos.com",):
            kubernetes_validate.validate(document, VALIDATED_AGAINST, strict=True)


@pytest.mark.parametrize("values", PROFILES, ids=str)
def test_the_operators_settings_file_is_one_that_it_parses(values: tuple[str, ...]) -> None:
    documents = render("--set=settings.log_level=DEBUG", values=values)
    texts = [one["data"]["settings.json"] for one in documents if "settings.json" in one.get("data", {})]
    settings = parse(OperatorSettings, json.loads(texts[0]))
    assert settings.log_level == "DEBUG"
    assert settings.namespace == "baton-system"
    namespaced = values == ("values-namespaced.yaml",)
    assert settings.watch_namespaces == (("baton-system",) if namespaced else ())


def test_without_cluster_scope_nothing_cluster_wide_is_made() -> None:
    kinds = {document["kind"] for document in render(values=("values-namespaced.yaml",))}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace"}


def test_helm_keeps_the_crds() -> None:
    crds = [document for document in render() if document["kind"] == "CustomResourceDefinition"]
    assert {crd["spec"]["names"]["kind"] for crd in crds} == {"Model", "Pool"}
    assert all(crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep" for crd in crds)
    assert not [one for one in render("--set=crds.install=false") if one["kind"] == "CustomResourceDefinition"]


def test_no_role_is_wider_than_it_says() -> None:
    for document in render():
        for rule in document.get("rules", ()):
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"]), document["metadata"]["name"]


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("replica=2", "replica"),
        ("images.gateway.tags=x", "tags"),
        ("images.gateway.tag=latest", "tag"),
        ("images.gateway.digest=sha256:12", "digest"),
        ("scope=everything", "scope"),
        ("replicas=-1", "replicas"),
        ("replicas=two", "replicas"),
        ("watchNamespaces={Upper}", "watchNamespaces"),
        ("crds.create=true", "create"),
        ("podLabels.a=1", "podLabels"),
    ],
)
def test_values_outside_the_schema_are_refused_by_name(helm: str, given: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        render(f"--set={given}", helm=helm)


def test_every_value_has_a_rule_and_every_rule_a_value() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, rule in schema["properties"].items():
        if "properties" in rule:
            assert set(rule["properties"]) == set(values[name]), name
    assert len(list(chart.described(values, schema, schema))) > 30


def test_a_dashboard_panel_for_every_metric_and_none_beside() -> None:
    panels = [panel for panel in dashboards.panels() if panel["type"] != "row"]
    assert [panel["title"] for panel in panels] == [
        metric.name for name in dashboards.ROWS for metric in dashboards.ROWS[name]
    ]
    assert {panel["title"] for panel in panels} == set(BY_NAME)
    assert len({panel["id"] for panel in dashboards.panels()}) == len(dashboards.panels())


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_queries_name_only_series_and_labels_of_their_metric(metric: dashboards.Metric) -> None:
    series = {metric.name, f"{metric.name}_bucket"} if metric.kind == "histogram" else {metric.name}
    for expression, _ in dashboards.queries(metric):
        assert set(re.findall(r"[a-z][\w:]*(?=\{)", expression)) <= series
        by = re.search(r"by \(([^)]*)\)", expression)
        assert set(by[1].split(", ") if by else ()) <= {"le", *metric.labels}


def test_the_readme_names_every_profile() -> None:
    text = (chart.CHART / "README.md").read_text()
    assert all(path.name in text for path in chart.CHART.glob("values-*.yaml"))


@pytest.mark.parametrize("folder", ["base", *(f"overlays/{name}" for name in chart.PROFILES)])
def test_kustomize_builds_what_is_in_deploy(folder: str) -> None:
    kubectl = chart.find_program("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl: put it on the PATH, or set KUBE_ASSETS to a folder that has it")
    command = [kubectl, "kustomize", str(chart.DEPLOY / folder)]
    built = list(yaml.safe_load_all(subprocess.run(command, check=True, text=True, capture_output=True).stdout))
    assert "Deployment" in {document["kind"] for document in built}
    crds = [document for document in built if document["kind"] == "CustomResourceDefinition"]
    assert len(crds) == (0 if folder.endswith("namespaced") else 2)
