"""A worker's settings: the file, and over it what a Pod's environment says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from baton_api.errors import SettingError
from baton_worker.process import read_settings

IN_A_POD = {"BATON_WORKER_ID": "demo-decode-1a2b-x7x", "BATON_ADVERTISE_HOST": "10.0.0.7"}


def read(folder: Path, environment: dict[str, str], **raw: Any) -> Any:
    path = folder / "settings.json"
    path.write_text(json.dumps({"worker_id": "w", "model_path": "m", "secret_file": "s", **raw}))
    return read_settings(["--settings", str(path)], environment)


def test_what_differs_from_pod_to_pod_wins_over_the_file(tmp_path: Path) -> None:
    settings = read(tmp_path, IN_A_POD, host="0.0.0.0", advertise_host="10.9.9.9")
    assert (settings.worker_id, settings.reached_at) == ("demo-decode-1a2b-x7x", "10.0.0.7")
    assert (settings.host, settings.model_path) == ("0.0.0.0", "m")
    plain = read(tmp_path, {"PATH": "/bin"})
    assert (plain.worker_id, plain.reached_at) == ("w", "127.0.0.1")


def test_a_file_for_many_pods_needs_no_name_of_its_own(tmp_path: Path) -> None:
    assert read(tmp_path, IN_A_POD, worker_id=None, host="0.0.0.0").worker_id == "demo-decode-1a2b-x7x"
    with pytest.raises(SettingError, match="worker_id: null is missing"):
        read(tmp_path, {}, worker_id=None)


def test_an_address_of_version_six_will_do(tmp_path: Path) -> None:
    assert read(tmp_path, {"BATON_ADVERTISE_HOST": "fd00::7"}, host="::").reached_at == "fd00::7"


@pytest.mark.parametrize(
    ("environment", "raw", "says"),
    [
        ({"BATON_WORKER_ID": ""}, {}, r"BATON_WORKER_ID: '' cannot be used; give the Pod's name .*, or unset it"),
        ({"BATON_WORKER_ID": "a b"}, {}, r"BATON_WORKER_ID: 'a b' cannot be used"),
        ({"BATON_ADVERTISE_HOST": ""}, {}, r"BATON_ADVERTISE_HOST: '' cannot be used; give the Pod's IP"),
        ({"BATON_ADVERTISE_HOST": "0.0.0.0"}, {}, r"BATON_ADVERTISE_HOST: '0.0.0.0' cannot be used"),
        ({"BATON_ADVERTISE_HOST": "a.name"}, {}, r"BATON_ADVERTISE_HOST: 'a.name' cannot be used"),
        ({}, {"host": "0.0.0.0"}, r"host: '0.0.0.0' is not an address that others can be told; set advertise_host"),
        ({}, {"advertise_host": "::"}, r"advertise_host: '::' is nobody's address"),
        ({}, {"worker_id": "a b"}, r"worker_id: 'a b' does not match"),
        ({}, {"stuck_s": 0}, r"stuck_s: 0.0 is below 1"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, environment: dict[str, str], raw: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        read(tmp_path, environment, **raw)
