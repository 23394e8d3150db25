"""Raw NIXL beside bench.kv: a reader and a target process in the bench-only environment, on the same block counts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from .kv_baton import Moved
from .kv_perftest import environment

PYTHON = Path(__file__).parent.parent / ".venv-bench-kv/bin/python"
SCRIPT = Path(__file__).with_name("nixl_pair.py")


def nixl_installed() -> bool:
    return (
        PYTHON.with_name("python").exists()
        and not subprocess.run([str(PYTHON), "-c", "import nixl._api"], capture_output=True, check=False).returncode
    )


class NixlPair:
    """NIXL runs its own bundled UCX, with our UCX variables."""

    def __init__(self, transport: str, block_bytes: int, blocks: int) -> None:
        env = {name: value for name, value in environment(transport).items() if name != "LD_LIBRARY_PATH"}
        self._block_bytes = block_bytes
        self._reader = subprocess.Popen(
            [str(PYTHON), str(SCRIPT), str(block_bytes), str(blocks)],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def read(self, blocks: int) -> Moved:
        """READ of `blocks` blocks, byte-checked over there."""
        assert self._reader.stdin is not None and self._reader.stdout is not None
        self._reader.stdin.write(f"{blocks}\n")
        self._reader.stdin.flush()
        while not (line := self._reader.stdout.readline()).startswith("{"):
            if not line:
                raise RuntimeError("the NIXL reader died")
        answer = json.loads(line)
        return Moved(answer["wall_s"], answer["cpu_s"], blocks * self._block_bytes)

    def close(self) -> None:
        assert self._reader.stdin is not None
        self._reader.stdin.close()
        self._reader.wait(timeout=30)
