"""What is said of a Model in which situation: one row per reason, and the plan that belongs to it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from baton_api import kubernetes as names
from baton_api.crd import API_VERSION, KIND, parse_model
from baton_api.crd_status import Reason
from baton_api.worker import Role
from baton_operator import kinds
from baton_operator.checks import View
from baton_operator.compare import Compared
from baton_operator.desired import desired
from baton_operator.events import events_of
from baton_operator.objects import MODEL_REPLICAS, Owner
from baton_operator.plan import Plan, plan
from baton_operator.settings import OperatorSettings
from baton_operator.snapshot import PodState, Snapshot, pod_state
from baton_operator.status import model_status, pool_status, stalled_status

Json = dict[str, Any]
SETTINGS = OperatorSettings(prefill_image="p:1", decode_image="d:1", gateway_image="g:1")
NOW = "2026-11-25T10:00:00Z"
OWNER = Owner("m", "ns", "u1")


def raw_model(status: Json | None = None, **spec: Any) -> Json:
    metadata = {"name": "m", "namespace": "ns", "uid": "u1", "generation": 3}
    whole = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": {"source": "x", **spec}}
    return whole | ({"status": status} if status else {})


class Scene:
    """A Model with everything made and ready; tests then take something away."""

    def __init__(self, status: Json | None = None, **spec: Any) -> None:
        self.raw = raw_model(status, **spec)
        self.model = parse_model(self.raw)
        self.wanted = desired(self.model, OWNER, SETTINGS, frozenset())
        self.children: dict[tuple[str, str], Json] = {}
        self.pods: list[PodState] = []
        self.refused: tuple[str, ...] = ()
        self.taken: tuple[str, ...] = ()
        self.retrying: tuple[str, ...] = ()
        for _ in range(3):
            self.carry_out()
        for name in self.deployments():
            self.report(name, ready=10)

    def snapshot(self) -> Snapshot:
        return Snapshot(self.raw, self.children, tuple(self.pods))

    def plan(self) -> Plan:
        return plan(self.model, OWNER, self.wanted, self.snapshot(), Compared())

    def carry_out(self) -> None:
        for action in self.plan().actions:
            assert action.verb in ("apply", "create", "secret")
            body = copy.deepcopy(action.body)
            item = body if action.verb != "secret" else {"kind": "Secret", "metadata": {**body, "name": action.name}}
            item["metadata"]["uid"] = f"uid-{action.name}"
            self.children[action.kind.kind, action.name] = item

    def deployments(self) -> list[str]:
        return [name for kind, name in self.children if kind == kinds.DEPLOYMENT.kind]

    def report(self, name: str, ready: int) -> None:
        item = self.children[kinds.DEPLOYMENT.kind, name]
        asked = item["spec"]["replicas"]
        item["status"] = {"replicas": asked, "updatedReplicas": asked, "readyReplicas": min(ready, asked)}

    def add_old_workers(self) -> None:
        """A Deployment of another revision beside each of the wanted one's, as ready as that is now."""
        for role in ("prefill", "decode"):
            old = copy.deepcopy(self.children[kinds.DEPLOYMENT.kind, self.worker(role)])
            old["metadata"] |= {"name": f"m-{role}-old", "uid": f"old-{role}"}
            old["metadata"]["labels"][names.REVISION_LABEL] = "old"
            self.children[kinds.DEPLOYMENT.kind, f"m-{role}-old"] = old

    def worker(self, role: str) -> str:
        return names.worker_name("m", Role(role), self.wanted.revision)

    def view(self) -> View:
        planned = self.plan()
        return View(self.model, self.snapshot(), self.wanted.revision, planned, self.refused, self.taken, self.retrying)

    def status(self) -> Json:
        return model_status(self.view(), NOW)


def conditions(status: Json) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in status["conditions"]}


def pod(role: str, trouble: str, component: str = "") -> PodState:
    return PodState(f"m-{role or component}-1", component or role, role, "", False, False, trouble, "says so")


def test_everything_ready() -> None:
    scene = Scene()
    assert scene.plan().actions == ()
    status = scene.status()
    assert conditions(status) == {
        "Ready": ("True", "Serving"),
        "Progressing": ("False", "Settled"),
        "Degraded": ("False", "AsWanted"),
    }
    assert status["plan"]["step"] == "steady" and status["endpoint"] == "http://m-gateway.ns.svc"


def test_nothing_made_yet() -> None:
    scene = Scene()
    scene.children.clear()
    status = scene.status()
    assert conditions(status)["Ready"] == ("False", "Creating")
    assert conditions(status)["Reconciling"][0] == "True"


TROUBLES = [
    ("decode", "Unschedulable", "WorkersUnschedulable"),
    ("decode", "ImagePullBackOff", "ImageUnavailable"),
    ("decode", "CrashLoopBackOff", "WorkersCrashing"),
    ("prefill", "CreateContainerConfigError", "WorkersCrashing"),
    ("decode", "", "StartingWorkers"),
    ("prefill", "", "StartingWorkers"),
]


@pytest.mark.parametrize("role", ["prefill", "decode", "gateway"])
def test_no_pod_is_let_in(role: str) -> None:
    scene = Scene(mode="disaggregated")
    name = scene.worker(role) if role != "gateway" else "m-gateway"
    scene.report(name, ready=0)
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}
    scene.children[kinds.DEPLOYMENT.kind, name]["status"]["conditions"] = [failure]
    status = scene.status()
    assert conditions(status)["Ready"] == ("False", "PodsRefused") == ("False", conditions(status)["Degraded"][1])
    assert "exceeded quota" in str(status["conditions"])


@pytest.mark.parametrize(("role", "trouble", "reason"), TROUBLES)
def test_no_worker_of_a_role_is_ready(role: str, trouble: str, reason: str) -> None:
    scene = Scene(mode="disaggregated")
    scene.report(scene.worker(role), ready=0)
    scene.pods = [pod(role, trouble)]
    status = scene.status()
    assert conditions(status)["Ready"] == ("False", reason)
    message = next(item["message"] for item in status["conditions"] if item["type"] == "Ready")
    assert "kubectl describe pods -n ns" in message and role in message
    assert conditions(status)["Degraded"][0] == ("True" if trouble else "False")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [("", "StartingGateway"), ("ErrImagePull", "ImageUnavailable"), ("CrashLoopBackOff", "GatewayCrashing")],
)
def test_no_gateway_is_ready(trouble: str, reason: str) -> None:
    scene = Scene()
    scene.report("m-gateway", ready=0)
    scene.pods = [pod("", trouble, "gateway")]
    assert conditions(scene.status())["Ready"] == ("False", reason)


GATEWAYS: list[tuple[str, Json, Json, Json, tuple[str, str], str]] = [
    ("not seen yet", {"generation": 4}, {}, {"observedGeneration": 3}, ("True", "RollingOut"), "newest settings"),
    ("new Pod beside the old", {}, {}, {"replicas": 2, "updatedReplicas": 1}, ("True", "RollingOut"), "in all: 2"),
    ("none updated", {}, {}, {"updatedReplicas": 0}, ("True", "RollingOut"), "newest settings: 0/1"),
    (
        "paused",
        {},
        {"paused": True},
        {"updatedReplicas": 0},
        ("True", "RollingOut"),
        "kubectl rollout resume -n ns dep",
    ),
    ("paused, and as wanted", {}, {"paused": True}, {}, ("False", "Settled"), "nothing is left"),
    ("not ready", {}, {}, {"readyReplicas": 0}, ("True", "StartingGateway"), "ready: 0"),
    ("seen", {"generation": 4}, {}, {"observedGeneration": 4}, ("False", "Settled"), "nothing is left"),
]


@pytest.mark.parametrize(
    ("metadata", "spec", "status", "progressing", "words"),
    [row[1:] for row in GATEWAYS],
    ids=[row[0] for row in GATEWAYS],
)
def test_a_gateway_is_settled_when_its_deployment_is(
    metadata: Json, spec: Json, status: Json, progressing: tuple[str, str], words: str
) -> None:
    scene = Scene()
    item = scene.children[kinds.DEPLOYMENT.kind, "m-gateway"]
    for name, changes in (("metadata", metadata), ("spec", spec), ("status", status)):
        item[name] |= changes
    said = scene.status()
    assert conditions(said)["Progressing"] == progressing
    assert words in next(each["message"] for each in said["conditions"] if each["type"] == "Progressing")


def test_a_new_gateway_that_cannot_start_is_said_though_the_old_one_serves() -> None:
    scene = Scene()
    scene.children[kinds.DEPLOYMENT.kind, "m-gateway"]["status"] |= {"replicas": 2, "updatedReplicas": 1}
    scene.pods = [pod("", "ErrImagePull", "gateway")]
    found = conditions(scene.status())
    assert found["Ready"] == ("True", "Serving") and found["Degraded"] == ("True", "ImageUnavailable")


@pytest.mark.parametrize(("trouble", "degraded"), [("ImagePullBackOff", ("True", "ImageUnavailable")), ("", None)])
def test_new_workers_that_cannot_start_are_said_though_the_old_ones_serve(
    trouble: str, degraded: tuple[str, str] | None
) -> None:
    scene = Scene()
    scene.add_old_workers()
    for role in ("prefill", "decode"):
        scene.report(scene.worker(role), ready=0)
    scene.pods = [pod("decode", trouble)]
    found = conditions(scene.status())
    assert found["Ready"] == ("True", "Serving") and found["Progressing"] == ("True", "RollingOut")
    assert found["Degraded"] == (degraded or ("False", "AsWanted"))


def test_somebody_elses_name() -> None:
    scene = Scene()
    scene.taken = ("Service m-gateway exists",)
    found = conditions(scene.status())
    assert found["Ready"] == ("False", "NameTaken") == found["Progressing"] and found["Stalled"][0] == "True"


def test_what_fails_and_is_tried_again_is_never_settled() -> None:
    scene = Scene()
    scene.retrying = ("Service m-gateway: HTTP 500: failed calling webhook",)
    status = scene.status()
    assert conditions(status)["Progressing"] == ("True", "WritesFail") == conditions(status)["Reconciling"]
    assert conditions(status)["Ready"] == ("True", "Serving") and "failed calling webhook" in str(status)


def test_what_is_still_to_be_written_is_never_settled() -> None:
    scene = Scene()
    scene.children[kinds.SERVICE.kind, "m-gateway"]["spec"]["ports"] = []
    status = scene.status()
    assert conditions(status)["Progressing"] == ("True", "Applying")
    assert "Service m-gateway (changed: spec.ports" in str(status["conditions"])


@pytest.mark.parametrize("was", ["True", "False"])
def test_mode_auto_serves_without_prefill_that_cannot_start_whatever_was_before(was: str) -> None:
    scene = Scene({"conditions": [{"type": "Ready", "status": was, "lastTransitionTime": NOW}]})
    scene.report(scene.worker("prefill"), ready=0)
    scene.pods = [pod("prefill", "CrashLoopBackOff")]
    assert conditions(scene.status())["Ready"] == ("True", "Serving")
    assert conditions(scene.status())["Degraded"] == ("True", "WorkersCrashing")


def test_mode_auto_that_has_served_goes_on_without_prefill_and_says_so() -> None:
    scene = Scene(Scene().status())
    scene.report(scene.worker("prefill"), ready=0)
    found = conditions(scene.status())
    assert found["Ready"] == ("True", "Serving") and found["Degraded"] == ("True", "FewerWorkers")


@pytest.mark.parametrize(
    ("mode", "role", "reason"),
    [("auto", "decode", "NoDecodeWorkers"), ("disaggregated", "prefill", "NoPrefillWorkers")],
)
def test_a_pool_scaled_to_nothing(mode: str, role: str, reason: str) -> None:
    scene = Scene(mode=mode)
    scene.children[kinds.POOL.kind, f"m-{role}"]["spec"]["replicas"] = 0
    status = scene.status()
    assert conditions(status)["Ready"] == ("False", reason)
    message = next(item["message"] for item in status["conditions"] if item["type"] == "Ready")
    assert f"kubectl scale -n ns pool m-{role} --replicas=1" in message


def test_refused_by_the_api_server() -> None:
    scene = Scene()
    scene.refused = ("Service m-gateway: no",)
    found = conditions(scene.status())
    assert found["Ready"] == ("False", "RefusedByApiServer")
    assert found["Stalled"][0] == "True" and "Reconciling" not in found


def test_a_rollout_and_its_end() -> None:
    scene = Scene()
    scene.add_old_workers()
    status = scene.status()
    assert conditions(status)["Progressing"] == ("True", "RollingOut") and status["plan"]["step"] == "rollout"
    assert [action.verb for action in scene.plan().actions] == ["merge", "merge"]
    for role in ("prefill", "decode"):
        scene.children[kinds.DEPLOYMENT.kind, f"m-{role}-old"]["spec"]["replicas"] = 0
        scene.report(f"m-{role}-old", ready=0)
    scene.pods = [PodState("m-decode-old-7d5f-x2", "decode", "decode", "old", True, True)]
    assert conditions(scene.status())["Progressing"] == ("True", "RollingOut")
    assert [action.name for action in scene.plan().actions] == ["m-prefill-old"]
    scene.pods = []
    assert {action.verb for action in scene.plan().actions} == {"delete"}


def test_leftovers_are_cleaned_up_and_strangers_are_not() -> None:
    scene = Scene()
    mine, free, named = "m-prefill-0123456789", "m-decode-0123456789", "m-x"
    for uid, name in (("1", mine), ("2", free), ("3", named)):
        metadata: Json = {"name": name, "uid": uid} | ({} if name == free else {"ownerReferences": [{"uid": "u1"}]})
        scene.children[kinds.CONFIG_MAP.kind, name] = {"kind": "ConfigMap", "metadata": metadata}
    assert [(action.verb, action.name, action.uid) for action in scene.plan().actions] == [("delete", mine, "1")]
    assert conditions(scene.status())["Progressing"] == ("True", "CleaningUp")


def test_a_pool_says_how_it_is() -> None:
    scene = Scene(decode={"replicas": 2, "maxReplicas": 2})
    pool = scene.children[kinds.POOL.kind, "m-decode"]
    status = pool_status(scene.view(), Role.DECODE, pool, NOW)
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    assert conditions(status) == {"Ready": ("True", "AsWanted")}
    assert "baton.dev/role=decode" in status["selector"]
    pool["spec"]["replicas"] = 9
    assert conditions(pool_status(scene.view(), Role.DECODE, pool, NOW)) == {"Ready": ("True", "ScaleClamped")}
    pool["spec"]["replicas"] = 1
    found = conditions(pool_status(scene.view(), Role.DECODE, pool, NOW))
    assert found["Ready"] == ("False", "Scaling") and found["Reconciling"][0] == "True"


def test_the_models_own_number_wins_when_it_changes_and_only_then() -> None:
    scene = Scene()
    pool = scene.children[kinds.POOL.kind, "m-decode"]
    pool["spec"]["replicas"] = 3
    assert scene.plan().sizes[Role.DECODE] == 3
    pool["metadata"]["annotations"][MODEL_REPLICAS] = "7"
    planned = scene.plan()
    assert planned.sizes[Role.DECODE] == 1
    merged = next(action for action in planned.actions if action.kind is kinds.POOL)
    assert merged.verb == "merge" and merged.body["spec"]["replicas"] == 1


def test_another_size_is_one_small_merge_patch() -> None:
    scene = Scene()
    scene.children[kinds.POOL.kind, "m-decode"]["spec"]["replicas"] = 3
    (action,) = scene.plan().actions
    assert (action.kind, action.verb, action.body) == (kinds.DEPLOYMENT, "merge", {"spec": {"replicas": 3}})


def test_limits_that_the_model_no_longer_gives_are_taken_from_the_pool() -> None:
    scene = Scene()
    scene.children[kinds.POOL.kind, "m-decode"]["spec"]["maxReplicas"] = 4
    scene.children[kinds.POOL.kind, "m-decode"]["metadata"]["annotations"]["baton.dev/applied"] = "older"
    (action,) = scene.plan().actions
    assert action.body["spec"]["maxReplicas"] is None and "replicas" not in action.body["spec"]


@pytest.mark.parametrize("owners", [[{"uid": "older"}], []], ids=["owned by it", "orphaned"])
def test_secrets_of_a_model_of_this_name_that_is_gone_are_taken_over(owners: list[Json]) -> None:
    scene = Scene()
    scene.children[kinds.SECRET.kind, "m-secret"]["metadata"]["ownerReferences"] = owners
    (action,) = scene.plan().actions
    assert (action.verb, action.body["metadata"]["ownerReferences"][0]["uid"]) == ("merge", "u1")


def test_a_users_own_secret_stays_without_an_owner() -> None:
    scene = Scene()
    metadata = scene.children[kinds.SECRET.kind, "m-api-key"]["metadata"]
    del metadata["ownerReferences"], metadata["annotations"]
    assert scene.plan().actions == ()


def test_times_change_only_with_the_status() -> None:
    before = Scene().status()
    for item in before["conditions"]:
        item["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    scene = Scene(before)
    assert {item["lastTransitionTime"] for item in scene.status()["conditions"]} == {"2020-01-01T00:00:00Z"}
    scene.report("m-gateway", ready=0)
    times = {item["type"]: item["lastTransitionTime"] for item in scene.status()["conditions"]}
    assert times["Ready"] == NOW and times["Degraded"] == "2020-01-01T00:00:00Z"


def test_a_stalled_model_keeps_what_is_known_of_it() -> None:
    before = Scene().status()
    status = stalled_status(raw_model(before), Reason.NOT_SUPPORTED, "because", NOW)
    assert conditions(status) == {"Ready": ("False", "NotSupported"), "Stalled": ("True", "NotSupported")}
    assert status["endpoint"] == before["endpoint"] and status["plan"] == {"step": "blocked", "reason": "because"}
    assert status["decode"]["summary"] == "1/1" and status["observedGeneration"] == 3


def test_an_event_is_told_once_for_what_is_new() -> None:
    status = Scene().status()
    (event,) = events_of(raw_model(), status, NOW)
    assert (event["type"], event["reason"]) == ("Normal", "Serving") and event["involvedObject"]["uid"] == "u1"
    assert events_of(raw_model(status), status, NOW) == []
    stalled = stalled_status(raw_model(status), Reason.NOT_SUPPORTED, "because", NOW)
    assert [event["type"] for event in events_of(raw_model(status), stalled, NOW)] == ["Warning"]


def test_an_events_name_is_that_of_its_content() -> None:
    """Two of one name are a 409, and the second is lost."""

    def name(message: str, now: str = NOW) -> str:
        (event,) = events_of(raw_model(), stalled_status(raw_model(), Reason.NOT_SUPPORTED, message, now), now)
        return str(event["metadata"]["name"])

    assert name("one") == name("one")
    assert len({name("one"), name("two"), name("one", "2026-11-25T10:00:01Z")}) == 3


@pytest.mark.parametrize(
    ("status", "trouble", "words"),
    [
        ({}, "", ""),
        ({"containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, "", ""),
        (
            {
                "containerStatuses": [
                    {
                        "name": "c",
                        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                        "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                    }
                ]
            },
            "CrashLoopBackOff",
            "OOMKilled (137)",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "no nvidia.com/gpu",
                    }
                ]
            },
            "Unschedulable",
            "no nvidia.com/gpu",
        ),
    ],
)
def test_what_keeps_a_pod_from_being_ready_is_read_off_it(status: Json, trouble: str, words: str) -> None:
    state = pod_state({"metadata": {"name": "p", "labels": {}}, "status": status})
    assert state.trouble == trouble and words in state.message and not state.ready
