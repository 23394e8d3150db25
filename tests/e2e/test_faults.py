"""Faults of processes, Pods and node under 20 streams/s: which requests fail, and why each was allowed to.

BATON_E2E_FAULTS names a file for the table (docs/faults-on-a-node.md).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.kube.cluster import Cluster
from support.kube.faults import FAULTS, Fault, Scene
from support.kube.foreign import ForeignCluster
from support.kube.images import REPOSITORY
from support.kube.release import Deployed, Release, eventually, namespace
from support.kube.under_load import Table, load

RATE = 20.0
TWO_OF_EACH = (
    '{"spec": {"prefill": {"replicas": 2}, "decode": {"replicas": 2}, "routing": {"minRemotePrefillTokens": 0}}}'
)


@pytest.fixture(scope="module")
def scene(cluster: Cluster | ForeignCluster, values: Path) -> Iterator[Scene]:
    if isinstance(cluster, ForeignCluster):
        pytest.skip("the processes of a cluster of KUBECONFIG cannot be reached from here")
    with namespace(cluster, "baton-system") as system, namespace(cluster, "models") as models:
        options = ("--values", str(values), "--set", "settings.gateway_replicas=2")
        release = Release(cluster, "helm", system, options)
        release.install()
        demo = Deployed(cluster, models)
        demo.apply(REPOSITORY / "examples/01-smallest.yaml")
        demo.kubectl("patch", "model", "demo", "--type=merge", "-p", TWO_OF_EACH)
        made = Scene(cluster, demo, Deployed(cluster, system))
        eventually("two workers of each role and two gateways are ready", made.whole, 180)
        yield made
        demo.kubectl("delete", "model", "demo", "--timeout=120s", timeout_s=150)
        release.uninstall()
        release.remove_crds()


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    made = Table()
    yield made
    if (path := os.environ.get("BATON_E2E_FAULTS")) and made.lines:
        Path(path).write_text(made.text(RATE))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_only_what_a_fault_allows_fails(fault: Fault, scene: Scene, table: Table, tmp_path: Path) -> None:
    with load(scene.demo, RATE, tmp_path) as outcome:
        time.sleep(5)
        at_s = time.time()
        fault.befall(scene)
        over_s = time.time()
        eventually("all is whole again", scene.whole, 120)
        whole_s = (time.time() - at_s, time.time() - over_s)
        time.sleep(3)
    table.add(fault.name, outcome, whole_s, fault.excuse.why if fault.excuse else "")
    forbidden = [seen for seen in outcome.failed if not fault.allows(seen, at_s)]
    again = f"whole after {whole_s[0]:.1f} s, {whole_s[1]:.1f} s after its end"
    print(f"\n{fault.name}: {outcome.line()}; {again}; {dict(outcome.why)}")
    assert not forbidden, forbidden[:3]
