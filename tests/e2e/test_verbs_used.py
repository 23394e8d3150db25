"""Least privilege: over everything that these tests did, rights granted are rights used, exactly."""

from __future__ import annotations

import json

import pytest

from support.kube.cluster import Cluster
from support.kube.foreign import ForeignCluster
from support.kube.release import Deployed, Release, eventually
from support.kube.rights import granted, used

OPERATOR_ROLES = ("clusterrole/baton-operator-baton-system", "--namespace=baton-system role/baton-operator-leader")


@pytest.mark.timeout(600)
def test_operator_and_gateway_use_every_right_they_have(
    cluster: Cluster | ForeignCluster, release: Release, demo: Deployed
) -> None:
    if isinstance(cluster, ForeignCluster):
        pytest.skip("the audit log of a cluster of KUBECONFIG cannot be read from here")
    the_rarer_things(demo)
    log = cluster.audit_log.read_text().splitlines()

    roles = [json.loads(cluster.kubectl("get", *where.split(), "-o", "json")) for where in OPERATOR_ROLES]
    gateways = demo.get("role", "demo-gateway")
    handed_on = granted([gateways])
    assert granted(roles) - handed_on == used(log, "baton-system:baton-operator") - handed_on
    assert handed_on <= granted(roles)
    assert handed_on == used(log, "models:demo-gateway")
    print(f"\noperator: {len(granted(roles))} rights, gateway: {len(handed_on)}; all used, no other")


def the_rarer_things(demo: Deployed) -> None:
    """A pool that goes and comes back; a Model that is deleted without what belongs to it, and made again."""
    demo.kubectl("patch", "model", "demo", "--type=merge", "-p", '{"spec": {"mode": "aggregated"}}')
    eventually("the prefill pool is gone", lambda: "demo-prefill" not in demo.kubectl("get", "pools,pdb"), 120)
    spec = demo.get("model", "demo")["spec"]
    demo.kubectl("delete", "model", "demo", "--cascade=orphan")
    again = {"apiVersion": "baton.dev/v1alpha1", "kind": "Model", "metadata": {"name": "demo"}, "spec": spec}
    demo.kubectl("apply", "-f", "-", stdin=json.dumps(again))
    uid = demo.get("model", "demo")["metadata"]["uid"]
    eventually("the secrets are taken over", lambda: owner_of(demo, "secret", "demo-secret") == uid, 60)
    demo.until_ready()


def owner_of(demo: Deployed, kind: str, name: str) -> str | None:
    owners = demo.get(kind, name)["metadata"].get("ownerReferences", [])
    return owners[0]["uid"] if owners else None
