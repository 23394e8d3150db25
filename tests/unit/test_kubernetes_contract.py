"""The contract of docs/design/0005-kubernetes.md: what it spells out is what the constants say."""

from __future__ import annotations

from pathlib import Path

import pytest

from baton_api import kubernetes as k
from baton_api.worker import Role

NOTE = (Path(__file__).parents[2] / "docs/design/0005-kubernetes.md").read_text()


@pytest.mark.parametrize(
    "spelled",
    [
        k.SETTINGS_FILE, k.SECRET_FILE, k.API_KEY_FILE, k.MODELS_DIR, k.DEMO_MODEL_DIR, k.WORKER_ID_VARIABLE,
        k.ADVERTISE_HOST_VARIABLE, k.FIELD_MANAGER, k.LISTEN_HOST, k.NAME_LABEL, k.INSTANCE_LABEL, k.COMPONENT_LABEL,
        k.MANAGED_BY_LABEL, k.MODEL_LABEL, k.ROLE_LABEL, k.REVISION_LABEL, k.WORKER_LABEL,
        f"{k.WORKER_HTTP_PORT} `{k.HTTP_PORT_NAME}`", f"{k.WORKER_CONTROL_PORT} `{k.CONTROL_PORT_NAME}`",
        f"{k.GATEWAY_HTTP_PORT} `{k.HTTP_PORT_NAME}`", f"{k.OPERATOR_HTTP_PORT} `{k.HTTP_PORT_NAME}`",
        k.pool_name("NAME", Role.PREFILL), k.pool_name("NAME", Role.DECODE), k.gateway_name("NAME"),
        k.workers_service_name("NAME"), k.secret_name("NAME"), k.api_key_name("NAME"), k.endpoint("NAME", "NAMESPACE"),
        k.worker_name("NAME", Role.PREFILL, "REVISION").replace("prefill", "ROLE"),
    ],
)  # fmt: skip
def test_the_note_and_the_constants_say_the_same(spelled: str) -> None:
    assert spelled in NOTE


def test_a_command_reads_the_mounted_settings() -> None:
    assert " ".join(k.command("decode")).replace(k.SETTINGS_FILE, "FILE") in NOTE


def test_selectors_select_what_the_labels_say() -> None:
    pod = k.worker_pod_labels("m", Role.DECODE, "0123456789")
    for selector in (
        k.workers_selector("m"),
        k.role_selector("m", Role.DECODE),
        k.revision_selector("m", Role.DECODE, "0123456789"),
    ):
        assert selector.items() <= pod.items()
    assert not k.role_selector("m", Role.PREFILL).items() <= pod.items()
    gateway = k.component_labels("m", k.GATEWAY)
    assert k.gateway_selector("m").items() <= gateway.items()
    assert not k.workers_selector("m").items() <= gateway.items()
    assert k.component_of(Role.PREFILL) == "prefill"
    assert k.selector_text({"b": "2", "a": "1"}) == "a=1,b=2"
