"""One control plane for all tests of this folder, with the CRDs of deploy/crds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.control_plane import Api, ControlPlane, control_plane

CRDS = Path(__file__).parents[2] / "deploy/crds"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        plane.kubectl("apply", "--server-side", "-f", str(CRDS))
        plane.kubectl("wait", "--for=condition=Established", "crd/models.baton.dev", "crd/pools.baton.dev")
        yield plane


@pytest.fixture(scope="session")
def api(cluster: ControlPlane) -> Api:
    return Api(cluster)


@pytest.fixture
def namespace(cluster: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh one for each test."""
    name = f"t{abs(hash(request.node.nodeid)) % 10**9}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
