"""What one process takes, from /proc: memory now and at its peak, CPU of its loop's thread and of all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Watched:
    """A process by its id. Its event loop runs on the main thread, whose id is the process's."""

    pid: int

    def rss_mib(self) -> float:
        return self._status("VmRSS") / 1024

    def peak_mib(self) -> float:
        """Since the last `forget_peak`."""
        return self._status("VmHWM") / 1024

    def forget_peak(self) -> None:
        """proc(5), clear_refs."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def loop_ms(self) -> float:
        return self._ran_ms(str(self.pid))

    def all_ms(self) -> float:
        return sum(self._ran_ms(task.name) for task in Path(f"/proc/{self.pid}/task").iterdir())

    def _ran_ms(self, task: str) -> float:
        return int(Path(f"/proc/{self.pid}/task/{task}/schedstat").read_text().split()[0]) / 1e6

    def _status(self, field: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
