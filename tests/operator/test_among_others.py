"""The operator among others: their objects under its names, what they change, delete or add, two operators."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from baton_operator import kinds
from baton_operator.settings import LeaderSettings
from support.fake_api import NAMESPACE, FakeCluster
from support.operators import condition, eventually, model, running
from support.settling import Json, is_settled, quiet, settings_of, settled, stalled_ready, state


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    async with FakeCluster.up() as fake:
        yield fake


def strangers(cluster: FakeCluster) -> dict[str, Json]:
    """Objects with the names that Model m will want, of every kind that can be anybody's."""
    for kind, name, fields in (
        (kinds.NETWORK_POLICY, "m", {"spec": {"podSelector": {}}}),
        (kinds.SERVICE, "m-gateway", {"spec": {"ports": [{"port": 443}]}}),
        (kinds.ROLE, "m-gateway", {"rules": []}),
        (kinds.CONFIG_MAP, "m-gateway", {"data": {"mine": "yes"}}),
        (kinds.SERVICE_ACCOUNT, "m-gateway", {}),
        (kinds.POOL, "m-decode", {"spec": {"role": "decode", "model": "m", "replicas": 3}}),
    ):
        cluster.create(kind, {"kind": kind.kind, "metadata": {"name": name}, **fields})
    return theirs(cluster)


def theirs(cluster: FakeCluster) -> dict[str, Json]:
    """All that no operator has made."""
    found = {f"{kind.kind} {name}": item for kind in kinds.CHILDREN for name, item in cluster.of(kind).items()}
    return {name: json.loads(json.dumps(item)) for name, item in found.items() if "labels" not in item["metadata"]}


async def test_what_others_made_under_a_models_names_is_not_touched_and_said(cluster: FakeCluster) -> None:
    before = strangers(cluster)
    assert len(before) == 6
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await eventually(lambda: "Deployment m-decode" in str(state(cluster)), what="what is free is made")
        ready = await eventually(lambda: stalled_ready(cluster, "NameTaken"))
        assert all(f"{name} exists and is not Baton's: delete it or rename the Model" in ready for name in before)
        await quiet(cluster)
        assert await quiet(cluster) == 0
        assert theirs(cluster) == before
        made = state(cluster)
        assert "RoleBinding m-gateway" not in made and "Deployment m-gateway" not in made
        cluster.remove(kinds.MODEL, "m")
        await quiet(cluster, 0.1)
    assert theirs(cluster) == before


async def test_a_name_that_is_free_again_is_taken_when_the_model_changes(cluster: FakeCluster) -> None:
    cluster.create(kinds.NETWORK_POLICY, {"kind": "NetworkPolicy", "metadata": {"name": "m"}, "spec": {}})
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await eventually(lambda: stalled_ready(cluster, "NameTaken"))
        cluster.remove(kinds.NETWORK_POLICY, "m")
        cluster.change(kinds.MODEL, "m", {"metadata": {"annotations": {"look": "again"}}})
        assert len(await settled(cluster)) == 20


async def test_a_pool_that_lost_its_label_is_found_and_keeps_its_size(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        cluster.change(kinds.POOL, "m-decode", {"spec": {"replicas": 3}})
        await eventually(lambda: is_settled(cluster) and "3/3" in str(cluster.of(kinds.MODEL)["m"]["status"]))
        labels = {"app.kubernetes.io/managed-by": None}
        cluster.change(kinds.POOL, "m-decode", {"metadata": {"labels": labels}})
        await eventually(lambda: "managed-by" in str(cluster.of(kinds.POOL)["m-decode"]["metadata"]["labels"]))
        await quiet(cluster)
        assert await quiet(cluster) == 0
        assert cluster.of(kinds.POOL)["m-decode"]["spec"]["replicas"] == 3 and is_settled(cluster)


async def test_a_lease_that_somebody_deletes_is_made_again_and_work_goes_on(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of(leader=LeaderSettings(renew_s=0.1))) as operator:
        await eventually(lambda: operator.leading)
        cluster.remove(kinds.LEASE, "baton-operator")
        await eventually(lambda: "holderIdentity" in str(cluster.of(kinds.LEASE)), what="the Lease is there again")
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        assert operator.leading


async def test_a_pool_without_its_model_says_so(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        for kind in kinds.CHILDREN:  # as kubectl delete --cascade=orphan does
            for name in tuple(cluster.of(kind)):
                cluster.change(kind, name, {"metadata": {"ownerReferences": None}})
        cluster.remove(kinds.MODEL, "m")

        def lone() -> bool:
            found = [condition(pool, "Ready") for pool in cluster.of(kinds.POOL).values()]
            return len(found) == 2 and all(said.get("reason") == "NoSuchModel" for said in found)

        await eventually(lone)
        assert "kubectl delete -n ns pool m-decode" in str(cluster.of(kinds.POOL)["m-decode"]["status"])
        await quiet(cluster)
        assert await quiet(cluster) == 0
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        assert len(await settled(cluster)) == 20
        assert condition(cluster.of(kinds.POOL)["m-decode"], "Ready")["reason"] == "AsWanted"


async def test_a_model_that_a_finalizer_of_others_holds_says_so(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        held = {"deletionTimestamp": "2026-11-28T00:00:00Z", "finalizers": ["foregroundDeletion", "example.com/x"]}
        cluster.change(kinds.MODEL, "m", {"metadata": held})
        said = str(await eventually(lambda: stalled_ready(cluster, "Deleting")))
        assert "finalizers of others hold it: example.com/x;" in said
        await quiet(cluster)
        assert await quiet(cluster) == 0


DRIFT: list[tuple[kinds.Kind, str, Json]] = [
    (kinds.SERVICE, "m-gateway", {"spec": {"ports": []}}),
    (kinds.DEPLOYMENT, "m-gateway", {"spec": {"replicas": 0}}),
    (kinds.CONFIG_MAP, "m-gateway", {"data": {"settings.json": "{}"}}),
    (kinds.ROLE, "m-gateway", {"rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]}),
    (kinds.POOL, "m-decode", {"metadata": {"labels": {"baton.dev/role": None}}}),
    (kinds.SECRET, "m-secret", {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}),
    (kinds.NETWORK_POLICY, "m", {"spec": {"ingress": None}}),
]


@pytest.mark.parametrize(("kind", "name", "patch"), DRIFT, ids=[f"{kind.kind} {name}" for kind, name, _ in DRIFT])
async def test_what_somebody_changes_or_deletes_comes_back(
    cluster: FakeCluster, kind: kinds.Kind, name: str, patch: Json
) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        wanted = await settled(cluster)
        cluster.change(kind, name, patch)
        await eventually(lambda: state(cluster) == wanted, what="as it was")
        if kind is not kinds.SECRET:
            cluster.remove(kind, name)
            await eventually(lambda: state(cluster) == wanted, what="there again")
        await quiet(cluster)
        assert await quiet(cluster) == 0


async def test_what_others_add_is_left_alone(cluster: FakeCluster) -> None:
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        added = {"metadata": {"annotations": {"other": "x"}, "labels": {"team": "a"}}, "spec": {"minReadySeconds": 3}}
        cluster.change(kinds.DEPLOYMENT, "m-gateway", added)
        await quiet(cluster)
        assert await quiet(cluster) == 0
        found = cluster.of(kinds.DEPLOYMENT)["m-gateway"]
        assert found["metadata"]["labels"]["team"] == "a" and found["spec"]["minReadySeconds"] == 3


async def test_a_secret_that_was_there_before_is_used_and_never_overwritten(cluster: FakeCluster) -> None:
    own = {"kind": "Secret", "metadata": {"name": "m-api-key"}, "data": {"api-key": "b3du"}}
    cluster.create(kinds.SECRET, own)
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        await quiet(cluster)
        assert await quiet(cluster) == 0
    found = cluster.of(kinds.SECRET)["m-api-key"]
    assert found["data"] == own["data"] and not found["metadata"].get("ownerReferences")


async def test_a_copy_of_a_deployment_is_its_makers(cluster: FakeCluster) -> None:
    """With all labels of ours but another revision, to try something out."""
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        name = next(name for name in cluster.of(kinds.DEPLOYMENT) if name.startswith("m-decode-"))
        copied = json.loads(json.dumps(cluster.of(kinds.DEPLOYMENT)[name]))
        labels = copied["metadata"]["labels"] | {"baton.dev/revision": "mine"}
        copied["metadata"] = {"name": "my-copy", "labels": labels}
        cluster.create(kinds.DEPLOYMENT, copied)
        cluster.change(kinds.MODEL, "m", {"spec": {"kv": {"blockTokens": 32}}})
        await eventually(lambda: name not in cluster.of(kinds.DEPLOYMENT) and is_settled(cluster))
        assert cluster.of(kinds.DEPLOYMENT)["my-copy"]["spec"]["replicas"] == 1
        assert "1/1" in str(cluster.of(kinds.MODEL)["m"]["status"]["decode"])


async def test_two_operators_that_undo_each_other_soon_rest_and_say_so(cluster: FakeCluster) -> None:
    """Both believe that the namespace is theirs, with images of their own."""
    async with running(cluster.access, settings_of()):
        cluster.create(kinds.MODEL, model("m", NAMESPACE))
        await settled(cluster)
        async with running(cluster.access, settings_of(gateway_image="localhost/another:test")):
            await eventually(
                lambda: "somebody undoes every write" in str(stalled_ready(cluster, "RefusedByApiServer")), 10.0
            )
            await quiet(cluster, 1.0)
            assert await quiet(cluster, 1.0) <= 10  # what the two say of it; without rests 44 a second
