"""What one user asked of an API server, counted from the lines of its audit log."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

READS = ("get", "list", "watch")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that was answered. `resource` with its subresource; times in seconds since 1970."""

    verb: str
    resource: str
    name: str
    began_s: float
    ended_s: float
    status: int

    @property
    def is_write(self) -> bool:
        return self.verb not in READS

    @property
    def is_of_child(self) -> bool:
        """A write of an object that belongs to a Model; not of a status, not of an Event."""
        return self.is_write and "/" not in self.resource and self.resource not in ("events", "leases")


class AuditLog:
    """The new lines of one user at each call, through rotations of the file."""

    def __init__(self, path: Path, user: str) -> None:
        self._path = path
        self._user = f'"username":"{user}"'.encode()
        self._file: IO[bytes] = path.open("rb")
        self._file.seek(0, os.SEEK_END)
        self._rest = b""

    def read(self) -> list[Asked]:
        """Renewals of Leases and watches left out."""
        data = self._rest + self._file.read()
        if os.fstat(self._file.fileno()).st_ino != self._path.stat().st_ino:
            data += self._file.read()
            self._file.close()
            self._file = self._path.open("rb")
            data += self._file.read()
        *lines, self._rest = data.split(b"\n")
        return [asked for line in lines if self._user in line and (asked := _asked(json.loads(line)))]


def _asked(event: dict[str, object]) -> Asked | None:
    about = event.get("objectRef")
    if not isinstance(about, dict) or event["verb"] == "watch" or about["resource"] == "leases":
        return None
    resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
    status = event.get("responseStatus")
    code = int(status.get("code", 0)) if isinstance(status, dict) else 0
    return Asked(
        str(event["verb"]), resource, about.get("name", ""), _seconds(event["requestReceivedTimestamp"]),
        _seconds(event["stageTimestamp"]), code,
    )  # fmt: skip


def _seconds(stamp: object) -> float:
    return datetime.fromisoformat(str(stamp)).timestamp()


def last_end(
    requests: Iterable[Asked], model_of: Callable[[str], str], resources: tuple[str, ...] | None
) -> dict[str, float]:
    """By Model: when its last write of one of `resources` was answered."""
    ended: dict[str, float] = defaultdict(float)
    for asked in requests:
        if asked.is_of_child and (resources is None or asked.resource in resources):
            model = model_of(asked.name)
            ended[model] = max(ended[model], asked.ended_s)
    return ended


def spelled(requests: Iterable[Asked]) -> str:
    """For people: how many of each verb and resource."""
    counts: dict[str, int] = defaultdict(int)
    for asked in requests:
        failed = f" {asked.status}" if asked.status >= 400 else ""
        counts[f"{asked.verb} {asked.resource}{failed}"] += 1
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items(), key=lambda item: -item[1]))
