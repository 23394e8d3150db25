"""A bounded part of `make fuzz`: thousands of made-up requests against real processes, none answered outside the
document that the gateway serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzzing.conformance import conformance
from support.stack import Stack
from support.tiny_models import TinyModel, make_model

pytestmark = pytest.mark.filterwarnings("default::ResourceWarning")


@pytest.mark.timeout(300)
def test_no_answer_is_outside_the_document(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", TinyModel("llama", max_position=96))
    with Stack.up(model, tmp_path / "run") as stack:
        report = conformance(stack.url, tmp_path, examples=4, seed=1)
        assert not report.failures, report.output
        assert report.cases > 2000 and report.accepted > 200
        stack.wait_quiet()
