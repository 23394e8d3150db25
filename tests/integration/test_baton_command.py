"""The `baton` command as its users run it: real processes, the demo model, KV over tcp."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baton_cli.main import main
from baton_cli.rundir import RunDir, WorkerState

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/demo_model/model"
WAIT_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    found = os.pathsep.join(path for path in sys.path if path)
    return {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": found}


def baton(environment: dict[str, str], *arguments: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "baton_cli.main", *arguments]
    return subprocess.run(
        command, check=False, env=environment, cwd=ROOT, input=said, capture_output=True, text=True, timeout=110
    )


@contextlib.contextmanager
def up(environment: dict[str, str], tmp_path: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `baton up` that is ready."""
    out = tmp_path / "up.txt"
    command = [sys.executable, "-m", "baton_cli.main", "up", *arguments, "--port", "0"]
    with (
        out.open("wb") as file,
        subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file) as process,
    ):
        try:
            until(lambda: "Ready:" in out.read_text() or process.poll() is not None)
            assert process.poll() is None, out.read_text()
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def until(what: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.05)


def state(tmp_path: Path) -> dict[str, WorkerState]:
    return {child.name: child for child in RunDir(tmp_path / "baton" / "mine").read_state().workers}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_the_demo_answers_shows_the_split_of_every_first_token_and_ends(environment: dict[str, str]) -> None:
    done = baton(environment, "demo", "--transport", "tcp")
    assert done.returncode == 0, done.stdout + done.stderr
    first, long, repeated = done.stdout.split("--- ")[1:]
    assert "signed permission" in first
    for answer in (first, long, repeated):
        rows = {words[0]: float(words[1]) for words in map(str.split, answer.splitlines()) if has_number(words)}
        spans = [name for name in rows if name not in ("server", "client", "TTFT")]
        assert spans[-6:] == ["route", "reserve", "prefill", "transfer", "first_decode", "network"]
        assert sum(rows[name] for name in spans) == pytest.approx(rows["server"], abs=0.02)
        assert rows["server"] <= rows["TTFT"]
    chunks = re.search(r"(\d+) chunks 0 cached", long)
    assert chunks is not None and int(chunks[1]) > 1
    hit = re.search(r"(\d+) from the prefix cache", repeated)
    assert hit is not None and int(hit[1]) >= 128


def has_number(words: list[str]) -> bool:
    return len(words) > 1 and re.fullmatch(r"\d+\.\d{3}", words[1]) is not None


def test_a_deployment_is_seen_talked_to_survives_a_kill_and_leaves_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with up(environment, tmp_path, "--model", str(MODEL), "--transport", "tcp", "--name", "mine") as process:
        shown = json.loads(baton(environment, "status", "--output", "json").stdout)
        before = state(tmp_path)
        assert [(c["name"], (c["info"] or {}).get("kv_transport")) for c in shown["children"]] == [
            ("prefill-0", "tcp"),
            ("decode-0", "tcp"),
            ("gateway", None),
        ]
        pid = before["decode-0"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: state(tmp_path)["decode-0"].epoch not in (None, before["decode-0"].epoch))
        after = state(tmp_path)
        assert after["decode-0"].restarts == 1
        chatted = baton(environment, "chat", said="What is a KV ticket?\n")
        assert chatted.returncode == 0 and "signed permission" in chatted.stdout
        (tmp_path / "baton/mine/api-key").write_text("sk-wrong")
        refused = baton(environment, "chat", said="What is a KV ticket?\n")
        assert refused.returncode == 1 and "HTTP 401" in refused.stderr
        process.send_signal(signal.SIGTERM)
        asked_s = time.monotonic()
        assert process.wait(WAIT_S) == 0
        assert time.monotonic() - asked_s < 10.0
    assert not any(child.pid and alive(child.pid) for child in (*before.values(), *after.values()))
    refused = baton(environment, "status")
    assert refused.returncode == 2 and "no deployment is running" in refused.stderr


def test_a_model_that_the_gateway_refuses_ends_the_start_with_the_reason_from_the_log(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = baton(environment, "up", "--model", str(tmp_path), "--port", "0", "--name", "mine")
    assert done.returncode == 1
    assert "gateway refused its settings" in done.stdout
    assert "has no tokenizer.json" in done.stdout


def test_a_port_that_is_taken_is_named_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(("up", "--model", str(MODEL), "--port", str(port), "--name", "mine"))
    assert ended.value.code == 2
    told = f"--port: {port} cannot be listened on (127.0.0.1: Address already in use); give another one"
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "baton/mine").glob("*.log"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("up",), "give a resource file or --model PATH"),
        (("up", "nowhere.yaml"), "cannot be read"),
        (("up", "examples/demo_model/qa.yaml"), "apiVersion"),
        (("up", "--model", "."), "holds no config.json"),
        (("up", "--model", str(MODEL), "--decode", "0"), "spec.decode.replicas"),
        (("up", "--model", str(MODEL), "--port", "65536"), "--port: 65536 is no port; give 1 to 65535"),
        (("up", "--model", str(MODEL), "--port", "-1"), "--port: -1 is no port"),
        (
            ("up", "--model", str(MODEL), "--host", "no.such.host.invalid"),
            "--host: 'no.such.host.invalid' is no address",
        ),
        (("up", "--model", str(MODEL), "--host", "192.0.2.1"), "--host: '192.0.2.1' cannot be listened on"),
        (("chat",), "no deployment is running"),
    ],
)
def test_what_the_user_can_mend_is_named(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_resource_that_is_nested_too_deep_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (deep := tmp_path / "deep.yaml").write_text("[" * 3000)
    with pytest.raises(SystemExit) as ended:
        main(("up", str(deep)))
    assert ended.value.code == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.8])
def test_ctrl_c_while_it_still_starts_is_silent(after_s: float) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); from baton_cli.entry import main; main()", "up"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert b"Traceback" not in said
    assert process.returncode in (-signal.SIGINT, 130, 2), "2: it had come as far as saying that a file is missing"
