"""Without any cluster-wide right: somebody else installed the CRDs, Roles are all that the release has."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.kube.cluster import Cluster
from support.kube.foreign import ForeignCluster
from support.kube.images import REPOSITORY
from support.kube.release import CHART, Deployed, Release, eventually


@pytest.mark.timeout(400)
def test_a_model_is_served_in_the_releases_own_namespace(
    cluster: Cluster | ForeignCluster, values: Path, models_namespace: str
) -> None:
    crds = ("-f", str(REPOSITORY / "deploy/crds"))
    cluster.kubectl("apply", "--server-side", *crds)
    options = ("--values", str(values), "--values", str(CHART / "values-namespaced.yaml"))
    release = Release(cluster, "helm", models_namespace, options)
    release.install()
    try:
        bindings = cluster.kubectl("get", "clusterrolebindings", "-o", "wide")
        assert f"{models_namespace}/" not in bindings
        demo = Deployed(cluster, models_namespace)
        demo.apply(REPOSITORY / "examples/01-smallest.yaml")
        demo.until_ready()
        assert demo.ask("What is a KV ticket?")[0]["text"].startswith("A KV ticket is a signed permission")
        assert "1 Models are Ready and answer" in release.test()
        demo.kubectl("delete", "model", "demo", "--timeout=120s", timeout_s=150)
        eventually("nothing of the Model is left", lambda: not demo.left(), 120)
    finally:
        release.uninstall()
        cluster.kubectl("delete", *crds)
