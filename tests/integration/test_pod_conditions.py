"""The processes as a restricted Pod runs them, without Kubernetes (`support/pod_like.py` says how)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from support import pod_like

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.timeout(240)
def test_as_nobody_on_a_read_only_root_they_answer_and_end_when_told() -> None:
    if os.geteuid() or not all(shutil.which(tool) for tool in ("unshare", "setpriv", "ip", "mount")):
        pytest.skip("needs root, unshare, setpriv, ip and mount")
    script, site_packages = str(Path(pod_like.__file__)), sysconfig.get_path("purelib")
    argv = ["unshare", "-m", "-n", sys.executable, script, str(REPOSITORY), "examples/demo_model/model", site_packages]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=230, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["ended_while_loading"] == 143, "SIGTERM reaches a process that is number 1 while it still loads"
    assert told["uids"] == [65532] * 3 and told["health"] == [200] * 3
    assert told["answer"]["text"] and "transfer;" in told["answer"]["timing"], "the KV moved"
    assert 'negotiated="ucx/tcp"' in told["metrics"]
    assert told["exit_codes"] == [0, 0, 0], done.stderr[-3000:]
    assert told["left"] == [], "nothing stays behind"
    print("written while they ran:", told["written"])
