"""Which cluster, as whom: kubeconfigs as kubectl reads them."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import stat
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import yaml

from baton_api.errors import SettingError
from baton_cli.kube_config import Chosen, find_access
from support.control_plane import NEW_KEY


def config(user: dict[str, Any] | None = None, name: str = "a", **cluster: Any) -> dict[str, Any]:
    return {
        "current-context": name,
        "clusters": [
            {"name": f"{name}-cluster", "cluster": {"server": f"http://{name}.example:8001/proxy/", **cluster}}
        ],
        "users": [{"name": f"{name}-user", "user": user or {}}],
        "contexts": [
            {"name": name, "context": {"cluster": f"{name}-cluster", "user": f"{name}-user", "namespace": f"{name}-ns"}}
        ],
    }


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def read(path: Path, *, context: str | None = None, namespace: str | None = None, **environment: str) -> Any:
    return find_access(Chosen(context, namespace), {"KUBECONFIG": str(path), **environment})


def test_the_current_context_says_where_and_what_is_asked_for_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "config", config({"token": "t"}))
    access = read(path)
    assert (access.host, access.port, access.prefix, access.namespace) == ("a.example", 8001, "/proxy", "a-ns")
    assert access.bearer() == "t" and access.tls is None
    assert read(path, namespace="other").namespace == "other"


def test_of_several_files_the_first_to_say_something_wins(tmp_path: Path) -> None:
    first = write(tmp_path / "first", {"contexts": config(name="b")["contexts"], "current-context": "b"})
    both = f"{first}{os.pathsep}{write(tmp_path / 'a', config())}{os.pathsep}{write(tmp_path / 'b', config(name='b'))}"
    assert find_access(Chosen(), {"KUBECONFIG": both}).host == "b.example"
    assert find_access(Chosen("a"), {"KUBECONFIG": both}).namespace == "a-ns"


def test_files_that_do_not_exist_say_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    paths = (tmp_path / "none", empty, write(tmp_path / "a", config()), tmp_path / "neither")
    assert find_access(Chosen(), {"KUBECONFIG": os.pathsep.join(map(str, paths))}).host == "a.example"
    with pytest.raises(SettingError, match="names no file that exists"):
        find_access(Chosen(), {"KUBECONFIG": f"{paths[0]}{os.pathsep}{paths[3]}", "HOME": str(tmp_path)})


def test_without_the_variable_it_is_the_home_directorys(tmp_path: Path) -> None:
    write(tmp_path / ".kube" / "config", config())
    assert find_access(Chosen(), {"HOME": str(tmp_path)}).host == "a.example"


def test_a_token_file_is_read_each_time_and_lies_beside_its_config(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("one\n")
    access = read(write(tmp_path / "config", config({"tokenFile": "token"})))
    assert access.bearer() == "one"
    (tmp_path / "token").write_text("two")
    assert access.bearer() == "two"


def plugin(folder: Path, script: str) -> dict[str, Any]:
    path = folder / "login"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    env = [{"name": "TOKEN", "value": "from-plugin"}]
    version = "client.authentication.k8s.io/v1"
    return {"exec": {"apiVersion": version, "command": str(path), "args": ["x"], "env": env, "installHint": "get it"}}


def test_a_login_plugin_is_run_once(tmp_path: Path) -> None:
    script = 'echo "$1 $KUBERNETES_EXEC_INFO" >"$0.called"; echo "{\\"status\\": {\\"token\\": \\"$TOKEN\\"}}"'
    access = read(write(tmp_path / "config", config(plugin(tmp_path, script))), PATH=os.environ["PATH"])
    assert access.bearer() == access.bearer() == "from-plugin"
    called = (tmp_path / "login.called").read_text()
    assert called.startswith("x ") and json.loads(called[2:])["kind"] == "ExecCredential"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_certificates_may_be_files_or_data(tmp_path: Path) -> None:
    new = ["openssl", "req", "-x509", *NEW_KEY, "-keyout", "key", "-out", "crt", "-subj", "/CN=x"]
    subprocess.run(new, cwd=tmp_path, check=True, capture_output=True)
    data = {name: b64encode((tmp_path / name).read_bytes()).decode() for name in ("crt", "key")}
    server = {"server": "https://10.0.0.1", "tls-server-name": "kubernetes"}
    files = config({"client-certificate": "crt", "client-key": "key"}, **server, **{"certificate-authority": "crt"})
    inline = config(
        {"client-certificate-data": data["crt"], "client-key-data": data["key"]},
        **server,
        **{"certificate-authority-data": data["crt"]},
    )
    for content in (files, inline):
        access = read(write(tmp_path / "config", content))
        assert access.port == 443 and access.tls.server_name == "kubernetes"
        assert access.tls.context.verify_mode is ssl.CERT_REQUIRED
        assert len(access.tls.context.get_ca_certs()) == 1
    loose = read(write(tmp_path / "config", config(server="https://x", **{"insecure-skip-tls-verify": True})))
    assert loose.tls.context.verify_mode is ssl.CERT_NONE


@pytest.mark.parametrize(
    ("content", "context", "says"),
    [
        ([], None, "is no kubeconfig"),
        ({"clusters": ["x"]}, None, "malformed entry in clusters"),
        (config(), "b", r"--context: 'b' is in no kubeconfig; use one of: a"),
        ({**config(), "clusters": []}, None, "names the cluster 'a-cluster', which is in no kubeconfig"),
        (config(server="nowhere"), None, r"server: 'nowhere' is no URL"),
        (config(**{"proxy-url": "http://p"}), None, "proxy-url: 'http://p' is not supported"),
        (config({"username": "u"}), None, "a login that Kubernetes has removed"),
        (config({"as": "admin", "token": "t"}), None, r"users\[a-user\]\.as: 'admin' asks for impersonation"),
        (config({"as-groups": ["g"], "token": "t"}), None, r"users\[a-user\]\.as-groups: .* impersonation"),
        (config({"as-uid": "7"}), None, r"users\[a-user\]\.as-uid"),
        (config({"as-user-extra": {"a": ["b"]}}), None, r"users\[a-user\]\.as-user-extra"),
        ({**config(), "users": []}, None, "'a-user' is named as user, and is in no kubeconfig"),
        (config({"exec": {"command": "/no/such"}}), None, "exec: '/no/such' gave no token"),
        (config(server="https://x", **{"certificate-authority": "no"}), None, r"-authority\) cannot be read"),
        (config(server="https://x", **{"certificate-authority-data": "%"}), None, "is not base64"),
        (config(server="https://x", **{"certificate-authority-data": "eA=="}), None, "certificate that cannot be used"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, content: Any, context: str | None, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        read(write(tmp_path / "config", content), context=context)


def test_a_plugin_that_fails_says_why_and_how_to_mend_it(tmp_path: Path) -> None:
    path = write(tmp_path / "config", config(plugin(tmp_path, "echo expired >&2; exit 1")))
    with pytest.raises(SettingError, match=r"failed: expired; get it"):
        read(path, PATH=os.environ["PATH"])


def test_no_cluster_at_all(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"KUBECONFIG: null names nothing and .*config does not exist; point"):
        find_access(Chosen(), {"HOME": str(tmp_path)})
    with pytest.raises(SettingError, match="names no file that exists"):
        find_access(Chosen(), {"KUBECONFIG": str(tmp_path / "none")})
    with pytest.raises(SettingError, match="cannot be read"):
        find_access(Chosen(), {"KUBECONFIG": str(tmp_path)})
    with pytest.raises(SettingError, match="service_account_dir"):
        find_access(Chosen(), {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "10.96.0.1"})
