"""One control plane for all tests of this folder, with the CRDs of deploy/crds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from support.kube_cluster import Api, Cluster, cluster_for

CRDS = Path(__file__).parents[2] / "deploy/crds"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_for(tmp_path_factory.mktemp("cluster"), CRDS) as found:
        yield found


@pytest.fixture(scope="session")
def api(cluster: Cluster) -> Api:
    return Api(cluster)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh one for each test."""
    name = f"t{crc32(request.node.nodeid.encode())}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
