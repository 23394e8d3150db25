"""Whatever kernel and copy a batch size gets, the product is the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from baton_engine.linear import CopyBudget, GatedLinear, Linear, empty_weight, filled, rows_for

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
    for rows in (1, 2, 7, 9, 64, 65, 200, 300):
        x = torch.randn(rows, columns).to(dtype)
        found = linear(x)
        assert found.dtype == dtype
        tolerance = 1e-4 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(found, F.linear(x, weight, offset), rtol=1e-2, atol=tolerance)
        residual = torch.randn(rows, rows_out).to(dtype)
        kept = residual.clone()
        expected = F.linear(x, weight, offset) + residual
        torch.testing.assert_close(linear.plus(x, residual), expected, rtol=1e-2, atol=tolerance)
        assert torch.equal(residual, kept), "the residual is not the product's to change"


@pytest.mark.parametrize("budget_bytes", [0, 1 << 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_batch_size_gives_the_plain_gated_product(dtype: torch.dtype, bias: bool, budget_bytes: int) -> None:
    torch.manual_seed(0)
    inner, columns = 48, 32
    weight = empty_weight(2 * inner, columns, dtype, CPU).copy_(torch.randn(2 * inner, columns) * columns**-0.5)
    offset = torch.randn(2 * inner).to(dtype) if bias else None
    gated = GatedLinear(weight, offset, CopyBudget(budget_bytes))
    for rows in (1, 2, 7, 9, 64, 65, 200, 300):
        x = torch.randn(rows, columns).to(dtype)
        gate, up = F.linear(x.float(), weight.float(), None if offset is None else offset.float()).chunk(2, dim=-1)
        found = gated(x)
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(found.float(), F.silu(gate) * up, rtol=2e-2, atol=tolerance)


def test_packed_products_are_made_with_few_numbers_of_rows() -> None:
    numbers = {rows_for(rows) for rows in range(1, 2049)}
    assert len(numbers) == 52 and numbers == {rows_for(rows) for rows in numbers}
    for rows in range(1, 2049):
        assert rows <= rows_for(rows) <= (1.25 if rows <= 256 else 1.125) * rows
    x = torch.ones(17, 3)
    assert torch.equal(filled(x), F.pad(x, (0, 0, 0, 3)))
    assert filled(full := torch.ones(16, 3)) is full


def test_a_packed_weight_that_stands_alone_costs_the_budget_only_when_the_plain_one_is_kept() -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 products")
    weight = torch.ones(8, 8, dtype=torch.bfloat16)
    budget = CopyBudget(200)
    Linear(weight, None, budget)
    assert budget.left_bytes == 200
    Linear(weight, None, budget, kept=True)
    assert budget.left_bytes == 72


def test_copies_stop_where_the_budget_ends() -> None:
    budget = CopyBudget(100)
    assert [budget.take(60), budget.take(60), budget.take(40), budget.take(1)] == [True, False, True, False]
