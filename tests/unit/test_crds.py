"""What is committed of the CRDs is what the classes say; reasons are frozen; quantities compare by value."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import yaml

from baton_api.crd_manifests import manifests
from baton_api.crd_pool import PoolResourceSpec
from baton_api.crd_status import Reason
from baton_api.errors import SettingError
from baton_api.quantities import quantity

ROOT = Path(__file__).parents[2]


def test_the_committed_crds_are_those_of_the_classes() -> None:
    """After a change that is meant: python tools/crds.py"""
    command = [sys.executable, str(ROOT / "tools/crds.py"), "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, manifest in manifests().items():
        assert yaml.safe_load((ROOT / "deploy/crds" / name).read_bytes()) == manifest


def test_columns_name_fields_that_the_schema_has() -> None:
    for manifest in manifests().values():
        version = manifest["spec"]["versions"][0]
        for column in version["additionalPrinterColumns"]:
            at = version["schema"]["openAPIV3Schema"]
            for name in column["jsonPath"].split("[")[0].strip(".").split("."):
                if at["properties"].get(name, {}).get("type") == "object" and name == "metadata":
                    break
                at = at["properties"][name]


def test_the_reasons_of_conditions_are_frozen() -> None:
    """Dashboards, alerts and scripts name them: add, never rename."""
    assert sorted(reason.value for reason in Reason) == [
        "Applying",
        "AsWanted",
        "CleaningUp",
        "Creating",
        "Deleting",
        "FewerWorkers",
        "GatewayCrashing",
        "ImageUnavailable",
        "InvalidSpec",
        "NameTaken",
        "NoDecodeWorkers",
        "NoPrefillWorkers",
        "NoSuchModel",
        "NotSupported",
        "PodsRefused",
        "RefusedByApiServer",
        "RollingOut",
        "ScaleClamped",
        "Scaling",
        "Serving",
        "Settled",
        "StartingGateway",
        "StartingWorkers",
        "WorkersCrashing",
        "WorkersUnschedulable",
        "WritesFail",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (2, 2),
        ("2", 2),
        ("500m", Fraction(1, 2)),
        ("0.5", Fraction(1, 2)),
        ("1Ki", 1024),
        ("1.5Gi", 3 * 2**29),
        ("1k", 1000),
        ("1e3", 1000),
        ("1E3", 1000),
        ("1E", 10**18),
        ("-1", -1),
        ("1e-3", Fraction(1, 1000)),
        ("100n", Fraction(1, 10**7)),
    ],
)
def test_quantities_have_their_value(text: str | int, value: Fraction) -> None:
    assert quantity(text) == value


@pytest.mark.parametrize("text", ["", "x", ".", "1 Gi", "1gi", "Gi", "1e", "--1"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="is no quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("replicas", "low", "high", "size"),
    [(3, None, None, 3), (0, None, None, 0), (0, 1, None, 1), (5, None, 4, 4), (3, 1, 4, 3), (9, 2, 2, 2)],
)
def test_a_pool_has_a_size_within_its_limits(replicas: int, low: int | None, high: int | None, size: int) -> None:
    assert PoolResourceSpec("decode", "m", replicas, low, high).size == size
