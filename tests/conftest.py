"""Tests that watch deadlines, heartbeats and kills run alone: beside another busy test they would measure that one."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("baton", deadline=None)  # how long an example takes is the machine's affair
settings.load_profile("baton")

ALONE = (
    "tests/contract/test_transport_contract.py",
    "tests/faults/",
    "tests/integration/test_control.py",
    "tests/integration/test_faults",
    "tests/integration/test_gateway_faults.py",
    "tests/integration/test_gateway_resume.py",
    "tests/integration/test_kv_peer_death.py",
    "tests/integration/test_kv_transfer.py",
    "tests/integration/test_overlap.py",
    "tests/integration/test_resume.py",
    "tests/unit/test_supervisor.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
        if item.nodeid.startswith("tests/e2e/"):
            item.add_marker(pytest.mark.e2e)
