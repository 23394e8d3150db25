"""Which cluster the command talks to and as whom: a kubeconfig, as kubectl reads it, or the Pod it runs in."""

from __future__ import annotations

import base64
import binascii
import json
import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from baton_api.errors import SettingError
from baton_wire.http_pool import ClientTls
from baton_wire.kube_access import KubeAccess, in_cluster

Raw = dict[str, Any]
EXEC_S = 60.0
IMPERSONATION = ("as", "as-uid", "as-groups", "as-user-extra")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the user asked for; None: what the kubeconfig says."""

    context: str | None = None
    namespace: str | None = None


def find_access(chosen: Chosen, environment: Mapping[str, str]) -> KubeAccess:
    """KUBECONFIG (files separated by colons, the first to say something wins, missing ones are skipped), else
    ~/.kube/config, else the service account of the Pod this runs in. Raises SettingError."""
    given = [Path(name) for name in environment.get("KUBECONFIG", "").split(os.pathsep) if name]
    home = Path(environment.get("HOME", "/"), ".kube", "config")
    paths = [path for path in given or [home] if path.exists()]
    if given and not paths:
        fix = "name one that exists, or unset it for ~/.kube/config"
        raise SettingError("KUBECONFIG", environment["KUBECONFIG"], "names no file that exists", fix)
    if not paths and "KUBERNETES_SERVICE_HOST" in environment and chosen.context is None:
        access = in_cluster(environment)
    elif not paths:
        fix = "point KUBECONFIG at your cluster's file (kind get kubeconfig, k3s, your provider's tool)"
        raise SettingError("KUBECONFIG", None, f"names nothing and {home} does not exist", fix)
    else:
        access = _of_context(_merged(paths), chosen.context, environment)
    return replace(access, namespace=chosen.namespace or access.namespace)


def _merged(paths: list[Path]) -> Raw:
    """Lists by name, the first of a name wins; relative paths inside are relative to their own file."""
    merged: Raw = {"clusters": {}, "users": {}, "contexts": {}, "current-context": ""}
    for path in paths:
        raw = _load(path)
        merged["current-context"] = merged["current-context"] or raw.get("current-context") or ""
        for kind, inner in (("clusters", "cluster"), ("users", "user"), ("contexts", "context")):
            for entry in raw.get(kind) or []:
                try:
                    merged[kind].setdefault(entry["name"], {**(entry.get(inner) or {}), "dir": path.parent})
                except (TypeError, KeyError, AttributeError) as error:
                    raise _bad(path, f"has a malformed entry in {kind} ({error!r})") from error
    return merged


def _load(path: Path) -> Raw:
    try:
        raw = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise _bad(path, f"cannot be read ({error})") from error
    if not isinstance(raw, dict | None):
        raise _bad(path, "is no kubeconfig")
    return raw or {}


def _bad(path: object, why: str) -> SettingError:
    return SettingError("KUBECONFIG", str(path), why, "check it with `kubectl config view`")


def _of_context(raw: Raw, context: str | None, environment: Mapping[str, str]) -> KubeAccess:
    name = context or raw["current-context"]
    if name not in raw["contexts"]:
        known = ", ".join(sorted(raw["contexts"])) or "none"
        raise SettingError("--context", name, "is in no kubeconfig", f"use one of: {known}")
    chosen = raw["contexts"][name]
    cluster = raw["clusters"].get(chosen.get("cluster"))
    if cluster is None:
        raise _bad(name, f"names the cluster {chosen.get('cluster')!r}, which is in no kubeconfig")
    user = _user(raw, chosen.get("user"))
    url = urlsplit(str(cluster.get("server", "")))
    if url.scheme not in ("http", "https") or not url.hostname:
        raise SettingError(f"clusters[{chosen['cluster']}].server", cluster.get("server"), "is no URL", "give https://")
    if cluster.get("proxy-url"):
        raise SettingError("proxy-url", cluster["proxy-url"], "is not supported", "use `kubectl proxy` and its address")
    tls = _tls(cluster, user) if url.scheme == "https" else None
    port = url.port or (443 if tls else 80)
    namespace = chosen.get("namespace") or "default"
    return KubeAccess(url.hostname, port, tls, _bearer(user, environment), url.path.rstrip("/"), namespace)


def _user(raw: Raw, name: str | None) -> Raw:
    """Never somebody else than the one who was named: not nobody, and not the one behind an impersonation."""
    if not name:
        return {"dir": Path()}
    if name not in raw["users"]:
        raise _bad(name, "is named as user, and is in no kubeconfig")
    user: Raw = raw["users"][name]
    if given := next((field for field in IMPERSONATION if user.get(field)), None):
        fix = "use a context of a user that acts as itself"
        raise SettingError(f"users[{name}].{given}", user[given], "asks for impersonation, which is not supported", fix)
    return user


def _tls(cluster: Raw, user: Raw) -> ClientTls:
    authority = _data(cluster, "certificate-authority")
    try:
        context = ssl.create_default_context(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        certificate, key = _data(user, "client-certificate"), _data(user, "client-key")
        if certificate and key:
            _load_pair(context, certificate, key)
    except (ssl.SSLError, ValueError) as error:
        raise _bad(cluster["dir"], f"has a certificate that cannot be used ({error})") from error
    return ClientTls(context, cluster.get("tls-server-name"))


def _load_pair(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """OpenSSL takes files only; this one is ours alone and gone at once."""
    with tempfile.NamedTemporaryFile(prefix="baton-", suffix=".pem") as file:
        file.write(certificate + b"\n" + key)
        file.flush()
        context.load_cert_chain(file.name)


def _data(entry: Raw, name: str) -> bytes | None:
    """`NAME-data` (base64), else the file `NAME`."""
    if entry.get(f"{name}-data"):
        try:
            return base64.b64decode(entry[f"{name}-data"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise _bad(entry["dir"], f"has a {name}-data that is not base64") from error
    return _file(entry, name) if entry.get(name) else None


def _file(entry: Raw, name: str) -> bytes:
    path = Path(entry["dir"], str(entry[name]))
    try:
        return path.read_bytes()
    except OSError as error:
        raise _bad(path, f"({name}) cannot be read ({error})") from error


def _bearer(user: Raw, environment: Mapping[str, str]) -> Callable[[], str | None]:
    if user.get("tokenFile"):
        return lambda: _file(user, "tokenFile").decode().strip()
    if user.get("token"):
        return lambda: str(user["token"])
    if user.get("exec"):
        token = _exec_token(user["exec"], environment)
        return lambda: token
    if user.get("auth-provider") or user.get("username"):
        raise _bad(user["dir"], "uses a login that Kubernetes has removed (auth-provider, username)")
    return lambda: None


def _exec_token(plugin: Raw, environment: Mapping[str, str]) -> str:
    """client.authentication.k8s.io: the command prints an ExecCredential."""
    argv = [str(plugin.get("command")), *(str(word) for word in plugin.get("args") or [])]
    extra = {str(pair["name"]): str(pair["value"]) for pair in plugin.get("env") or []}
    info = {"apiVersion": plugin.get("apiVersion"), "kind": "ExecCredential", "spec": {"interactive": False}}
    env = {**environment, **extra, "KUBERNETES_EXEC_INFO": json.dumps(info)}
    try:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=EXEC_S, check=True)
        return str(json.loads(done.stdout)["status"]["token"])
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip()[-300:]
        raise SettingError("exec", argv[0], f"failed: {said}", plugin.get("installHint") or "log in again") from error
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError) as error:
        fix = plugin.get("installHint") or "install the login plug-in that the kubeconfig names"
        raise SettingError("exec", argv[0], f"gave no token ({error!r})", str(fix)) from error
