"""Least privilege: over everything that these tests did, rights granted are rights used, exactly."""

from __future__ import annotations

import json

import pytest

from support.kube.cluster import Cluster
from support.kube.foreign import ForeignCluster
from support.kube.images import REPOSITORY
from support.kube.release import Deployed, Release, eventually
from support.kube.rights import granted, used

OWN_KEY = "sk-made-by-the-user"
OPERATOR_ROLES = ("clusterrole/baton-operator", "--namespace=baton-system role/baton-operator-leader")


@pytest.mark.timeout(600)
def test_operator_and_gateway_use_every_right_they_have(
    cluster: Cluster | ForeignCluster, release: Release, demo: Deployed
) -> None:
    if isinstance(cluster, ForeignCluster):
        pytest.skip("the audit log of a cluster of KUBECONFIG cannot be read from here")
    the_rarer_things(demo)
    a_lease_that_somebody_deletes(Deployed(cluster, release.namespace))
    log = cluster.audit_log.read_text().splitlines()

    roles = [json.loads(cluster.kubectl("get", *where.split(), "-o", "json")) for where in OPERATOR_ROLES]
    gateways = demo.get("role", "demo-gateway")
    handed_on = granted([gateways])
    assert granted(roles) - handed_on == used(log, "baton-system:baton-operator") - handed_on
    assert handed_on <= granted(roles)
    assert handed_on == used(log, "models:demo-gateway")
    print(f"\noperator: {len(granted(roles))} rights, gateway: {len(handed_on)}; all used, no other")


def a_lease_that_somebody_deletes(operator: Deployed) -> None:
    operator.kubectl("delete", "lease", "baton-operator")
    held = ("get", "lease", "baton-operator", "--ignore-not-found", "-o", "jsonpath={.spec.holderIdentity}")
    eventually("the Lease is there again and held", lambda: operator.kubectl(*held), 60)


def the_rarer_things(demo: Deployed) -> None:
    """A pool that goes, one that the Model itself makes larger; a Model whose API key its user has made before it."""
    demo.kubectl("patch", "model", "demo", "--type=merge", "-p", '{"spec": {"decode": {"replicas": 2}}}')
    eventually("its Pool follows", lambda: demo.get("pool", "demo-decode")["spec"]["replicas"] == 2, 30)
    demo.kubectl("patch", "model", "demo", "--type=merge", "-p", '{"spec": {"mode": "aggregated"}}')
    kinds = "pools,poddisruptionbudgets,deployments,configmaps"
    eventually("nothing of prefill is left", lambda: "demo-prefill" not in demo.kubectl("get", kinds), 120)
    demo.kubectl("delete", "model", "demo", "--timeout=120s", timeout_s=150)
    eventually("nothing of the Model is left", lambda: not demo.left(), 120)
    demo.kubectl("create", "secret", "generic", "demo-api-key", f"--from-literal=api-key={OWN_KEY}")
    demo.apply(REPOSITORY / "examples/01-smallest.yaml")
    demo.until_ready()
    assert demo.api_key == OWN_KEY
    assert demo.ask("What is a KV ticket?")
    demo.kubectl("delete", "secret", "demo-api-key")
