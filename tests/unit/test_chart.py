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


def render(
    *arguments: str,
    helm: str = "helm",
    values: tuple[str, ...] = (),
    release: str = "baton",
    namespace: str = "baton-system",
) -> list[Any]:
    files = [f"--values={chart.CHART / name}" for name in values]
    command = [need(helm), "template", release, str(chart.CHART), f"--namespace={namespace}", "--kube-version=1.36.0"]
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


@pytest.mark.parametrize("scope", ["cluster", "namespaced"])
def test_names_that_look_like_numbers_are_texts(scope: str) -> None:
    given = {"watchNamespaces": ["123", "1e3"], "serviceAccount.name": "7", "images.pullSecrets": ["8"]}
    texts = [f"--set-json={name}={json.dumps(value)}" for name, value in given.items()]
    monitor = "--api-versions=monitoring.coreos.com/v1/ServiceMonitor"
    options = (f"--set=scope={scope},replicas=2,networkPolicy.create=true", "--set-string=priorityClassName=9", monitor)
    documents = render(*texts, *options, release="1", namespace="123")
    for document in documents:
        metadata = document["metadata"]
        assert isinstance(metadata["name"], str) and isinstance(metadata.get("namespace", ""), str), document["kind"]
        if document["kind"] != "ServiceMonitor":
            kubernetes_validate.validate(document, VALIDATED_AGAINST, strict=True)
    (pod,) = (one["spec"]["template"]["spec"] for one in documents if one["kind"] == "Deployment")
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("9", "7")
    assert pod["imagePullSecrets"] == [{"name": "8"}]


@pytest.mark.parametrize(
    ("release", "name"),
    [("my-baton", "my-baton"), ("1", "baton-1"), ("a.b", "a-b-baton")],
)
def test_a_release_of_any_name_has_a_service(release: str, name: str) -> None:
    """A Service's name is an RFC 1035 label; a release's need not be."""
    (service,) = (one for one in render(release=release) if one["kind"] == "Service")
    assert service["metadata"]["name"] == f"{name}-operator"


def test_labels_and_annotations_of_ours_win() -> None:
    """And no key stands twice, which YAML readers take differently."""
    label, annotation = "app\\.kubernetes\\.io/component=mine", "checksum/settings=mine"
    labels = f"--set=podLabels.{label},podLabels.team=a,dashboards.labels.{label}"
    documents = render(labels, f"--set=podAnnotations.{annotation},podAnnotations.b=c")
    (pod,) = (one["spec"]["template"]["metadata"] for one in documents if one["kind"] == "Deployment")
    (dashboard,) = (one["metadata"] for one in documents if one["metadata"]["name"] == "baton-dashboards")
    assert (pod["labels"]["app.kubernetes.io/component"], pod["labels"]["team"]) == ("operator", "a")
    assert dashboard["labels"]["app.kubernetes.io/component"] == "operator"
    assert len(pod["annotations"]["checksum/settings"]) == 64 and pod["annotations"]["b"] == "c"


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
        ("settings=null", "missing property 'settings'"),
        ("images=null", "missing property 'images'"),
    ],
)
def test_values_outside_the_schema_are_refused_by_name(helm: str, given: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        render(f"--set={given}", helm=helm)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("settings.port=1", r"settings\.port is set by the chart"),
        ("settings.leader.lease_name=x", r"settings\.leader\.lease_name is set by the chart"),
        ("settings.leader.enabled=false,replicas=2", "use replicas 1"),
    ],
)
def test_settings_that_the_chart_relies_on_are_refused_by_name(given: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        render(f"--set={given}")


def test_what_the_chart_sets_is_what_it_refuses() -> None:
    texts = [one["data"]["settings.json"] for one in render() if "settings.json" in one.get("data", {})]
    helpers = (chart.CHART / "templates/_helpers.tpl").read_text()
    fixed = re.search(r'define "baton.fixed" -}}\n(.*?)\{\{- end', helpers, re.DOTALL)
    assert fixed and json.loads(texts[0]).keys() - {"leader"} <= yaml.safe_load(fixed[1]).keys()
    assert yaml.safe_load(fixed[1]).keys() <= OperatorSettings.__dataclass_fields__.keys()


def test_without_a_leader_the_old_operator_ends_before_the_new_one_starts() -> None:
    for given, strategy in (("replicas=2", None), ("settings.leader.enabled=false", {"type": "Recreate"})):
        (spec,) = (one["spec"] for one in render(f"--set={given}") if one["kind"] == "Deployment")
        assert spec.get("strategy") == strategy


def test_every_value_has_a_rule_and_every_rule_a_value() -> None:
    values = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    schema = json.loads((chart.CHART / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values) == set(schema["required"])
    for name, rule in schema["properties"].items():
        if "properties" in rule:
            assert set(rule["properties"]) == set(values[name]) == set(rule["required"]), name
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
