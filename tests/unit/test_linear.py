"""Whatever kernel and copy a batch size gets, the product is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from baton_engine.linear import CopyBudget, Linear, empty_weight

CPU = torch.device("cpu")


@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows_out", "columns"), [(96, 32), (32, 96)])
def test_every_batch_size_gives_the_plain_product(
    rows_out: int, columns: int, dtype: torch.dtype, bias: bool, budget_bytes: int
) -> None:
    torch.manual_seed(0)
    weight = empty_weight(rows_out, columns, dtype, CPU).copy_(torch.randn(rows_out, columns))
    offset = torch.randn(rows_out).to(dtype) if bias else None
    linear = Linear(weight, offset, CopyBudget(budget_bytes))
    for rows in (1, 2, 7, 64, 65, 200):
        x = torch.randn(rows, columns).to(dtype)
        found = linear(x)
        assert found.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(found, F.linear(x, weight, offset), rtol=1e-2, atol=tolerance)


def test_copies_stop_where_the_budget_ends() -> None:
    budget = CopyBudget(100)
    assert [budget.take(60), budget.take(60), budget.take(40), budget.take(1)] == [True, False, True, False]
