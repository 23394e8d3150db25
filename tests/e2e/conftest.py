"""Our images on a real cluster: KUBECONFIG's, or a node started from KUBE_ASSETS; without either the tests skip.

On a cluster of KUBECONFIG the images come from where BATON_E2E_VALUES (a values file of the chart) says.
BATON_E2E_STORE keeps built images between runs (default: .baton/images).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kube.cluster import Cluster, node_lacks
from support.kube.foreign import ForeignCluster
from support.kube.images import DOCKERFILES, REPOSITORY, Store, missing_tools
from support.kube.release import CHART, Deployed, Release, namespace

AnyCluster = Cluster | ForeignCluster


@pytest.fixture(scope="session")
def values() -> Path:
    """Where the chart finds the images."""
    return Path(os.environ.get("BATON_E2E_VALUES", CHART / "values-cpu-demo.yaml"))


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyCluster]:
    if kubeconfig := os.environ.get("KUBECONFIG"):
        if "BATON_E2E_VALUES" not in os.environ:
            pytest.skip("KUBECONFIG is set, but not BATON_E2E_VALUES: a values file that says where the images are")
        yield ForeignCluster(Path(kubeconfig))
        return
    assets = Path(os.environ.get("KUBE_ASSETS", ""))
    if not (assets / "kubelet").exists():
        pytest.skip("no cluster: set KUBECONFIG to one, or KUBE_ASSETS to a folder with the binaries of Kubernetes")
    if lacking := [*node_lacks(), *missing_tools()]:
        pytest.skip(f"no cluster: a node started here, or its images, needs {', '.join(lacking)}")
    images = built_images()
    with Cluster(assets, tmp_path_factory.mktemp("cluster"), node=True) as started:
        started.load(images)
        yield started


def built_images() -> Path:
    store = Store(Path(os.environ.get("BATON_E2E_STORE", REPOSITORY / ".baton/images")).absolute())
    store.make_base()
    return store.export([store.build(component) for component in DOCKERFILES])


@pytest.fixture
def release_namespace(cluster: AnyCluster) -> Iterator[str]:
    with namespace(cluster, "baton-system") as name:
        yield name


@pytest.fixture
def models_namespace(cluster: AnyCluster) -> Iterator[str]:
    with namespace(cluster, "models") as name:
        yield name


@pytest.fixture
def release(cluster: AnyCluster, release_namespace: str, values: Path) -> Iterator[Release]:
    """Installed; uninstalled at the end, CRDs too."""
    made = Release(cluster, "helm", release_namespace, ("--values", str(values)))
    made.install()
    yield made
    made.uninstall()
    made.remove_crds()


@pytest.fixture
def demo(release: Release, models_namespace: str) -> Iterator[Deployed]:
    """examples/01, Ready; deleted at the end, so that the operator still lives then."""
    deployed = Deployed(release.cluster, models_namespace)
    deployed.apply(REPOSITORY / "examples/01-smallest.yaml")
    deployed.until_ready()
    yield deployed
    deployed.kubectl("delete", "models", "--all", "--timeout=120s", timeout_s=150)
