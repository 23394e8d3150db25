"""`baton status`, `explain` and `doctor` as their users run them: against an outside API server, and a real one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton_api.crd_manifests import manifests
from baton_cli.main import kubectl, main
from support.fake_watch import FakeApi
from support.kube_cluster import Cluster, cluster_for
from support.loops import LoopThread

ROOT = Path(__file__).parents[2]
MODELS, PODS = "/apis/baton.dev/v1alpha1/namespaces/ns/models", "/api/v1/namespaces/ns/pods"
POOLS, EVENTS = "/apis/baton.dev/v1alpha1/namespaces/ns/pools", "/api/v1/namespaces/ns/events"
READY = {"type": "Ready", "status": "True", "reason": "Serving", "message": "2 of 2 workers serve"}


def model(name: str = "demo", **status: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "ns", "generation": 1}
    return {"metadata": metadata, "status": {"observedGeneration": 1, "conditions": [READY], **status}}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    """An API server on a thread of its own, named by KUBECONFIG."""
    loop = LoopThread()
    api = FakeApi()
    loop.run(api.start())
    for collection in (MODELS, POOLS, PODS, EVENTS):
        api.objects[collection] = {}
    raw = {
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.port}"}}],
        "users": [{"name": "u", "user": {"token": "first"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
    }
    (tmp_path / "config").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    yield api
    loop.run(api.stop())
    loop.close()


def run(*argv: str, entry: Any = main) -> int:
    with pytest.raises(SystemExit) as ended:
        entry(list(argv))
    return int(ended.value.code or 0)


def test_status_lists_the_models_and_kubectl_baton_says_the_same(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(MODELS, model(endpoint="http://demo-gateway.ns.svc", decode={"summary": "1/1"}))
    api.put(MODELS, model("other"))
    assert run("status", "--cluster") == 0
    table = capsys.readouterr().out
    assert "Models in namespace ns" in table and "demo" in table and "http://demo-gateway.ns.svc" in table
    assert run("status", entry=kubectl) == 0
    assert capsys.readouterr().out == table
    assert run("status", "--context", "c", "--name", "other", "--output", "json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [(one["name"], one["ready"], one["reason"]) for one in said["models"]] == [("other", "True", "Serving")]
    assert run("status", "--cluster", "--name", "none") == 2
    assert "use one of: demo, other" in capsys.readouterr().err


def test_explain_says_how_it_is_and_ends_with_1_until_it_is_ready(
    api: FakeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(MODELS, model())
    labels = {"baton.dev/model": "demo", "app.kubernetes.io/component": "decode"}
    waiting = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    api.put(PODS, {"metadata": {"name": "d-x", "labels": labels}, "status": {"containerStatuses": [waiting]}})
    about = {"involvedObject": {"kind": "Pod", "name": "d-x"}, "type": "Warning", "reason": "Failed", "message": "pull"}
    api.put(EVENTS, {"metadata": {"name": "e"}, **about})
    api.put(EVENTS, {"metadata": {"name": "f"}, **about, "involvedObject": {"name": "else"}, "message": "foreign"})
    assert run("explain", "model", "demo") == 0
    said = capsys.readouterr().out
    assert "demo in ns: Ready True, Serving" in said and "d-x: ImagePullBackOff: no such image" in said
    assert "Failed: pull" in said and "foreign" not in said
    assert "port-forward service/demo-gateway" in said
    failing = {**READY, "status": "False", "reason": "ImageUnavailable"}
    api.put(MODELS, model(conditions=[failing]))
    assert run("explain", "model", "demo", "--json") == 1
    data = json.loads(capsys.readouterr().out)
    assert data["next_steps"][-1] == "kubectl -n ns describe pod d-x"
    api.put(MODELS, model(observedGeneration=-1))
    assert run("explain", "model", "demo") == 1
    assert "the operator has not seen this generation" in capsys.readouterr().out


def test_what_cannot_be_had_is_an_error_that_says_what_to_do(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "model", "demo") == 2
    assert "'demo' does not exist in namespace ns; use one of: none there" in capsys.readouterr().err
    api.answers[f"GET {EVENTS}"] = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no"}
    api.put(MODELS, model())
    assert run("explain", "model", "demo") == 0, "events are a help, not the answer"
    api.token = "other"
    assert run("status", "--cluster") == 2 and "HTTP 401" in capsys.readouterr().err
    assert run("status", "--context", "nope") == 2 and "use one of: c" in capsys.readouterr().err


def test_a_server_that_still_reads_a_new_crd_is_asked_again(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(MODELS, model())
    busy = iter([(429, [("retry-after", "1")]), (429, [])])
    api.refuse = lambda asked: next(busy, None)
    assert run("status", "--cluster") == 0 and "demo" in capsys.readouterr().out


def test_doctor_looks_and_ends_with_1_after_a_fail(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    def review(asked: dict[str, Any]) -> dict[str, Any]:
        return {"status": {"allowed": asked["spec"]["resourceAttributes"]["verb"] != "delete"}}

    api.answers |= {
        "GET /version": {"gitVersion": "v1.36.3"},
        "GET /apis": {"groups": [{"name": "baton.dev"}]},
        "GET /api/v1/namespaces/ns": {"metadata": {"name": "ns"}},
        "POST /apis/authorization.k8s.io/v1/selfsubjectaccessreviews": review,
    }
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    api.objects |= {"/apis/apps/v1/deployments": {}, "/api/v1/nodes": {}, "/apis/storage.k8s.io/v1/storageclasses": {}}
    for manifest in manifests().values():
        api.put(crds, manifest)
    assert run("doctor", "--json") == 1
    lines = json.loads(capsys.readouterr().out)
    found = {(line["level"], line["found"]) for line in lines}
    assert ("ok", "models.baton.dev is installed and of this release") in found
    assert ("fail", "you may not delete models.baton.dev") in found
    assert ("fail", "no Deployment of it in any namespace") in found
    assert any(line["what"] == "UCX here" and "tcp/" in line["found"] for line in lines)
    assert run("doctor") == 1
    text = capsys.readouterr().out
    assert text.count("\n") >= len(lines) and "-> ask for a Role in ns that grants it" in text


def test_doctor_without_a_cluster_is_about_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("doctor") == 0 and "none configured" in capsys.readouterr().out
    assert run("doctor", "--namespace", "x") == 1, "it was asked for"
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    assert run("doctor") == 1


def test_a_server_that_nobody_reaches_is_a_failed_line(
    api: FakeApi, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (tmp_path / "config").read_text().replace(str(api.port), "1")
    (tmp_path / "config").write_text(text)
    assert run("doctor") == 1
    assert "cannot connect to 127.0.0.1:1" in capsys.readouterr().out


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_for(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def baton(cluster: Cluster, *argv: str, program: str = "main") -> tuple[int, str]:
    code = f"from baton_cli.main import {program}; {program}()"
    environment = {"KUBECONFIG": str(cluster.kubeconfig), "PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(400)
def test_the_three_commands_on_a_real_api_server(cluster: Cluster) -> None:
    """In a namespace of its own; of what it makes only the CRDs stay."""
    if cluster.plane is not None:
        status, said = baton(cluster, "status", "--cluster")
        assert status == 2 and "does not know Models; install Baton there" in said
        lines = json.loads(baton(cluster, "doctor", "--json")[1])
        assert any("models.baton.dev is not installed" in line["found"] for line in lines)
    cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "deploy/crds"))
    cluster.kubectl("wait", "--for=condition=Established", "crd/models.baton.dev", "crd/pools.baton.dev")
    namespace = "baton-cli-test"
    cluster.kubectl("create", "namespace", namespace)
    try:
        cluster.kubectl("-n", namespace, "apply", "-f", str(ROOT / "examples/01-smallest.yaml"))
        code, said = baton(cluster, "doctor", "--namespace", namespace, "--json")
        lines = json.loads(said)
        assert all("of this release" in line["found"] for line in lines if line["what"] == "CRDs"), lines
        assert code == int(any(line["level"] == "fail" for line in lines))
        assert f"13 of 13 in namespace {namespace}" in said
        code, said = baton(cluster, "status", "-n", namespace, program="kubectl")
        assert code == 0 and "demo" in said
        code, said = baton(cluster, "explain", "model", "demo", "-n", namespace)
        assert code == 1 and "the operator has not looked at it yet" in said
        cluster.kubectl("-n", namespace, "create", "serviceaccount", "reader")
        token = cluster.kubectl("-n", namespace, "create", "token", "reader").strip()
        check_as_nobody_special(cluster, namespace, token)
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def check_as_nobody_special(cluster: Cluster, namespace: str, token: str) -> None:
    """A service account without any right: the doctor says what it may not, and does not fall over."""
    raw = yaml.safe_load(cluster.kubeconfig.read_text())
    raw["users"] = [{"name": raw["users"][0]["name"], "user": {"token": token}}]
    path = cluster.kubeconfig.with_name("reader.kubeconfig")
    path.write_text(yaml.safe_dump(raw))
    poor = Cluster(path, cluster.plane)
    code, said = baton(poor, "doctor", "--namespace", namespace)
    assert code == 1 and "you may not get models.baton.dev" in said and "you may not look" in said, said
    code, said = baton(poor, "explain", "model", "demo", "-n", namespace)
    assert code == 2 and "HTTP 403" in said and "reader" in said
