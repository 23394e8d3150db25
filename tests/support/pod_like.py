"""Runs prefill, decode and gateway as a restricted Pod would, without Kubernetes, and says in JSON what happened.

    unshare -m -n python pod_like.py REPOSITORY MODEL SITE_PACKAGES

Root only to set the scene: every mount read-only but /tmp and /dev/shm, which are empty; one interface with one address
that is not loopback; each process number 1 of its own PID namespace, uid 65532 without a passwd entry, no capability,
no new privileges, no HOME, working directory /.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ADDRESS = "10.77.0.1"
USER = 65532
PORTS = {"prefill": (9000, 9001), "decode": (9002, 9003), "gateway": (8000, 0)}
PACKAGES = ("api", "wire", "kv_transfer", "engine", "worker", "prefill_worker", "decode_worker", "gateway")
KEEP_WRITABLE = ("/tmp", "/dev", "/proc", "/sys")
READY_S = 90.0


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def set_the_scene(repository: str, site_packages: str) -> None:
    run("mount", "--make-rprivate", "/")
    run("ip", "link", "set", "lo", "up")
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "eth0")
    for interface in ("eth0", "eth1"):
        run("ip", "link", "set", interface, "up")
    run("mount", "-t", "tmpfs", "tmpfs", "/mnt")
    for name, source in (("repo", repository), ("python", sys.base_prefix), ("site", site_packages)):
        Path("/mnt", name).mkdir()
        run("mount", "--bind", source, f"/mnt/{name}")
    Path("/mnt/pod").mkdir()
    Path("/mnt/pod/secret").write_text("s" * 40)
    for path in ("/tmp", "/dev/shm"):
        run("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", path)


def close_the_scene() -> None:
    """Read-only from here on. What lies under another mount cannot be reached anyway."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in points:
        if not point.startswith(KEEP_WRITABLE) and Path(point).exists():
            subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True, stdin=subprocess.DEVNULL)


def settings(role: str, model: str) -> dict[str, Any]:
    port, control_port = PORTS[role]
    shared = {"host": "0.0.0.0", "port": port, "secret_file": "/mnt/pod/secret", "model_path": f"/mnt/repo/{model}"}
    if role == "gateway":
        own = {"fleet_file": "/mnt/pod/fleet.json", "api_keys": ["k"], "mode": "disaggregated"}
        return {**shared, **own, "min_remote_prefill_tokens": 1}
    engine = {"dtype": "float32", "threads": 1, "max_batched_tokens": 128}
    kv = {"transport": "ucx/tcp", "num_blocks": 256}
    return {**shared, "control_port": control_port, "model_name": "demo", "engine": engine, "kv": kv, "drain_s": 5.0}


def start(role: str) -> subprocess.Popen[bytes]:
    roots = [f"/mnt/repo/{package}" for package in PACKAGES]
    env = {
        "PATH": "/usr/bin:/bin", "PYTHONHOME": "/mnt/python", "PYTHONPATH": ":".join([*roots, "/mnt/site"]),
        "LD_LIBRARY_PATH": "/mnt/python/lib",
    }  # fmt: skip
    if role != "gateway":
        env |= {"BATON_WORKER_ID": f"demo-{role}-7d9f-x2x", "BATON_ADVERTISE_HOST": ADDRESS}
    python = f"/mnt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    restricted = [
        "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all",
    ]  # fmt: skip
    argv = ["unshare", "-p", "-f", "--kill-child", *restricted, python, "-m", f"baton_{role}"]
    return subprocess.Popen([*argv, "--settings", f"/mnt/pod/{role}.json"], cwd="/", env=env, stdin=subprocess.DEVNULL)


def first_process(unshared: subprocess.Popen[bytes]) -> int:
    """The process that is number 1 in there."""
    children = Path(f"/proc/{unshared.pid}/task/{unshared.pid}/children")
    while not children.read_text().split():
        time.sleep(0.01)
    return int(children.read_text().split()[0])


def get(path: str, port: int, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"http://{ADDRESS}:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except OSError:
        return 0, b""


def wait_ready(role: str, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + READY_S
    while get("/ready", PORTS[role][0])[0] != 200:
        if process.poll() is not None or time.monotonic() > end_s:
            raise SystemExit(f"{role} did not get ready (exit code {process.poll()})")
        time.sleep(0.1)


def chat() -> dict[str, Any]:
    body = {"model": "demo", "messages": [{"role": "user", "content": "What is a KV ticket?"}], "max_tokens": 16}
    request = urllib.request.Request(
        f"http://{ADDRESS}:8000/v1/chat/completions",
        json.dumps(body).encode(),
        {"authorization": "Bearer k", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.loads(answer.read())
        return {"text": said["choices"][0]["message"]["content"], "timing": answer.headers["server-timing"]}


def end(unshared: subprocess.Popen[bytes]) -> int:
    """The exit code after SIGTERM; 137 when it did not end by itself."""
    os.kill(first_process(unshared), signal.SIGTERM)
    try:
        return unshared.wait(20)
    except subprocess.TimeoutExpired:
        unshared.kill()
        return 137


def main(repository: str, model: str, site_packages: str) -> None:
    set_the_scene(repository, site_packages)
    for role in PORTS:
        Path(f"/mnt/pod/{role}.json").write_text(json.dumps(settings(role, model)))
    urls = [{"url": f"http://{ADDRESS}:{PORTS[role][0]}"} for role in ("prefill", "decode")]
    Path("/mnt/pod/fleet.json").write_text(json.dumps({"model": "demo", "workers": urls}))
    close_the_scene()

    loading = start("prefill")
    first_process(loading)
    time.sleep(0.7)  # somewhere between the interpreter's start and the loaded model
    told: dict[str, Any] = {"ended_while_loading": end(loading)}
    processes = {role: start(role) for role in PORTS}
    try:
        for role, process in processes.items():
            wait_ready(role, process)
        told["uids"] = [os.stat(f"/proc/{first_process(process)}").st_uid for process in processes.values()]
        told["health"] = [get("/health", port)[0] for port, _ in PORTS.values()]
        told["answer"] = chat()
        told["metrics"] = get("/metrics", PORTS["decode"][0])[1].decode()
        told["written"] = sorted(str(path) for top in ("/tmp", "/dev/shm") for path in Path(top).rglob("*"))
        told["exit_codes"] = [end(process) for process in processes.values()]
        told["left"] = sorted(str(path) for top in ("/tmp", "/dev/shm") for path in Path(top).rglob("*"))
    finally:
        for process in processes.values():
            process.kill()
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
