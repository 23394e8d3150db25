"""Where a cluster's API is and as whom it is asked; inside a Pod, from what every Pod is given."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from baton_api.errors import SettingError
from baton_wire.http_pool import ClientTls

SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(frozen=True, slots=True)
class KubeAccess:
    """`bearer` gives the token for the next request, None for none: kubelet replaces it about every hour.
    `prefix` is the path before /api ("" unless a proxy serves several clusters); `tls` None: plain HTTP, tests only."""

    host: str
    port: int
    tls: ClientTls | None = None
    bearer: Callable[[], str | None] = lambda: None
    prefix: str = ""
    namespace: str = "default"


def in_cluster(environment: Mapping[str, str], directory: str = SERVICE_ACCOUNT_DIR) -> KubeAccess:
    """As this Pod's service account. Raises SettingError when this is no Pod, or one without a token."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    port = environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or not port.isdigit():
        raise SettingError("KUBERNETES_SERVICE_HOST", host, "is not set", "run in a Pod, or use `discovery: file`")
    token_file, authority = Path(directory, "token"), Path(directory, "ca.crt")
    try:
        context = ssl.create_default_context(cafile=str(authority))
        token_file.read_bytes()
        namespace = Path(directory, "namespace").read_text().strip()
    except OSError as error:  # ssl.SSLError is one
        fix = "give the Pod a service account with automountServiceAccountToken: true"
        raise SettingError("service_account_dir", directory, f"cannot be used ({error})", fix) from error
    return KubeAccess(host, int(port), ClientTls(context), lambda: token_file.read_text().strip(), namespace=namespace)
