"""A new revision under constant load: no request fails, no KV crosses from one revision to the other."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.kube.release import Deployed, eventually
from support.kube.under_load import PodLogs, load

RATE = 20.0
PATCH = '{"spec": {"kv": {"blockTokens": 32}, "routing": {"minRemotePrefillTokens": 0}}}'
"""Blocks of another size are another layout: a transfer between revisions would be refused, and logged."""


@pytest.mark.timeout(600)
def test_a_rolling_update_under_load_fails_no_request(demo: Deployed, tmp_path: Path) -> None:
    demo.kubectl("patch", "model", "demo", "--type=merge", "-p", '{"spec": {"routing": {"minRemotePrefillTokens": 0}}}')
    time.sleep(1)
    demo.until_ready()
    old = {revision_of(pod) for role in ("prefill", "decode") for pod in demo.pods(role)}
    with PodLogs(demo, tmp_path / "logs") as logs, load(demo, RATE, tmp_path) as outcome:
        time.sleep(5)
        began_s = time.monotonic()
        demo.kubectl("patch", "model", "demo", "--type=merge", "-p", PATCH)
        eventually("only Pods of the new revision are left", lambda: replaced(demo, old), 240)
        print(f"\nrolled over in {time.monotonic() - began_s:.1f} s")
        time.sleep(5)
    print(outcome.line(), dict(outcome.why))
    assert len(outcome.seen) > RATE * 10
    assert not outcome.failed, outcome.why
    crossed = logs.lines("transfer", "layout")
    assert not crossed, crossed[:5]
    print(f"transfers that failed for other reasons: {len(logs.lines('transfer', 'prefilling here'))}")


def revision_of(pod: dict[str, dict[str, dict[str, str]]]) -> str:
    return pod["metadata"]["labels"]["baton.dev/revision"]


def replaced(demo: Deployed, old: set[str]) -> bool:
    """Whether each role has workers, all of them new and ready."""
    for role in ("prefill", "decode"):
        pods = demo.pods(role)
        if not pods or any(revision_of(pod) in old or not is_ready(pod) for pod in pods):
            return False
    labels = "baton.dev/worker=true"
    return len(demo.kubectl("get", "pods", "-l", labels, "-o", "name").split()) == len(
        demo.pods("prefill") + demo.pods("decode")
    )


def is_ready(pod: dict[str, dict[str, list[dict[str, str]]]]) -> bool:
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
