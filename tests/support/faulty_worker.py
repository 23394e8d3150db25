"""A worker whose model fails when a test says so: `python -m support.faulty_worker ROLE --settings FILE`.

Test-only: the production packages know nothing of it. The environment variable BATON_TEST_FAULTS names a file; while it
holds "KIND COUNT", so many steps fail: "oom" and "cuda" raise as torch does, "nan" computes logits that are none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import baton_worker.parts
from baton_api.sampling import SampledToken
from baton_api.worker import Role
from baton_decode.leg import DecodeLeg
from baton_engine.batch import Slice
from baton_engine.runner import TorchRunner
from baton_prefill.leg import PrefillLeg
from baton_worker.process import run

VARIABLE = "BATON_TEST_FAULTS"


class FaultyRunner(TorchRunner):
    """Each failing step uses up one of the count."""

    _nan = False

    def run(self, slices: Sequence[Slice]) -> list[list[SampledToken]]:
        match _next():
            case "oom":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (a test says so)")
            case "cuda":
                raise RuntimeError("CUDA error: an illegal memory access was encountered (a test says so)")
            case "nan":
                self._nan = True
        try:
            return super().run(slices)
        finally:
            self._nan = False

    def _forward(self, slices: Sequence[Slice]) -> Tensor:
        logits = super()._forward(slices)
        return logits * float("nan") if self._nan else logits


def _next() -> str:
    """The fault of this step."""
    path = Path(os.environ[VARIABLE])
    if not path.exists():
        return ""
    kind, _, count = path.read_text().partition(" ")
    if int(count) > 1:
        path.with_suffix(".new").write_text(f"{kind} {int(count) - 1}")
        path.with_suffix(".new").replace(path)
    else:
        path.unlink()
    return kind


def main(argv: Sequence[str]) -> int:
    role = Role(argv[0])
    baton_worker.parts.TorchRunner = FaultyRunner  # type: ignore[misc]
    return run(role, PrefillLeg if role is Role.PREFILL else DecodeLeg, argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
