"""A certificate authority for one test cluster: certificates, service account keys and a kubeconfig for each part."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

SUBJECTS = {
    "apiserver": "/CN=kube-apiserver",
    "admin": "/O=system:masters/CN=admin",
    "controllers": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "dns": "/CN=system:coredns",
}
DAYS = "30"


def make(folder: Path, node: str, address: str, api_url: str) -> None:
    """All of it into `folder`, once. `address` is where Pods reach the host, `node` the node's name."""
    if (folder / "sa.pub").exists():
        return
    authority = ("req", "-x509", *_new_key("ca"), "-out", "ca.crt", "-subj", "/CN=test-ca", "-days", DAYS)
    _openssl(folder, *authority)
    names = {
        "apiserver": f"IP:127.0.0.1,IP:10.96.0.1,IP:{address},DNS:localhost,DNS:kubernetes.default.svc",
        "node": f"IP:{address},DNS:{node}",
    }
    for name, subject in {**SUBJECTS, "node": f"/O=system:nodes/CN=system:node:{node}"}.items():
        _certificate(folder, name, subject, names.get(name))
        if name != "apiserver":
            (folder / f"{name}.kubeconfig").write_text(json.dumps(_kubeconfig(folder, name, api_url)))
    _openssl(folder, "genrsa", "-out", "sa.key", "2048")
    _openssl(folder, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")


def _certificate(folder: Path, name: str, subject: str, alternatives: str | None) -> None:
    extensions = folder / f"{name}.ext"
    lines = ["extendedKeyUsage=serverAuth,clientAuth", *([f"subjectAltName={alternatives}"] if alternatives else [])]
    extensions.write_text("\n".join(lines))
    _openssl(folder, "req", *_new_key(name), "-out", f"{name}.csr", "-subj", subject)
    signed_by = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", DAYS, "-extfile", extensions.name)
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed_by, "-out", f"{name}.crt")


def _new_key(name: str) -> tuple[str, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _kubeconfig(folder: Path, name: str, url: str) -> dict[str, object]:
    key = {"client-certificate": f"{folder}/{name}.crt", "client-key": f"{folder}/{name}.key"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": f"{folder}/ca.crt"}}],
        "users": [{"name": "test", "user": key}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
