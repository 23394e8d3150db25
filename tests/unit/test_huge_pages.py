"""Weights move onto huge pages and stay what they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from baton_engine.huge_pages import HUGE_BYTES, back_weight


def huge_kib(address: int) -> int:
    """AnonHugePages of the mapping that holds `address` (proc_pid_smaps(5))."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            begin, end = (int(part, 16) for part in head.split("-"))
            inside = begin <= address < end
        elif inside and head == "AnonHugePages:":
            return int(line.split()[1])
    return 0


@pytest.mark.parametrize("transposed", [False, True])
def test_a_large_weight_is_moved_with_its_content(transposed: bool) -> None:
    weight = torch.arange(4 * HUGE_BYTES // 4, dtype=torch.float32).view(2048, -1)
    weight = weight.t() if transposed else weight
    before = weight.clone()
    back_weight(weight)
    assert torch.equal(weight, before)
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text():
        pytest.skip("this kernel has no huge pages to give")
    middle = weight.untyped_storage().data_ptr() + 2 * HUGE_BYTES
    assert huge_kib(middle) >= 2048


def test_a_packed_weight_multiplies_as_before() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(4096, 512), torch.randn(8, 512)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
    back_weight(packed)
    found = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    torch.testing.assert_close(found, x @ weight.t(), rtol=1e-4, atol=1e-3)


def test_a_weight_smaller_than_a_page_is_left_alone() -> None:
    weight = torch.ones(8, 8)
    back_weight(weight)
    assert bool((weight == 1).all())
