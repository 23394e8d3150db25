"""What `baton explain` makes of a Model's status, its Pods and its events."""

from __future__ import annotations

from typing import Any

import pytest

from baton_api.crd_status import Reason
from baton_cli.cluster import Seen
from baton_cli.cluster_view import model_row
from baton_cli.explain import NEXT, explain, pod_trouble

Json = dict[str, Any]


def model(reason: str = "", ready: str = "False", *, generation: int = 2, observed: int = 2, **status: Any) -> Json:
    conditions = [{"type": "Degraded", "status": "True", "reason": "FewerWorkers", "message": "one less"}]
    if reason:
        conditions.append({"type": "Ready", "status": ready, "reason": reason, "message": f"it is {reason}"})
    metadata = {"name": "demo", "namespace": "ns", "generation": generation}
    return {"metadata": metadata, "status": {"observedGeneration": observed, "conditions": conditions, **status}}


def pod(name: str = "p", *, labels: Json | None = None, **status: Any) -> Json:
    return {"metadata": {"name": name, "labels": labels or {}}, "status": status}


def waiting(reason: str, message: str = "", restarts: int = 0, code: int | None = None) -> Json:
    last = {} if code is None else {"terminated": {"exitCode": code}}
    return {"state": {"waiting": {"reason": reason, "message": message}}, "lastState": last, "restartCount": restarts}


def restarted(code: int) -> Json:
    return {"lastState": {"terminated": {"exitCode": code}}, "restartCount": 1}


UNSEEN: Json = {"metadata": {"name": "demo", "namespace": "ns"}}


@pytest.mark.parametrize(
    ("pod", "why"),
    [
        (pod(conditions=[{"type": "Ready", "status": "True"}]), None),
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]),
            "Unschedulable: 0/1",
        ),
        (pod(containerStatuses=[waiting("ImagePullBackOff", "no such image")]), "ImagePullBackOff: no such image"),
        (
            pod(containerStatuses=[waiting("CrashLoopBackOff", "back-off", 3, 2)]),
            "CrashLoopBackOff (exit code 2, 3 restarts): back-off",
        ),
        (pod(initContainerStatuses=[waiting("ErrImagePull")]), "ErrImagePull"),
        (pod(phase="Pending", containerStatuses=[waiting("ContainerCreating")]), "Pending: not ready yet"),
        (
            pod(containerStatuses=[{"state": {"running": {}}, **restarted(137)}]),
            "restarted (exit code 137, 1 restarts)",
        ),
        (pod(phase="Running"), "Running: not ready yet"),
        ({"metadata": {"name": "p", "deletionTimestamp": "now"}}, "is ending"),
    ],
)  # fmt: skip
def test_why_a_pod_is_not_ready(pod: Json, why: str | None) -> None:
    assert pod_trouble(pod) == why


def test_it_says_what_the_operator_says_in_kstatus_order_and_what_to_do_next() -> None:
    status = {
        "plan": {"step": "wait", "reason": "0 of 1 ready"},
        "endpoint": "http://demo-gateway.ns.svc",
        "prefill": {"wanted": 2, "ready": 1, "updated": 1},
        "gateway": "1/1",
    }
    crashing = pod("demo-prefill-a-x", labels={"app.kubernetes.io/component": "prefill", "baton.dev/revision": "a"})
    said = explain(Seen(model("WorkersCrashing", **status), (), (crashing,), ()))
    assert [one["type"] for one in said.conditions] == ["Ready", "Degraded"]
    assert (said.ready, said.reason, said.message) == ("False", "WorkersCrashing", "it is WorkersCrashing")
    assert said.roles == (("prefill", "1 ready of 2, 1 up to date"), ("gateway", "1/1 ready"))
    assert said.plan == {"step": "wait", "reason": "0 of 1 ready"} and said.current
    assert [(one.pod, one.component, one.revision) for one in said.troubles] == [("demo-prefill-a-x", "prefill", "a")]
    assert said.next_steps == ("kubectl -n ns logs demo-prefill-a-x --previous",)


def test_a_step_that_needs_a_pod_is_left_out_when_none_is_in_trouble() -> None:
    ending = {"metadata": {"name": "e", "deletionTimestamp": "now"}}
    assert explain(Seen(model("WorkersCrashing"), (), (ending,), ())).next_steps == ()


@pytest.mark.parametrize("seen", [model(observed=1), model("Serving", "True", observed=1), UNSEEN])
def test_what_the_operator_has_not_seen_yet_leads_to_the_operator(seen: Json) -> None:
    said = explain(Seen(seen, (), (), ()))
    assert "does it run? baton doctor says" in said.next_steps[0]
    assert said.ready in ("Unknown", "True")


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_of_ready_that_can_be_mended_leads_somewhere(reason: Reason) -> None:
    said = explain(Seen(model(reason.value), (), (pod("p", phase="Pending"),), ()))
    fine = {Reason.SETTLED, Reason.AS_WANTED}
    assert bool(said.next_steps) == (reason not in fine) == (reason in NEXT)
    assert not any("{" in step for step in said.next_steps)


def test_the_last_warnings_are_told_oldest_first() -> None:
    def event(number: int, kind: str = "Warning") -> Json:
        about = {"kind": "Pod", "name": "p"}
        what = {"involvedObject": about, "reason": "R", "message": "m"}
        return {"metadata": {}, "type": kind, "lastTimestamp": f"t{number:02}", **what}

    events = (event(11), *(event(number) for number in range(10)), event(99, "Normal"))
    said = explain(Seen(model(), (), (), events))
    assert len(said.events) == 8 and said.events[0] == "t03 Pod/p R: m" and said.events[-1].startswith("t11")


@pytest.mark.parametrize(("observed", "shown"), [(2, ("True", "Serving")), (1, ("Unknown", "NotObserved"))])
def test_status_shows_no_ready_from_before_the_last_edit(observed: int, shown: tuple[str, str]) -> None:
    row = model_row(model("Serving", "True", generation=2, observed=observed))
    assert (row["ready"], row["reason"]) == shown
